"""Implementations in Triton, for tensors on a CUDA device; in host memory where TRITON_INTERPRET=1 has Triton interpret its kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from triton import knobs

from ..kernels import moments as _moments_kernels
from ..kernels import quantize as _quantize_kernels
from ._op import Implementation
from .quantize import DTYPES, Packed, packed_int8, scales


def _why_not(x: Tensor) -> str | None:
    if x.device.type != "cuda" and not (x.device.type == "cpu" and knobs.runtime.interpret):
        return f"does not take {x.device.type} tensors"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"does not take {str(x.dtype).removeprefix('torch.')}"
    if x.stride(1) != 1:
        return "needs neurons with unit stride"
    return None


def _moments(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    with torch.cuda.device_of(x):
        _moments_kernels.moments_(state, x, ends, activation or "")


def _why_not_quantize(x: Tensor, *_: Tensor, precision: str) -> str | None:
    return _why_not(x) if precision != "float64" else "does not pack float64"


def _quantize(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> Packed:
    tokens, neurons = x.shape
    with torch.cuda.device_of(x):
        if precision == "int8":
            scale, inverse = scales(absmax)
            data, rounding = _quantize_kernels.quantize(x, centre, inverse, token_key, neuron_key)
            return packed_int8(data, scale, centre, rounding, "neurons,tokens", neurons, tokens)
        none = torch.zeros_like(centre, dtype=torch.float64)
        data = _quantize_kernels.centred(x, centre, DTYPES[precision])
        return Packed(data, torch.ones_like(centre), centre, none, none, "tokens,neurons", precision, neurons, tokens)


moments_ = Implementation(run=_moments, why_not=lambda state, x, ends, **_: _why_not(x))
quantize = Implementation(run=_quantize, why_not=_why_not_quantize)
