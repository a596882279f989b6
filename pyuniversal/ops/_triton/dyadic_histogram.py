"""`dyadic_histogram_` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import dyadic_histogram as kernels
from .._op import Implementation
from ..dyadic_histogram import fitting, widen_
from ._device import why_not


def _run(counts: Tensor, exponent: Tensor, x: Tensor) -> None:
    if x.numel() == 0:
        return
    with torch.cuda.device_of(x):
        low, high = kernels.extremes(x)
        widen_(counts, exponent, torch.maximum(exponent, fitting(low.double(), high.double(), counts.shape[1] // 2)))
        kernels.count(counts, exponent, x)


dyadic_histogram_ = Implementation(run=_run, why_not=lambda counts, exponent, x: why_not(x))
