"""Streaming moments of activations up to the fourth, with positives and extremes: one read of x for any number of nested token sets.

A program reduces a part of the tokens of WIDTH neurons about a rough mean, that of its first tokens, in float64: an H100 adds and multiplies half as many
float64 as float32 numbers, which is faster than memory brings them. A second kernel merges the parts in their order, by the pairwise formulas of Pebay, Sandia
report SAND2008-6212.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activated

# A thread holds the sums of four neighbouring neurons; loads of UNROLLED * ROWS tokens run two steps ahead, in shared memory.
PART = 2048
REDUCED = {"PART": PART, "ROWS": 8, "WIDTH": 64, "UNROLLED": 4, "STAGES": 3}
REDUCED_WARPS = 4
MERGED = {"PART": PART, "WIDTH": 128}
MERGED_WARPS = 4
FIELDS = 7  # of a part: mean, M2, M3, M4, positive, minimum, maximum; its count is known


@triton.jit
def _add(v, inside, centre, s1, s2, s3, s4, low, high, positive, MASKED: tl.constexpr):
    d = v.to(tl.float64) - centre
    if MASKED:
        d = tl.where(inside, d, 0.0)
        low = tl.minimum(low, tl.where(inside, v, float("inf")), propagate_nan=tl.PropagateNan.ALL)
        high = tl.maximum(high, tl.where(inside, v, float("-inf")), propagate_nan=tl.PropagateNan.ALL)
        positive += ((v > 0) & inside).to(tl.int32)
    else:
        low = tl.minimum(low, v, propagate_nan=tl.PropagateNan.ALL)
        high = tl.maximum(high, v, propagate_nan=tl.PropagateNan.ALL)
        positive += (v > 0).to(tl.int32)
    square = d * d
    return s1 + d, s2 + square, s3 + square * d, s4 + square * square, low, high, positive


@triton.jit(do_not_specialize=["start", "end"])
def _moments(
    parts,  # float64 [parts, 7, neurons]
    x,  # [tokens, neurons], rows `stride` apart
    start,
    end,
    neurons,
    stride,
    ACTIVATION: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLLED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The fields of each part of the tokens [start, end)."""
    neuron = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ROWS)
    part = tl.program_id(1)
    here = (neuron < neurons)[None, :]
    first = start + part * PART
    last = tl.minimum(first + PART, end)
    lane = x + row.to(tl.int64)[:, None] * stride + neuron[None, :]  # of the token 0

    inside = (first + row < last)[:, None] & here
    v = activated(tl.load(lane + tl.cast(first, tl.int64) * stride, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    rough = tl.sum(v.to(tl.float64), 0) / tl.minimum(ROWS, last - first).to(tl.float64)
    rough = rough.to(tl.float32).to(tl.float64)  # so that subtracting it is exact for most, and always where all are equal
    centre = rough[None, :]

    s1 = tl.zeros((ROWS, WIDTH), tl.float64)
    s2 = tl.zeros((ROWS, WIDTH), tl.float64)
    s3 = tl.zeros((ROWS, WIDTH), tl.float64)
    s4 = tl.zeros((ROWS, WIDTH), tl.float64)
    low = tl.full((ROWS, WIDTH), float("inf"), tl.float32)
    high = tl.full((ROWS, WIDTH), float("-inf"), tl.float32)
    positive = tl.zeros((ROWS, WIDTH), tl.int32)
    whole = first + (last - first) // (UNROLLED * ROWS) * (UNROLLED * ROWS)
    for token in tl.range(first, whole, UNROLLED * ROWS, num_stages=STAGES):
        for i in tl.static_range(UNROLLED):
            v = activated(tl.load(lane + tl.cast(token + i * ROWS, tl.int64) * stride, mask=here, other=0.0).to(tl.float32), ACTIVATION)
            s1, s2, s3, s4, low, high, positive = _add(v, here, centre, s1, s2, s3, s4, low, high, positive, MASKED=False)
    for token in range(whole, last, ROWS):
        inside = (token + row < last)[:, None] & here
        v = activated(tl.load(lane + tl.cast(token, tl.int64) * stride, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
        s1, s2, s3, s4, low, high, positive = _add(v, inside, centre, s1, s2, s3, s4, low, high, positive, MASKED=True)

    # Comparisons lose a NaN between threads.
    lost = tl.max((low != low).to(tl.int32), 0) > 0
    minimum = tl.where(lost, float("nan"), tl.min(low, 0)).to(tl.float64)
    maximum = tl.where(lost, float("nan"), tl.max(high, 0)).to(tl.float64)
    constant = minimum == maximum  # exactly 0, which rounding might miss
    n = (last - first).to(tl.float64)
    sum2, sum3 = tl.sum(s2, 0), tl.sum(s3, 0)
    shift = tl.sum(s1, 0) / n
    shift2 = shift * shift
    m2 = sum2 - n * shift2
    m3 = sum3 - 3 * shift * sum2 + 2 * n * shift2 * shift
    m4 = tl.sum(s4, 0) - 4 * shift * sum3 + 6 * shift2 * sum2 - 3 * n * shift2 * shift2
    field = parts + part.to(tl.int64) * 7 * neurons + neuron
    tl.store(field, rough + shift, mask=neuron < neurons)
    tl.store(field + neurons, tl.where(constant, 0.0, m2), mask=neuron < neurons)
    tl.store(field + 2 * neurons, tl.where(constant, 0.0, m3), mask=neuron < neurons)
    tl.store(field + 3 * neurons, tl.where(constant, 0.0, m4), mask=neuron < neurons)
    tl.store(field + 4 * neurons, tl.sum(positive, 0).to(tl.float64), mask=neuron < neurons)
    tl.store(field + 5 * neurons, minimum, mask=neuron < neurons)
    tl.store(field + 6 * neurons, maximum, mask=neuron < neurons)


@triton.jit
def _load_part(fields, neurons, here):
    mean = tl.load(fields, mask=here, other=0.0)
    m2 = tl.load(fields + neurons, mask=here, other=0.0)
    m3 = tl.load(fields + 2 * neurons, mask=here, other=0.0)
    m4 = tl.load(fields + 3 * neurons, mask=here, other=0.0)
    positive = tl.load(fields + 4 * neurons, mask=here, other=0.0)
    low = tl.load(fields + 5 * neurons, mask=here, other=0.0)
    high = tl.load(fields + 6 * neurons, mask=here, other=0.0)
    return mean, m2, m3, m4, positive, low, high


@triton.jit
def _merged(na, ma, a2, a3, a4, pa, la, ha, nb, mb, b2, b3, b4, pb, lb, hb):
    """Of two states, float64 [WIDTH] each field; b holds at least one token."""
    n = na + nb
    d = mb - ma
    fa, fb = na / n, nb / n
    between = d * d * na * fb  # M2 of the two means
    mean = tl.where(na == 0, mb, ma + d * fb)
    m2 = a2 + b2 + between
    m3 = a3 + b3 + between * d * (fa - fb) + 3 * d * (fa * b2 - fb * a2)
    m4 = a4 + b4 + between * d * d * (fa * fa - fa * fb + fb * fb) + 6 * d * d * (fa * fa * b2 + fb * fb * a2) + 4 * d * (fa * b3 - fb * a3)
    low = tl.minimum(la, lb, propagate_nan=tl.PropagateNan.ALL)
    high = tl.maximum(ha, hb, propagate_nan=tl.PropagateNan.ALL)
    constant = low == high
    return n, mean, tl.where(constant, 0.0, m2), tl.where(constant, 0.0, m3), tl.where(constant, 0.0, m4), pa + pb, low, high


@triton.jit(do_not_specialize=["tokens", "first_set", "sets"])
def _merge(
    state,  # float64 [sets, 8, neurons]
    parts,  # float64 [parts, 7, neurons]
    tokens,  # of all parts together
    first_set,
    sets,
    neurons,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Merge the parts, then what they are together into each set from first_set on."""
    neuron = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    here = neuron < neurons
    n = tl.zeros((WIDTH,), tl.float64) + tl.minimum(PART, tokens).to(tl.float64)
    mean, m2, m3, m4, positive, low, high = _load_part(parts + neuron, neurons, here)
    for part in range(1, tl.cdiv(tokens, PART)):
        count = tl.zeros((WIDTH,), tl.float64) + tl.minimum(PART, tokens - part * PART).to(tl.float64)
        mb, b2, b3, b4, pb, lb, hb = _load_part(parts + tl.cast(part, tl.int64) * 7 * neurons + neuron, neurons, here)
        n, mean, m2, m3, m4, positive, low, high = _merged(n, mean, m2, m3, m4, positive, low, high, count, mb, b2, b3, b4, pb, lb, hb)
    for s in range(first_set, sets):
        fields = state + tl.cast(s, tl.int64) * 8 * neurons + neuron
        na = tl.load(fields, mask=here, other=0.0)
        ma, a2, a3, a4, pa, la, ha = _load_part(fields + neurons, neurons, here)
        nt, mt, t2, t3, t4, pt, lt, ht = _merged(na, ma, a2, a3, a4, pa, la, ha, n, mean, m2, m3, m4, positive, low, high)
        tl.store(fields, nt, mask=here)
        tl.store(fields + neurons, mt, mask=here)
        tl.store(fields + 2 * neurons, t2, mask=here)
        tl.store(fields + 3 * neurons, t3, mask=here)
        tl.store(fields + 4 * neurons, t4, mask=here)
        tl.store(fields + 5 * neurons, pt, mask=here)
        tl.store(fields + 6 * neurons, lt, mask=here)
        tl.store(fields + 7 * neurons, ht, mask=here)


def moments_(state: Tensor, x: Tensor, ends: Sequence[int], activation: str) -> None:
    """Fold the tokens [0, ends[s]) of activation(x) into set s: state float64 [sets, 8, neurons], x [tokens, neurons]; activation "" is none."""
    neurons, start = x.shape[1], 0
    if not neurons:
        return
    longest = max(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    parts = torch.empty(triton.cdiv(longest, PART), FIELDS, neurons, dtype=torch.float64, device=x.device)
    for first_set, end in enumerate(ends):
        if end > start:
            grid = (triton.cdiv(neurons, REDUCED["WIDTH"]), triton.cdiv(end - start, PART))
            _moments[grid](parts, x, start, end, neurons, x.stride(0), ACTIVATION=activation, **REDUCED, num_warps=REDUCED_WARPS)
            merged = (triton.cdiv(neurons, MERGED["WIDTH"]),)
            _merge[merged](state, parts, end - start, first_set, len(ends), neurons, **MERGED, num_warps=MERGED_WARPS)
        start = end
