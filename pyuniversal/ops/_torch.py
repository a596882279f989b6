"""Implementations that are the best library call on a CPU."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ._op import Implementation
from .quantize import Packed, unpack

# float32 holds every integer up to 2^24, so sums of this many products of int8 are exact in it.
EXACT_TOKENS = 2**24 // 127**2


def _why_not_product(total: Tensor, x: Packed, y: Packed) -> str | None:
    if total.device.type != "cpu":
        return f"does not take {total.device.type} tensors"
    return None


def _product(total: Tensor, x: Packed, y: Packed) -> None:
    if x.precision == "int8":
        # Rows at a time: the sums of a whole block would be as large as the total again, twice.
        for rows in torch.arange(x.neurons).split(1024):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            total[part] += _int8_sums(x.data[part], y.data) * x.scale[part, None] * y.scale
    else:
        # bf16 operands are widened: a bf16 matmul would round the sums to eight bits.
        total.addmm_(unpack(x).to(total.dtype).T, unpack(y).to(total.dtype))


def _int8_sums(x: Tensor, y: Tensor) -> Tensor:
    """Exact x y^T of int8 [neurons, tokens]: int32 products where the CPU has the instructions for them, else float32 products of few enough tokens."""
    if _has_int8_products():
        return torch._int_mm(x, y.T)
    sums = torch.zeros(x.shape[0], y.shape[0], dtype=torch.int32)
    for a, b in zip(x.split(EXACT_TOKENS, 1), y.split(EXACT_TOKENS, 1), strict=True):
        sums += (a.float() @ b.float().T).to(torch.int32)
    return sums


@cache
def _has_int8_products() -> bool:
    """VNNI, and a library that uses it: without them torch._int_mm is a triple loop, and older ones overflowed on AVX2."""
    return torch.backends.mkldnn.is_available() and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


product_ = Implementation(run=_product, why_not=_why_not_product)
