"""`quantize` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import quantize as kernels
from .._op import Implementation
from ..quantize import DTYPES, Packed, packed_int8, scales
from ._device import why_not


def _why_not(x: Tensor, *_: Tensor, precision: str) -> str | None:
    return why_not(x) if precision != "float64" else "does not pack float64"


def _run(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> Packed:
    tokens, neurons = x.shape
    with torch.cuda.device_of(x):
        if precision == "int8":
            scale, inverse = scales(absmax)
            data, rounding = kernels.quantize(x, centre, inverse, token_key, neuron_key)
            return packed_int8(data, scale, centre, rounding, "neurons,tokens", neurons, tokens)
        none = torch.zeros_like(centre, dtype=torch.float64)
        data = kernels.centred(x, centre, DTYPES[precision])
        return Packed(data, torch.ones_like(centre), centre, none, none, "tokens,neurons", precision, neurons, tokens)


quantize = Implementation(run=_run, why_not=_why_not)
