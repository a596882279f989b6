"""`dyadic_histogram_(counts, exponent, x)`: count the tokens of every neuron in bins that widen by themselves, so that no range need be known in advance.

    counts    int64 [neurons, bins], contiguous, updated in place; bins even, 4 to 65,536
    exponent  int32 [neurons], contiguous, updated in place; k of a neuron, LOWEST_EXPONENT = -126 where it has seen nothing
    x         float16 / bfloat16 / float32 / float64 [tokens, neurons], unit stride along neurons; float64 only in the reference

Bin i of a neuron holds (i - bins / 2) 2^k <= x < (i - bins / 2 + 1) 2^k, and k is the smallest exponent, not below -126, for which all its values so far fit:
-2^k bins / 2 <= x < 2^k bins / 2. When a value does not fit, neighbours are joined pairwise (bins are anchored at 0, so that a wider bin is always the union of
two) and k grows by 1, until it does. So counts and exponents are exact, and the same whatever the order of the tokens, the batches or the parts that are merged
(`widen_` both to the larger exponent, then add). The largest |x| lies in the outer half of the bins: of 256, 64 or more are between 0 and it.

NaN and Inf are counted nowhere: the counts of a neuron sum to its finite values. Bins are never narrower than 2^-126, the smallest normal float32: what is
smaller lies in one of the two bins about 0, and zero in that which begins at 0. The largest exponent that a float64 can need is 1023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import FLOATING, Op, describe, require, require_device

LOWEST_EXPONENT, HIGHEST_EXPONENT = -126, 1023
MOST_BINS = 65_536


def check(counts: Tensor, exponent: Tensor, x: Tensor) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    op = "dyadic_histogram_"
    require(x.ndim == 2 and x.dtype in FLOATING, op, f"x must be floating [tokens, neurons], not {describe(x)}")
    neurons = x.shape[1]
    require(
        counts.dtype == torch.int64 and counts.ndim == 2 and counts.shape[0] == neurons and counts.is_contiguous(),
        op,
        f"counts must be contiguous int64 [{neurons}, bins], not {describe(counts)}",
    )
    bins = counts.shape[1]
    require(bins % 2 == 0 and 4 <= bins <= MOST_BINS, op, f"the bins must be even, 4 to 65,536, not {bins}")
    require(
        exponent.dtype == torch.int32 and list(exponent.shape) == [neurons] and exponent.is_contiguous(),
        op,
        f"exponent must be contiguous int32 [{neurons}], not {describe(exponent)}",
    )
    require_device(op, x.device, counts=counts, exponent=exponent)
    wrong = ((exponent < LOWEST_EXPONENT) | (exponent > HIGHEST_EXPONENT)).nonzero()
    if len(wrong):
        neuron = int(wrong[0])
        require(False, op, f"exponents must be within {LOWEST_EXPONENT} and {HIGHEST_EXPONENT}, not {int(exponent[neuron])} (neuron {neuron})")


def widen_(counts: Tensor, exponent: Tensor, to: Tensor) -> None:
    """Join bins pairwise until the exponents, int32 [neurons], are those of `to`, which are no smaller."""
    half = counts.shape[1] // 2
    by = (to - exponent).clamp(max=32).long()[:, None]
    i = torch.arange(-half, half, device=counts.device)[None, :]  # bin i begins at i 2^k
    joined = torch.zeros_like(counts).scatter_add_(1, (i >> by) + half, counts)
    counts.copy_(joined)
    exponent.copy_(to)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, to the bit, for -1023 to 1023: written into the bits of two factors, since torch.ldexp goes through pow."""
    part = exponent.long() >> 1
    return ((part + 1023) << 52).view(torch.float64) * ((exponent.long() - part + 1023) << 52).view(torch.float64)


def reference(counts: Tensor, exponent: Tensor, x: Tensor) -> None:
    """Widen to the extremes of a block of tokens, then one bincount over neuron * bins + bin."""
    neurons, bins = counts.shape
    first = torch.arange(neurons, device=x.device) * bins + bins // 2
    for block in x.split(1024) if x.numel() else ():
        finite = block.isfinite()
        v = block.double().where(finite, 0.0)
        widen_(counts, exponent, torch.maximum(exponent, fitting(v.amin(0), v.amax(0), bins // 2)))
        i = (v * power_of_two(-exponent)).trunc()  # [tokens, neurons]
        # Truncated, the quotient times 2^k is exact, and above x just where floor is one less: also where the quotient underflows to zero.
        index = first + i.long() - (v < i * power_of_two(exponent)).long()
        counts += torch.bincount(index[finite], minlength=neurons * bins).view(neurons, bins)


def fitting(low: Tensor, high: Tensor, half: int) -> Tensor:
    """The smallest exponents, int32, for which -half 2^k <= low and high < half 2^k."""
    h, f = torch.frexp(torch.tensor(float(half), dtype=torch.float64, device=low.device))  # half = h 2^f, 0.5 <= h < 1
    (m, e), (n, g) = torch.frexp(high.clamp(min=0)), torch.frexp(-low.clamp(max=0))
    above = torch.where(m == 0, LOWEST_EXPONENT, e - f + (m >= h).int())
    below = torch.where(n == 0, LOWEST_EXPONENT, g - f + (n > h).int())
    return torch.maximum(above, below).clamp(min=LOWEST_EXPONENT).int()


FASTER = {"cpu": "pyuniversal.ops._native:dyadic_histogram_", "triton": "pyuniversal.ops._triton.dyadic_histogram:dyadic_histogram_"}
dyadic_histogram_ = Op("dyadic_histogram_", check=check, reference=reference, faster=FASTER)
