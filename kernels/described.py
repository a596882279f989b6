"""What the tensor memory accelerator of an H100 can read and write, for kernels in Triton and in CUDA."""

from __future__ import annotations

from torch import Tensor


def described(x: Tensor) -> bool:
    """Whether the tensor memory accelerator can read and write this matrix."""
    item = x.element_size()
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1] and x.stride(0) * item % 16 == 0 and x.data_ptr() % 16 == 0
