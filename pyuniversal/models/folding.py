"""Weights in the basis in which the study reads them: norms folded in, writing weights and unembedding centred.

These are TransformerLens's fold_ln, center_writing_weights and center_unembed (its weight_processing.py; HookedTransformer.from_pretrained applies them by
default), computed for one layer at a time on copies, so that neither a second model lies in memory nor the caller's model changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class RawLayer:
    """One MLP as the model holds it, matrices as [inputs, outputs]; None where the model has no such part."""

    w_in: Tensor  # [d_model, d_mlp]
    b_in: Tensor | None
    w_gate: Tensor | None  # [d_model, d_mlp]
    b_gate: Tensor | None
    w_out: Tensor  # [d_mlp, d_model]
    b_out: Tensor | None
    norm_weight: Tensor | None  # [d_model], of the norm before the MLP
    norm_bias: Tensor | None


@dataclass(frozen=True)
class RawEnds:
    """Embedding, unembedding and final norm as the model holds them."""

    w_e: Tensor  # [d_vocab, d_model]
    w_u: Tensor  # [d_model, d_vocab]
    b_u: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


@dataclass(frozen=True)
class LayerWeights:
    """One MLP in the folded basis, float32 on the CPU. `W_gate` and `b_gate` are None for an MLP without a gate; an absent bias is zeros."""

    W_in: Tensor  # [d_model, d_mlp]
    b_in: Tensor  # [d_mlp]
    W_out: Tensor  # [d_mlp, d_model]
    b_out: Tensor  # [d_model]
    W_gate: Tensor | None  # [d_model, d_mlp]
    b_gate: Tensor | None  # [d_mlp]


class Weights:
    """A model's weights in the folded basis; every tensor float32 on the CPU, made when asked for.

    For a model with LayerNorm ("LN"), with g, b the norm's weight and bias: W_in <- diag(g) W_in, each column then minus its mean over d_model;
    b_in <- b_in + b W_in; each row of W_out and W_E and b_out itself minus their mean over d_model; W_U and b_U as W_in and b_in and then minus their mean over
    the vocabulary. With RMS norm only g is folded and only W_U and b_U are centred over the vocabulary: an RMS norm sees the mean of the residual stream.
    All d_vocab columns of W_U are there, also those beyond the tokenizer's vocabulary.
    """

    def __init__(self, n_layers: int, centred: bool, layer: Callable[[int], RawLayer], ends: Callable[[], RawEnds]) -> None:
        """Take the model's own weights from `layer(l)` and `ends()`; `centred` for LayerNorm, not for RMS norm."""
        self.n_layers = n_layers
        self._centred, self._layer, self._ends = centred, layer, ends

    def layer(self, layer: int) -> LayerWeights:
        """The MLP of one layer, computed in float64 and returned in float32.

        Raises:
            InputError: no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise InputError(f"there is no layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        raw = self._layer(layer)
        scale, shift = _double(raw.norm_weight), _double(raw.norm_bias)
        w_in, b_in = _fold(raw.w_in.to("cpu", torch.float64), _double(raw.b_in), scale, shift, self._centred)
        w_gate, b_gate = None, None
        if raw.w_gate is not None:
            w_gate, b_gate = (x.float() for x in _fold(raw.w_gate.to("cpu", torch.float64), _double(raw.b_gate), scale, shift, self._centred))
        w_out = raw.w_out.to("cpu", torch.float64)
        b_out = torch.zeros(w_out.shape[1], dtype=torch.float64) if raw.b_out is None else raw.b_out.to("cpu", torch.float64)
        if self._centred:
            w_out, b_out = w_out - w_out.mean(1, keepdim=True), b_out - b_out.mean()
        return LayerWeights(W_in=w_in.float(), b_in=b_in.float(), W_out=w_out.float(), b_out=b_out.float(), W_gate=w_gate, b_gate=b_gate)

    @cached_property
    def _unembed(self) -> tuple[Tensor, Tensor]:
        raw = self._ends()
        # float32 here: a float64 copy of a large vocabulary's matrix would be the largest thing in memory
        w_u, b_u = _fold(raw.w_u.to("cpu", torch.float32), _single(raw.b_u), _single(raw.norm_weight), _single(raw.norm_bias), self._centred)
        return (w_u - w_u.mean(1, keepdim=True)).contiguous(), b_u - b_u.mean()

    @property
    def W_U(self) -> Tensor:
        """Unembedding, [d_model, d_vocab]; kept after the first use."""
        return self._unembed[0]

    @property
    def b_U(self) -> Tensor:
        """Unembedding bias with the final norm's bias folded in, [d_vocab]."""
        return self._unembed[1]

    @property
    def W_E(self) -> Tensor:
        """Token embedding, [d_vocab, d_model]."""
        w_e = self._ends().w_e.to("cpu", torch.float32)
        return w_e - w_e.mean(1, keepdim=True) if self._centred else w_e.clone()


def _fold(w: Tensor, b: Tensor | None, scale: Tensor | None, shift: Tensor | None, centred: bool) -> tuple[Tensor, Tensor]:
    """Fold a norm's weight and bias into the matrix that reads its output; changes nothing in place. w: [d_model, outputs]."""
    b = w.new_zeros(w.shape[1]) if b is None else b
    if shift is not None:
        b = b + shift @ w
    w = w if scale is None else w * scale[:, None]
    return (w - w.mean(0, keepdim=True) if centred else w), b


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to("cpu", torch.float64)


def _single(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to("cpu", torch.float32)
