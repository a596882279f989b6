"""Columns of the neuron table that come from the distribution of the pre-activation over all tokens (BOS included, padding not)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..totals import Histogram, Moments


def activation_columns(pre: Moments) -> pd.DataFrame:
    """mean, var, skew, kurt (ddof 0; kurt raw, 3 = Gaussian) and sparsity = P(pre > 0), the firing frequency; one row a neuron, float64.

    Gated MLPs: of the gate's pre-activation.
    """
    columns = {"mean": pre.mean(), "var": pre.var(), "skew": pre.skew(), "kurt": pre.kurt(), "sparsity": pre.firing()}
    return pd.DataFrame({name: c.cpu().numpy() for name, c in columns.items()})


def legacy_activation_columns(histogram: Histogram) -> pd.DataFrame:
    """The same columns as Gurnee et al. 2024 computed them, from a histogram.

    Their moments take every token to sit at the centre of its bin (the open bins half a width outside the range), and their sparsity counts from the bin that
    ends at 0, not from the one that starts there: P(pre > -0.098).
    """
    edges = histogram.edges.double().cpu()
    width = edges[1] - edges[0]
    centres = torch.cat([edges[:1] - width / 2, (edges[1:] + edges[:-1]) / 2, edges[-1:] + width / 2])  # [bins]
    counts = histogram.counts.double().cpu()  # [neurons, bins]
    share = counts / counts.sum(1, keepdim=True)
    zero_bin = int((edges >= 0).to(torch.int8).argmax())
    mean, var, skew, kurt = weighted_moments(centres.expand_as(share), share)
    columns = {"mean": mean, "var": var, "skew": skew, "kurt": kurt, "sparsity": share[:, zero_bin:].sum(1)}
    return pd.DataFrame({name: np.asarray(c) for name, c in columns.items()})


def weighted_moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, skewness and raw kurtosis along the last axis, weights summing to one there."""
    mean = (x * weight).sum(-1)
    d = x - mean[..., None]
    var = (d**2 * weight).sum(-1)
    return mean, var, (d**3 * weight).sum(-1) / var**1.5, (d**4 * weight).sum(-1) / var**2
