"""What is kept of the correlations of a block, for its rows and for its columns.

`_tiles` reads the total once. Of each tile it leaves power sums and counts of rows and of columns, and of each line the largest r and -r of every GROUP
neighbours (together half as many bytes as a float32 total). The k groups with the largest of these hold the k best: whatever lies in another group is beaten by
one of each of them. So `_choose` picks k groups of every line, and `_pick` computes their r anew and picks k of them: 4 % of the total at 36,864 neurons and
k = 50, for either end and side; of columns it reads a sector of 32 bytes for each.

Sums are added in a fixed order, counts are integers: the same bits each time, on any device.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 32
BINS, EIGHTS = 99, 13  # bins are counted eight at a time
MOST = 128  # partners that `best` can keep

# More than sixteen r a thread spill; of rows or columns longer than 255 the counts would run over.
TILE = {"ROWS": 32, "COLUMNS": 128, "GROUP": GROUP, "num_warps": 8, "num_stages": 1}
INTERPRETED = TILE | {"ROWS": 128}  # what takes time is the number of programs
MOST_STEPS = 8  # tiles below each other that a program takes
LISTS = {"num_warps": 8, "num_stages": 1}
LIST = 4096  # values that a program picks from

TOP_AND_BOTTOM = 2

# 2 / 99, the width of a bin, in two parts of which the first has 46 bits
STEP_HIGH = tl.constexpr(0.020202020202019888)
STEP_LOW = tl.constexpr(3.157196726277789e-16)


@dataclass(frozen=True)
class Side:
    """What is known of the rows, or columns, of a block.

    sums    float64 [4, lines]: of d, d^2, d^3, d^4, d = r - its pilot
    counts  int32 [lines, 104]: r in each of 99 bins
    groups  float64 [2, lines, groups]: largest r and largest -r of each group of partners, -inf where there is none
    """

    sums: Tensor
    counts: Tensor
    groups: Tensor


@triton.jit
def _correlation(total, tokens, x_scale, y_scale, x_shift, y_shift):
    """r by the operations of the reference, and so with its bits: nothing here may be contracted into an fma."""
    return (total.to(tl.float64) - tokens.to(tl.float64) * (x_shift * y_shift)) / (x_scale * y_scale)


@triton.jit
def _bins(r, valid):
    """The bin of r, 255 where it is NaN: 49.5 r + 49 rounded, in float32; where that comes within rounding errors (1e-5) of an edge, the edge decides."""
    u = tl.minimum(tl.maximum(tl.where(valid, r.to(tl.float32) * 49.5 + 49.0, 0.0), -0.25), 98.25)
    low, high = tl.floor(u + (0.5 - 2**-15)).to(tl.int32), tl.floor(u + (0.5 + 2**-15)).to(tl.int32)
    # The edges of torch.linspace(-1, 1, 100): fma(i, step, -1) up to the middle, of which all but the last addition is exact here, and from there the negative.
    # They are not read from a table: those loads want another layout, in which Triton 3.6 computes every r a second time.
    i = tl.minimum(high, 99 - high).to(tl.float64)
    edge = (i * tl.full((), STEP_HIGH, tl.float64) - 1.0) + i * tl.full((), STEP_LOW, tl.float64)
    above = (low != high) & (r > tl.where(high < 50, edge, -edge))
    return tl.where(valid, low + above.to(tl.int32), 255)


@triton.jit
def _count(counts, line, lines, eight, packed, EIGHTS: tl.constexpr):
    """counts[line, 8 eight + i] += byte i of packed [lines]."""
    i = tl.arange(0, 8)
    count = ((packed[:, None] >> (8 * i[None, :]).to(tl.int64)) & 255).to(tl.int32)
    place = line.to(tl.int64)[:, None] * (8 * EIGHTS) + (8 * eight + i)[None, :]
    tl.atomic_add(counts + place, count, mask=(line < lines)[:, None] & (count > 0), sem="relaxed")


@triton.jit
def _tiles(
    total,  # float32 or float64 [rows, columns]
    row_stride,
    column_stride,
    tokens,
    x,  # float64 [scale shift pilot, rows]; a scale of NaN for a neuron that has no r
    y,  # [scale shift pilot, columns]
    rows,
    columns,
    steps,
    x_sums,  # float64 [column blocks, 4, rows]
    x_counts,  # int32 [rows, 8 EIGHTS]: 0 before
    x_groups,  # float64 [2, rows, x_group_count]
    x_group_count,
    y_sums,  # [row blocks, 4, columns]
    y_counts,
    y_groups,
    y_group_count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    block = tl.program_id(0)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < columns
    y_group = block * (COLUMNS // GROUP) + tl.arange(0, COLUMNS // GROUP)
    sum_1 = tl.zeros((COLUMNS,), tl.float64)
    sum_2, sum_3, sum_4 = sum_1, sum_1, sum_1
    for step in range(steps):
        tile = tl.program_id(1) * steps + step
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        x_scale = tl.load(x + row, mask=is_row, other=float("nan"))[:, None]
        x_shift = tl.load(x + rows + row, mask=is_row, other=0.0)[:, None]
        x_pilot = tl.load(x + 2 * rows + row, mask=is_row, other=0.0)[:, None]
        # Read again for each tile: kept, they would take the registers that are missing.
        y_scale = tl.load(y + column, mask=is_column, other=float("nan"))[None, :]
        y_shift = tl.load(y + columns + column, mask=is_column, other=0.0)[None, :]
        place = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        r = _correlation(tl.load(total + place, mask=is_row[:, None] & is_column[None, :], other=0.0), tokens, x_scale, y_scale, x_shift, y_shift)
        valid = r == r

        # Counts of eight bins in the bytes of a word: added, they stay below 256. Most tiles have few of the bins. This comes first, since the loop keeps what
        # follows from being computed ahead, for which there are no registers.
        bin = _bins(r, valid)
        one = tl.full((ROWS, COLUMNS), 1, tl.int64) << (bin % 8 * 8).to(tl.int64)
        last = tl.max(tl.where(valid, bin, -1))
        for eight in range(tl.min(bin) // 8, (last + 8) // 8):
            ones = tl.where(bin // 8 == eight, one, 0)
            _count(x_counts, row, rows, eight, tl.sum(ones, 1), EIGHTS)
            _count(y_counts, column, columns, eight, tl.sum(ones, 0), EIGHTS)

        d = tl.where(valid, r - x_pilot, 0.0)
        square = d * d
        to = x_sums + block.to(tl.int64) * 4 * rows + row
        tl.store(to, tl.sum(d, 1), mask=is_row)
        tl.store(to + rows, tl.sum(square, 1), mask=is_row)
        tl.store(to + 2 * rows, tl.sum(square * d, 1), mask=is_row)
        tl.store(to + 3 * rows, tl.sum(square * square, 1), mask=is_row)
        d = tl.where(valid, r - tl.load(y + 2 * columns + column, mask=is_column, other=0.0)[None, :], 0.0)
        square = d * d
        sum_1 += tl.sum(d, 0)
        sum_2 += tl.sum(square, 0)
        sum_3 += tl.sum(square * d, 0)
        sum_4 += tl.sum(square * square, 0)

        x_group = tile * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
        for way in tl.static_range(2):
            v = tl.where(valid, r if way == 0 else -r, float("-inf"))
            x_place = (way * rows + row.to(tl.int64))[:, None] * x_group_count + y_group[None, :]
            best = tl.max(tl.reshape(v, (ROWS, COLUMNS // GROUP, GROUP)), 2)
            tl.store(x_groups + x_place, best, mask=is_row[:, None] & (y_group < x_group_count)[None, :])
            y_place = (way * columns + column.to(tl.int64))[None, :] * y_group_count + x_group[:, None]
            best = tl.max(tl.reshape(v, (ROWS // GROUP, GROUP, COLUMNS)), 1)
            tl.store(y_groups + y_place, best, mask=is_column[None, :] & (x_group < y_group_count)[:, None])
    to = y_sums + tl.program_id(1).to(tl.int64) * 4 * columns + column
    tl.store(to, sum_1, mask=is_column)
    tl.store(to + columns, sum_2, mask=is_column)
    tl.store(to + 2 * columns, sum_3, mask=is_column)
    tl.store(to + 3 * columns, sum_4, mask=is_column)


@triton.jit
def _among_best(value, k, LINES: tl.constexpr, LENGTH: tl.constexpr):
    """Which of value [LINES, LENGTH] are the k largest of their line, of equal ones the first; LENGTH is at least k, and nothing is NaN."""
    LOWEST: tl.constexpr = -(2**63)
    bits = (value + 0.0).to(tl.int64, bitcast=True)  # -0 becomes 0
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)  # in the order of the values
    # The k-th largest key, its highest bit first, as if it had no sign; or whatever is passed by k keys.
    cut = tl.zeros((LINES,), tl.int64)
    reached = tl.full((LINES,), LENGTH, tl.int32)
    bit = 63
    while (bit >= 0) & (tl.max(reached) > k):
        trial = cut | (tl.full((LINES,), 1, tl.int64) << bit)
        count = tl.sum((key >= (trial ^ LOWEST)[:, None]).to(tl.int32), 1)
        cut = tl.where(count >= k, trial, cut)
        reached = tl.where(count >= k, count, reached)
        bit -= 1
    cut = (cut ^ LOWEST)[:, None]
    above, equal = (key > cut).to(tl.int32), (key == cut).to(tl.int32)
    room = k - tl.sum(above, 1)
    return above + equal * (tl.cumsum(equal, 1) <= room[:, None]).to(tl.int32)


@triton.jit
def _choose(groups, chosen, lines, count, k, LINES: tl.constexpr, LENGTH: tl.constexpr):
    """The k groups of each line that hold its k best, in their order: groups float64 [lines, count] -> chosen int32 [lines, k]."""
    line, at = tl.program_id(0) * LINES + tl.arange(0, LINES), tl.arange(0, LENGTH)
    inside = (line < lines)[:, None] & (at < count)[None, :]
    value = tl.load(groups + line.to(tl.int64)[:, None] * count + at[None, :], mask=inside, other=float("-inf"))
    taken = _among_best(value, k, LINES, LENGTH)
    place = line.to(tl.int64)[:, None] * k + tl.cumsum(taken, 1) - 1
    tl.store(chosen + place, tl.broadcast_to(at[None, :], (LINES, LENGTH)), mask=inside & (taken > 0))


@triton.jit
def _pick(
    total,
    line_stride,
    partner_stride,
    tokens,
    mine,  # float64 [scale shift pilot, lines]
    theirs,  # float64 [scale shift pilot, partners]
    chosen,  # int32 [2, lines, count]
    best,  # float64 [2, lines, k]: the largest r and the largest -r, in the order of the partners; -inf where there is none
    index,  # int32 [2, lines, k]: of the partner
    lines,
    partners,
    count,
    k,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    LENGTH: tl.constexpr = GROUPS * GROUP
    item, at = tl.program_id(0) * LINES + tl.arange(0, LINES), tl.arange(0, LENGTH)
    is_bottom, line = (item >= lines)[:, None], (item % lines)[:, None]
    here = (item < 2 * lines)[:, None] & (at // GROUP < count)[None, :]
    partner = tl.load(chosen + item.to(tl.int64)[:, None] * count + (at // GROUP)[None, :], mask=here, other=0) * GROUP + (at % GROUP)[None, :]
    here = here & (partner < partners)
    value = tl.load(total + line.to(tl.int64) * line_stride + partner.to(tl.int64) * partner_stride, mask=here, other=0.0)
    y_scale, y_shift = tl.load(theirs + partner, mask=here, other=float("nan")), tl.load(theirs + partners + partner, mask=here, other=0.0)
    r = _correlation(value, tokens, tl.load(mine + line), y_scale, tl.load(mine + lines + line), y_shift)
    value = tl.where(r == r, tl.where(is_bottom, -r, r), float("-inf"))
    taken = _among_best(value, k, LINES, LENGTH)
    place = item.to(tl.int64)[:, None] * k + tl.cumsum(taken, 1) - 1
    put = (taken > 0) & (item < 2 * lines)[:, None]
    tl.store(best + place, value, mask=put)
    tl.store(index + place, partner, mask=put)


def summarize(total: Tensor, tokens: int, x: Tensor, y: Tensor, *, tile: dict[str, int] | None = None, steps: int | None = None) -> tuple[Side, Side]:
    """What is known of the rows and of the columns of total [n, m]; x [scale shift pilot, n] and y float64, a scale of NaN for a neuron that has no r.

    Takes a third of the memory of a float32 total meanwhile, a quarter (the groups) afterwards: 12.7 and 9.7 GB beside one of 98,304 x 98,304.
    """
    rows, columns = total.shape
    tile = tile or (TILE if total.is_cuda else INTERPRETED)
    across, tiles = triton.cdiv(columns, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"])
    steps = steps or max(1, min(MOST_STEPS, tiles * across // 1024))  # where there are many tiles; a thousand programs fill the GPU
    down = triton.cdiv(tiles, steps)
    sides = [
        Side(
            total.new_empty(parts, 4, lines, dtype=torch.float64),
            total.new_zeros(lines, 8 * EIGHTS, dtype=torch.int32),
            total.new_empty(TOP_AND_BOTTOM, lines, triton.cdiv(partners, GROUP), dtype=torch.float64),
        )
        for lines, partners, parts in ((rows, columns, across), (columns, rows, down))
    ]
    outputs = [argument for side in sides for argument in (side.sums, side.counts, side.groups, side.groups.shape[2])]
    sizes = (rows, columns, steps)
    _tiles[(across, down)](total, *total.stride(), tokens, x, y, *sizes, *outputs, EIGHTS=EIGHTS, enable_fp_fusion=False, **tile)
    first, second = (Side(side.sums.sum(0), side.counts, side.groups) for side in sides)
    return first, second


def best(side: Side, total: Tensor, tokens: int, mine: Tensor, theirs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest r and the k largest -r of each row of total, largest first, float64 [2, lines, k] (-inf where there are fewer), and whose they are.

    k is at most MOST and at most the partners. mine and theirs are the sides of total's rows and columns, as in `summarize`.
    """
    ways, lines, count = side.groups.shape
    groups = min(k, count)
    chosen = side.groups.new_empty(ways, lines, groups, dtype=torch.int32)
    values, index = side.groups.new_empty(ways, lines, k), side.groups.new_empty(ways, lines, k, dtype=torch.int32)
    room = LIST if total.is_cuda else 64 * LIST
    length, kept = triton.next_power_of_2(count), triton.next_power_of_2(groups)
    together = max(1, room // length)
    _choose[(triton.cdiv(ways * lines, together),)](
        side.groups, chosen, ways * lines, count, groups, LINES=together, LENGTH=length, enable_fp_fusion=False, **LISTS
    )
    together = max(1, room // (kept * GROUP))
    outputs = (chosen, values, index, lines, total.shape[1], groups, k)
    shape = {"LINES": together, "GROUPS": kept, "GROUP": GROUP}
    _pick[(triton.cdiv(ways * lines, together),)](total, *total.stride(), tokens, mine, theirs, *outputs, enable_fp_fusion=False, **shape, **LISTS)
    values, order = values.sort(dim=2, descending=True, stable=True)
    return values, index.gather(2, order).long()
