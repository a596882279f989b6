"""Implementations in Triton, for tensors on a CUDA device; in host memory where TRITON_INTERPRET=1 has Triton interpret its kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import knobs


def _why_not(x: Tensor) -> str | None:
    if x.device.type != "cuda" and not (x.device.type == "cpu" and knobs.runtime.interpret):
        return f"does not take {x.device.type} tensors"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"does not take {str(x.dtype).removeprefix('torch.')}"
    if x.stride(1) != 1:
        return "needs neurons with unit stride"
    return None
