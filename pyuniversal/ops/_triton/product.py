"""`product_` in Triton; float32 and float64 by the library."""

from __future__ import annotations

import torch
from torch import Tensor

from ...float32 import tf32_products
from ...kernels.product import described, product
from .._op import Implementation
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
    left = _operand(x)
    right = left if y.data is x.data else _operand(y)
    with torch.cuda.device_of(total):
        product(total, left, right, x.scale.contiguous(), y.scale.contiguous())


def _operand(packed: Packed) -> Tensor:
    """int8 [neurons, tokens] or bf16 [tokens, neurons], where its rows begin at multiples of 16 bytes as it is, else copied so."""
    data = unpack(packed)
    if packed.precision == "int8":
        data = data.T
    if described(data):
        return data
    item = data.element_size()
    padded = data.new_empty(data.shape[0], -(-data.shape[1] * item // 16) * 16 // item)[:, : data.shape[1]]
    return padded.copy_(data)


product_ = Implementation(run=_run, why_not=_why_not)
