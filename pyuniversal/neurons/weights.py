"""Columns of the neuron table that come from the folded, centred weights (TransformerLens's fold_ln, center_writing_weights, center_unembed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor


class FoldedWeights(Protocol):
    """What is asked of `pyuniversal.models.Weights`."""

    @property
    def W_U(self) -> Tensor:
        """Unembedding, [d_model, d_vocab]."""
        ...

    def layer(self, layer: int) -> Any:
        """W_in [d_model, d_mlp], b_in [d_mlp], W_out [d_mlp, d_model], W_gate [d_model, d_mlp] or None."""
        ...


def weight_columns(weights: FoldedWeights, layers: Sequence[int], *, d_vocab: int | None = None) -> pd.DataFrame:
    """Norms, bias, cosine of input and output, penalty, and moments of the vocabulary effect; one row a neuron of `layers`, in order, float64.

    w_in_norm, w_out_norm   L2 norms of the neuron's column of W_in and row of W_out
    input_bias              b_in
    in_out_sim              cosine of the two
    l2_penalty              w_in_norm^2 + w_out_norm^2 (plus the squared norm of W_gate's column where there is one)
    vocab_mean, var, skew, kurt   moments over the vocabulary of cos(W_U[:, v], w_out), ddof 0, raw kurtosis (Gurnee et al. 2024, section 4)

    Args:
        weights: of one model.
        layers: which.
        d_vocab: how many columns of W_U are tokens; those beyond are padding of the matrix. All of them where not given (as the study did).
    """
    unembed = weights.W_U.double()[:, :d_vocab]
    norm = unembed.norm(dim=0)
    unembed = unembed[:, norm > 0] / norm[norm > 0]  # [d_model, d_vocab]; a column of zeros has no direction
    return pd.concat([_layer_columns(weights.layer(layer), unembed) for layer in layers], ignore_index=True)


def _layer_columns(layer: Any, unembed: Tensor) -> pd.DataFrame:
    w_in, w_out = layer.W_in.double().T, layer.W_out.double()  # [d_mlp, d_model]
    in_norm, out_norm = w_in.norm(dim=1), w_out.norm(dim=1)
    penalty = in_norm**2 + out_norm**2
    if layer.W_gate is not None:
        penalty = penalty + (layer.W_gate.double() ** 2).sum(0)
    columns = {
        "w_in_norm": in_norm,
        "input_bias": layer.b_in.double(),
        "w_out_norm": out_norm,
        "in_out_sim": (w_in * w_out).sum(1) / (in_norm * out_norm),
        "l2_penalty": penalty,
    }
    moments = torch.cat([_moments(part @ unembed / part.norm(dim=1, keepdim=True)) for part in w_out.split(256)])  # [d_mlp, 4]
    columns |= {f"vocab_{name}": moments[:, k] for k, name in enumerate(("mean", "var", "skew", "kurt"))}
    return pd.DataFrame({name: c.cpu().numpy() for name, c in columns.items()})


def _moments(cosine: Tensor) -> Tensor:
    """Mean, variance, skewness, raw kurtosis over the vocabulary: [neurons, d_vocab] -> [neurons, 4]."""
    mean = cosine.mean(1)
    d = cosine - mean[:, None]
    var = (d**2).mean(1)
    return torch.stack([mean, var, (d**3).mean(1) / var**1.5, (d**4).mean(1) / var**2], dim=1)
