"""`histogram_` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import histogram as kernels
from .._op import Implementation
from ._device import why_not


def _run(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    with torch.cuda.device_of(x):
        kernels.histogram(counts, x, edges)


histogram_ = Implementation(run=_run, why_not=lambda counts, x, edges: why_not(x))
