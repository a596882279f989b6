"""Histograms of activations: every value adds one to a counter, atomically; integers, so that no order changes a bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reading import as_float

TOKENS, NEURONS, WARPS = 16, 128, 4  # of a program: 16 bytes a lane are read at a time, and neighbouring lanes add to neighbouring counters
COUNTERS = 1 << 22  # at a time: 16 MB of int32, which stay in L2, where atomic additions are made


@triton.jit
def _histogram(
    part,  # int32 [last + 2, width]
    x,  # [tokens, neurons], rows `x_stride` apart
    edges,  # float32 [last + 1]
    guide,  # float32 [3], see _guide
    tokens,
    neurons,
    width,
    x_stride,
    last,
    STEPS: tl.constexpr,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    blocks = tl.cdiv(neurons, NEURONS)
    neuron = tl.program_id(0) % blocks * NEURONS + tl.arange(0, NEURONS)
    token = (tl.program_id(0) // blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    real = (token < tokens)[:, None] & (neuron < neurons)[None, :]
    value = as_float(tl.load(x + token[:, None] * x_stride + neuron[None, :], mask=real, other=0.0))  # [TOKENS, NEURONS]
    if tl.load(guide) > 0:
        # Of uniform edges the nearest is known up to the side: value stands between its neighbours. A NaN goes to the last.
        near = (value - tl.load(guide + 1)) * tl.load(guide + 2) + 0.5
        near = tl.where(near < last, near, last)
        low = tl.where(near > 0, near, 0.0).to(tl.int32)
        low += tl.where(value <= tl.load(edges + low), 0, 1)
    else:
        low = tl.zeros([TOKENS, NEURONS], tl.int32)
        high = low + last + 1
        for _ in tl.static_range(STEPS):
            middle = (low + high) // 2
            open_ = low < high
            above = (tl.load(edges + middle, mask=open_, other=0.0) >= value) == 0  # a NaN is above every edge
            low = tl.where(open_ & above, middle + 1, low)
            high = tl.where(open_ & (above == 0), middle, high)
    tl.atomic_add(part + low.to(tl.int64) * width + neuron[None, :], 1, mask=real, sem="relaxed")


def histogram(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    """counts int64 [neurons, bins], x [tokens, neurons], edges float32 [bins - 1]."""
    edges = edges.contiguous()
    guide, steps = _guide(edges), len(edges).bit_length()
    for columns, part in parts(counts, x):
        values = x[:, columns]
        tokens, neurons = values.shape
        grid = (triton.cdiv(tokens, TOKENS) * triton.cdiv(neurons, NEURONS),)
        _histogram[grid](
            part, values, edges, guide, tokens, neurons, part.shape[1], x.stride(0), len(edges) - 1,
            STEPS=steps, TOKENS=TOKENS, NEURONS=NEURONS, num_warps=WARPS,
        )  # fmt: skip
        counts[columns] += part[:, :neurons].T


def parts(counts: Tensor, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some neurons, and zeros int32 [bins, neurons] to count them in: neighbouring neurons often add to the same bin, and 8 of them are one access of L2."""
    neurons, bins = counts.shape
    some = max(NEURONS, COUNTERS // bins // NEURONS * NEURONS)
    for first in range(0, neurons if x.numel() else 0, some):
        many = min(some, neurons - first)
        yield slice(first, first + many), torch.zeros(bins, triton.cdiv(many, NEURONS) * NEURONS, dtype=torch.int32, device=x.device)


def _guide(edges: Tensor) -> Tensor:
    """float32 [3]: 1 where (x - origin) scale + 1 is i + 1 on edge i up to 1/8, which, as it never falls, finds the nearest edge of any x; origin; scale."""
    n = len(edges)
    spacing = (edges[-1].double() - edges[0].double()) / max(n - 1, 1) + (n == 1)
    scale = (1 / spacing).float()
    place = (edges - edges[0]) * scale
    off = (place - torch.arange(n, device=edges.device)).abs().amax()
    exact = (off < 0.124) & (scale > 1.2e-38) & (n < 1 << 20)  # a GPU may flush what is less than a normal float
    return torch.stack([exact.float(), edges[0], scale])
