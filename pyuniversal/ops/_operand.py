"""Operands of products as kernels for GPUs read them."""

from __future__ import annotations

from torch import Tensor

from ..kernels.described import described
from .quantize import Packed, unpack


def operand(packed: Packed) -> Tensor:
    """int8 [neurons, tokens] or bf16 [tokens, neurons], where its rows begin at multiples of 16 bytes as it is, else copied so."""
    data = unpack(packed)
    if packed.precision == "int8":
        data = data.T
    if described(data):
        return data
    item = data.element_size()
    padded = data.new_empty(data.shape[0], -(-data.shape[1] * item // 16) * 16 // item)[:, : data.shape[1]]
    return padded.copy_(data)
