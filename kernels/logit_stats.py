"""Rows of logits in one read: every lane keeps the largest of its columns and sums about it; the lanes of a row are put together at its end."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .reading import as_float

BLOCK, WARPS = 2048, 8  # columns that a program reads at a time: with 3 programs on a multiprocessor 24 KB of float32 are on their way


@triton.jit
def _logit_stats(
    logits,  # [tokens, d_vocab], rows `stride` apart
    next_id,  # int64 [tokens]
    sums,  # float64 [4, tokens]
    greater,  # int64 [tokens]
    tokens,
    d_vocab,
    stride,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * stride
    true_id = tl.load(next_id + token)
    target = as_float(tl.load(row + true_id, mask=true_id >= 0, other=float("inf")))
    columns = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    others = tl.zeros([BLOCK], tl.float32)  # sum of e^(x - largest) without the largest itself
    spread = tl.zeros([BLOCK], tl.float32)  # sum of (largest - x) e^(x - largest)
    above = tl.zeros([BLOCK], tl.int32)
    for first in range(0, d_vocab, BLOCK):
        x = as_float(tl.load(row + first + columns, mask=first + columns < d_vocab, other=float("-inf")))
        gap = tl.abs(x - largest)
        near = gap < 87  # not where one of them is -Inf, or both are
        e = tl.where(near, tl.exp(-gap), 0.0)
        product = tl.where(near, gap, 0.0) * e
        # One exponential serves both: it is the new term, or it rescales what is there, of which the old largest now is a part.
        rises = x > largest
        terms = others + 1
        spread = tl.where(rises, e * spread + product * terms, spread + product)
        others = tl.where(rises, e * terms, others + e)
        above += (x > target).to(tl.int32)
        largest = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
    most = tl.max(largest, 0)  # a NaN is passed over
    gap = most - largest
    near = gap < 87
    e = tl.where(near, tl.exp(-gap), 0.0).to(tl.float64)
    others64 = others.to(tl.float64)
    total = tl.sum(others64 * e + tl.where(gap > 0, e, 0.0), 0) + (tl.sum((gap == 0).to(tl.int32), 0) - 1).to(tl.float64)
    products = tl.sum(e * (spread.to(tl.float64) + tl.where(near, gap, 0.0).to(tl.float64) * (others64 + 1)), 0)
    undefined = tl.max((largest != largest).to(tl.int32), 0) > 0
    tl.store(sums + token, tl.where(undefined, float("nan"), most).to(tl.float64))
    tl.store(sums + tokens + token, target.to(tl.float64))
    tl.store(sums + 2 * tokens + token, total)
    tl.store(sums + 3 * tokens + token, products)
    tl.store(greater + token, tl.sum(above, 0).to(tl.int64))


def logit_stats(sums: Tensor, greater: Tensor, logits: Tensor, next_id: Tensor) -> None:
    """sums float64 [4, tokens]: largest logit, true one, sum of e^(x - largest) without the largest, sum of (largest - x) e^(x - largest); greater int64."""
    tokens, d_vocab = logits.shape
    if tokens:
        _logit_stats[(tokens,)](logits, next_id, sums, greater, tokens, d_vocab, logits.stride(0), BLOCK=BLOCK, num_warps=WARPS)
