"""Products of neurons with chosen partners. Both sides are transposed for a few tokens, so that what a pair needs lies together and both stay in L2."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .reading import as_float

PAIRS, TOKENS, WARPS = 32, 64, 8  # of a tile; TOKENS is part of the result: it orders additions
STRIP_BYTES = 3 << 23  # of the wider side, transposed: partners lie anywhere in it, so it must fit into L2, which is 50 MB on an H100


@triton.jit
def _pair_sums(
    sums,  # float64 [pairs]
    x,  # [x neurons, tokens]
    y,  # [y neurons, tokens]
    centre_x,  # float64 [x neurons]
    centre_y,  # float64 [y neurons]
    partner,  # int64 [pairs], pair i is one of neuron i // candidates of x
    pairs,
    candidates,
    tokens,
    PAIRS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    p = tl.load(partner + pair, mask=pair < pairs, other=-1)
    there = p >= 0
    n = (pair // candidates).to(tl.int64)
    mean_x = tl.load(centre_x + n, mask=there, other=0.0)[:, None]
    mean_y = tl.load(centre_y + p, mask=there, other=0.0)[:, None]
    total = tl.zeros([PAIRS, TOKENS], tl.float64)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        real = there[:, None] & (token < tokens)[None, :]
        left = as_float(tl.load(x + n[:, None] * tokens + token[None, :], mask=real, other=0.0)).to(tl.float64) - mean_x
        right = as_float(tl.load(y + p[:, None] * tokens + token[None, :], mask=real, other=0.0)).to(tl.float64) - mean_y
        total += tl.where(real, left, 0.0) * right
    tl.store(sums + pair, tl.load(sums + pair, mask=there, other=0.0) + tl.sum(total, 1), mask=there)


def pair_sums(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> None:
    """sums float64 [x neurons, candidates], x and y [tokens, neurons], centres float64 [neurons], partner int64 [x neurons, candidates], -1: none."""
    tokens, pairs = len(x), partner.numel()
    if tokens == 0 or pairs == 0 or y.shape[1] == 0:
        return
    row = max(x.shape[1], y.shape[1]) * x.element_size()
    strip = max(TOKENS, STRIP_BYTES // row // TOKENS * TOKENS)
    for first in range(0, tokens, strip):
        left, right = (side[first : first + strip].T.contiguous() for side in (x, y))  # [neurons, tokens]
        _pair_sums[(triton.cdiv(pairs, PAIRS),)](
            sums, left, right, centre_x, centre_y, partner, pairs, partner.shape[1], left.shape[1], PAIRS=PAIRS, TOKENS=TOKENS, num_warps=WARPS
        )
