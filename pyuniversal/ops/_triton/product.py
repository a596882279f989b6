"""`product_` in Triton; float32 and float64 by the library."""

from __future__ import annotations

import torch
from torch import Tensor

from ...float32 import tf32_products
from ...kernels.product import product
from .._op import Implementation
from .._operand import operand
from ..quantize import Packed, unpack
from ._device import elsewhere


def _why_not(total: Tensor, x: Packed, y: Packed) -> str | None:
    if (reason := elsewhere(total)) is not None:
        return reason
    if total.is_cuda and torch.cuda.get_device_capability(total.device) < (9, 0):
        return "needs the shared memory of a GPU of compute capability 9.0"
    return None


def _run(total: Tensor, x: Packed, y: Packed) -> None:
    if x.precision in ("float32", "float64"):
        with tf32_products(False):  # the mantissa they were asked for, whatever models run with
            total.addmm_(unpack(x).T, unpack(y))
        return
    left = operand(x)
    right = left if y.data is x.data else operand(y)
    with torch.cuda.device_of(total):
        product(total, left, right, x.scale.contiguous(), y.scale.contiguous())


product_ = Implementation(run=_run, why_not=_why_not)
