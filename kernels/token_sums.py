"""Activations summed by the token's id: tokens are sorted by id, and a program adds up those of one id, in their order, for some neurons. No atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reading import as_float

BLOCK, WARPS = 1024, 4  # neurons of a program
TOGETHER = 8  # tokens on their way from memory at a time: a frequent word is a long chain
PROGRAMS = 2048  # that share the ids of a call; no result depends on it


@triton.jit
def _token_sums(
    sums,  # float64 or float32 [d_vocab, neurons], rows `sums_stride` apart
    counts,  # int64 [d_vocab]
    x,  # [tokens, neurons], rows `x_stride` apart
    ids,  # int64 [tokens], sorted
    order,  # int64 [tokens], where each stands in x
    starts,  # int64 [tokens + 1], of the groups of equal ids
    last,  # int64 [1], the last group
    neurons,
    x_stride,
    sums_stride,
    BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    neuron = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    groups = tl.load(last) + 1
    for group in range(tl.program_id(0), groups, tl.num_programs(0)):
        begin, end = tl.load(starts + group), tl.load(starts + group + 1)
        total = tl.zeros([BLOCK], tl.float64)
        for first in range(begin, end, TOGETHER):
            for i in tl.static_range(TOGETHER):
                token = tl.load(order + tl.minimum(first + i, end - 1))
                wanted = neuron < tl.where(first + i < end, neurons, 0)
                total += as_float(tl.load(x + token * x_stride + neuron, mask=wanted, other=0.0)).to(tl.float64)
        word = tl.load(ids + begin)
        row = sums + word * sums_stride + neuron
        real = neuron < neurons
        tl.store(row, (tl.load(row, mask=real, other=0.0).to(tl.float64) + total).to(sums.dtype.element_ty), mask=real)
        if tl.program_id(1) == 0:
            tl.store(counts + word, tl.load(counts + word) + end - begin)


def token_sums(sums: Tensor, counts: Tensor, x: Tensor, ids: Tensor) -> None:
    """sums [d_vocab, neurons] float64 or float32, counts int64 [d_vocab], x [tokens, neurons], ids [tokens], within the vocabulary."""
    tokens, neurons = x.shape
    if tokens == 0:
        return
    ids, order = torch.sort(ids.long(), stable=True)
    group = torch.zeros_like(ids)  # of equal ids, of each sorted token
    group[1:] = (ids[1:] != ids[:-1]).cumsum(0)
    starts = torch.searchsorted(group, torch.arange(tokens + 1, device=x.device))  # [tokens + 1]; beyond the last group: tokens
    grid = min(tokens, PROGRAMS), max(1, triton.cdiv(neurons, BLOCK))
    _token_sums[grid](sums, counts, x, ids, order, starts, group[-1:], neurons, x.stride(0), sums.stride(0), BLOCK=BLOCK, TOGETHER=TOGETHER, num_warps=WARPS)
