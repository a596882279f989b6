"""`logit_stats` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import logit_stats as kernels
from .._op import Implementation
from ..logit_stats import LogitStats, statistics
from ._device import why_not


def _run(logits: Tensor, next_id: Tensor) -> LogitStats:
    sums = torch.empty(4, len(logits), dtype=torch.float64, device=logits.device)
    greater = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    with torch.cuda.device_of(logits):
        kernels.logit_stats(sums, greater, logits, next_id.contiguous())
    return statistics(sums, greater, next_id)


logit_stats = Implementation(run=_run, why_not=lambda logits, next_id: why_not(logits))
