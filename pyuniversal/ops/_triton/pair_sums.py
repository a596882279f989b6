"""`pair_sums_` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import pair_sums as kernels
from .._op import Implementation
from ._device import why_not


def _run(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> None:
    with torch.cuda.device_of(x):
        kernels.pair_sums(sums, x, y, centre_x.contiguous(), centre_y.contiguous(), partner)


pair_sums_ = Implementation(run=_run, why_not=lambda sums, x, y, *_: why_not(x) or why_not(y))
