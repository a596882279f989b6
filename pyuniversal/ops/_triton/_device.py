"""What the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import knobs


def elsewhere(x: Tensor) -> str | None:
    """Why not a tensor that lies there, in words."""
    if x.device.type != "cuda" and not (x.device.type == "cpu" and knobs.runtime.interpret):
        return f"does not take {x.device.type} tensors"
    return None


def why_not(x: Tensor) -> str | None:
    """Why not these activations, in words."""
    if (reason := elsewhere(x)) is not None:
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"does not take {str(x.dtype).removeprefix('torch.')}"
    if x.stride(1) != 1:
        return "needs neighbouring columns (unit stride)"
    return None
