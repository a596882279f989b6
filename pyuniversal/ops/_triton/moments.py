"""`moments_` in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import moments
from .._op import Implementation
from ._device import why_not


def _run(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    with torch.cuda.device_of(x):
        moments.moments_(state, x, ends, activation or "")


moments_ = Implementation(run=_run, why_not=lambda state, x, ends, **_: why_not(x))
