"""`token_sums_` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import token_sums as kernels
from .._op import Implementation
from ._device import why_not


def _run(sums: Tensor, counts: Tensor, x: Tensor, ids: Tensor) -> None:
    with torch.cuda.device_of(x):
        kernels.token_sums(sums, counts, x, ids)


token_sums_ = Implementation(run=_run, why_not=lambda sums, counts, x, ids: why_not(x))
