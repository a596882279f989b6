"""Histograms in bins of width 2^k: the extremes of every neuron first, from which its k follows, then the counts. x is read twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .histogram import NEURONS, TOKENS, WARPS, parts
from .reading import as_float

STRIP = 256  # tokens of which a program finds the extremes


@triton.jit
def _extremes(
    least,  # float32 [strips, neurons]
    most,  # float32 [strips, neurons]
    x,  # [tokens, neurons], rows `x_stride` apart
    tokens,
    neurons,
    x_stride,
    STRIP: tl.constexpr,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    strip = tl.program_id(1).to(tl.int64)
    low = tl.zeros([TOKENS, NEURONS], tl.float32)
    high = tl.zeros([TOKENS, NEURONS], tl.float32)
    for first in range(0, STRIP, TOKENS):
        token = strip * STRIP + first + tl.arange(0, TOKENS)
        real = (token < tokens)[:, None] & (neuron < neurons)[None, :]
        value = as_float(tl.load(x + token[:, None] * x_stride + neuron[None, :], mask=real, other=0.0))
        value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
        low = tl.minimum(low, value)
        high = tl.maximum(high, value)
    tl.store(least + strip * neurons + neuron, tl.min(low, 0), mask=neuron < neurons)
    tl.store(most + strip * neurons + neuron, tl.max(high, 0), mask=neuron < neurons)


@triton.jit
def _count(
    part,  # int32 [2 half, width]
    exponent,  # int32 [neurons]
    x,  # [tokens, neurons], rows `x_stride` apart
    tokens,
    neurons,
    width,
    x_stride,
    half,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    blocks = tl.cdiv(neurons, NEURONS)
    neuron = tl.program_id(0) % blocks * NEURONS + tl.arange(0, NEURONS)
    token = (tl.program_id(0) // blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    real = (token < tokens)[:, None] & (neuron < neurons)[None, :]
    value = as_float(tl.load(x + token[:, None] * x_stride + neuron[None, :], mask=real, other=0.0))
    k = tl.load(exponent + neuron, mask=neuron < neurons, other=0)
    # In integers, since a GPU may flush subnormals: |x| = m 2^(e - 150), so |x| / 2^k is m shifted right by k + 150 - e, never left: bins are fewer than 2^23.
    bits = value.to(tl.int32, bitcast=True)
    e = (bits >> 23) & 255
    m = (bits & 0x7FFFFF) | tl.where(e > 0, 1 << 23, 0)
    shift = tl.minimum(tl.maximum(k[None, :] + 150 - e, 0), 31)  # subnormals, one too far, are beside 0 in any case
    ceiling = tl.where(m > 0, ((m - 1) >> shift) + 1, 0)
    bin_ = half + tl.where(bits < 0, -ceiling, m >> shift)
    tl.atomic_add(part + bin_.to(tl.int64) * width + neuron[None, :], 1, mask=real & (e < 255), sem="relaxed")


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the finite values and 0, float32 [neurons]: the least and the largest. There must be values."""
    tokens, neurons = x.shape
    strips = triton.cdiv(tokens, STRIP)
    least, most = torch.empty(2, strips, neurons, device=x.device)
    grid = triton.cdiv(neurons, NEURONS), strips
    _extremes[grid](least, most, x, tokens, neurons, x.stride(0), STRIP=STRIP, TOKENS=TOKENS, NEURONS=NEURONS, num_warps=WARPS)
    return least.amin(0), most.amax(0)


def count(counts: Tensor, exponent: Tensor, x: Tensor) -> None:
    """counts int64 [neurons, bins], exponent int32 [neurons], for which all finite values of x [tokens, neurons] fit."""
    for columns, part in parts(counts, x):
        values = x[:, columns]
        tokens, neurons = values.shape
        grid = (triton.cdiv(tokens, TOKENS) * triton.cdiv(neurons, NEURONS),)
        _count[grid](
            part, exponent[columns], values, tokens, neurons, part.shape[1], x.stride(0), counts.shape[1] // 2,
            TOKENS=TOKENS, NEURONS=NEURONS, num_warps=WARPS,
        )  # fmt: skip
        counts[columns] += part[:, :neurons].T
