"""Float32 matrix products: whether a GPU rounds their operands to TF32, and which library of a CPU makes them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Inside the `with` block float32 products on CUDA round their operands to 10 bits of mantissa, or do not; the caller's setting comes back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def times_transpose(a: Tensor, b: Tensor) -> Tensor:
    """a b^T. float32 on x86 by oneDNN: MKL, which `@` takes, uses half of the width of other makers' CPUs (370 against 210 Gflop/s on a Zen 5)."""
    if a.dtype == torch.float32 and a.is_cpu and platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available():
        return F.linear(a.contiguous().to_mkldnn(), b.contiguous().to_mkldnn()).to_dense()
    return a @ b.T
