"""Implementations in the compiled extension, for tensors in host memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from ._op import Implementation
from .quantize import Packed, empty_panels, in_panels, packed_int8, scales, unpack


def _why_not(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"does not take {x.device.type} tensors"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"does not take {str(x.dtype).removeprefix('torch.')}"
    if x.stride(1) != 1:
        return "needs neurons with unit stride"
    return None


def _moments(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    _C.moments_(state, x, list(ends), torch.get_num_threads(), activation or "")


def _histogram(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    _C.histogram_(counts, x, edges, torch.get_num_threads())


def _why_not_quantize(x: Tensor, *_: Tensor, precision: str) -> str | None:
    return _why_not(x) if precision == "int8" else f"does not pack {precision}"


def _quantize(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> Packed:
    tokens, neurons = x.shape
    scale, inverse = scales(absmax)
    data = empty_panels(neurons, tokens)
    rounding = torch.empty(neurons, dtype=torch.float64)
    _C.quantize(data, rounding, x, centre.contiguous(), inverse, token_key.contiguous(), neuron_key.contiguous(), torch.get_num_threads())
    return packed_int8(data, scale, centre, rounding, "panels", neurons, tokens)


def _why_not_product(total: Tensor, x: Packed, y: Packed) -> str | None:
    if total.device.type != "cpu":
        return f"does not take {total.device.type} tensors"
    return None


def _product(total: Tensor, x: Packed, y: Packed) -> None:
    if x.precision != "int8":
        # The library's products; bf16 operands are widened, since a bf16 matmul would round the sums to eight bits.
        total.addmm_(unpack(x).to(total.dtype).T, unpack(y).to(total.dtype))
        return
    left, right = in_panels(x), in_panels(y)
    _C.product_(total, left.data, right.data, left.scale.contiguous(), right.scale.contiguous(), torch.get_num_threads())


quantize = Implementation(run=_quantize, why_not=_why_not_quantize)
moments_ = Implementation(run=_moments, why_not=lambda state, x, ends, **_: _why_not(x))
histogram_ = Implementation(run=_histogram, why_not=lambda counts, x, edges: _why_not(x))
product_ = Implementation(run=_product, why_not=_why_not_product)
