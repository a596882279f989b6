"""total += scale_x scale_y x y^T of packed operands: a persistent grid; operands, and a total that allows it, go through the tensor memory accelerator.

int8 operands are [neurons, tokens]: wgmma takes bytes along the sum alone, and those that lie across it would be transposed in registers, without a pipeline.
bf16 operands are [tokens, neurons], which it takes as they are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .described import described

# A program makes tiles of ROWS x COLUMNS of the total, TOKENS at a time (half as many of bf16: 128 bytes either way). Tiles follow each other down BAND of them
# and then across: so 132 programs read about as many rows of x as of y at a time, the fewest bytes.
# WIDE: the accumulator takes half of the registers, so it is added in two halves through shared memory, into which four stages would not fit.
# Triton waits for each step's wgmma of int8 before the next (only float32 sums stay in flight), so the steps are as long as shared memory allows.
WIDE = {"ROWS": 128, "COLUMNS": 256, "TOKENS": 128, "BAND": 16, "num_warps": 8, "num_stages": 3}
# Totals whose rows begin at odd places are added to by pointers, for which WIDE has not the registers.
ODD = WIDE | {"COLUMNS": 128}
# Of smaller totals less than half of the GPU would have a tile of WIDE.
SMALL = {"ROWS": 64, "COLUMNS": 128, "TOKENS": 128, "BAND": 16, "num_warps": 4, "num_stages": 3}
SMALL_TOTAL = 2**21


@triton.jit
def _add(total, stride, rows, columns, row, column, sums, DESCRIBED: tl.constexpr):
    """total[row:, column:] += sums, as far as there is a total."""
    if DESCRIBED:
        total.store([row, column], total.load([row, column]) + sums)
    else:
        i, j = row + tl.arange(0, sums.shape[0]), column + tl.arange(0, sums.shape[1])
        place = total + i.to(tl.int64)[:, None] * stride + j[None, :]
        inside = (i < rows)[:, None] & (j < columns)[None, :]
        tl.store(place, tl.load(place, mask=inside, other=0.0) + sums, mask=inside)


@triton.jit
def _add_half(total, stride, of_x, y_scale, rows, columns, row, column, sums, INT8: tl.constexpr, DESCRIBED: tl.constexpr, MIRROR: tl.constexpr):
    """One half of a tile, scaled; on the other side of the diagonal too where that is not computed."""
    if INT8:
        sums = sums.to(tl.float32) * of_x[:, None] * tl.load(y_scale + column + tl.arange(0, sums.shape[1]))[None, :]
    _add(total, stride, rows, columns, row, column, sums, DESCRIBED)
    if MIRROR:  # noqa: SIM102 - known when it is compiled, unlike what follows
        if column // MIRROR > row // MIRROR:
            _add(total, stride, rows, columns, column, row, tl.trans(sums), DESCRIBED)


@triton.jit
def _tile(
    x,
    y,
    total,
    stride,
    x_scale,
    y_scale,
    rows,
    columns,
    tokens,
    row,
    column,
    INT8: tl.constexpr,
    WIDEN: tl.constexpr,
    DESCRIBED: tl.constexpr,
    MIRROR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    sums = tl.zeros((ROWS, COLUMNS), tl.int32 if INT8 else tl.float32)
    for token in range(0, tokens, TOKENS):  # those beyond the last are read as 0
        if INT8:
            sums = tl.dot(x.load([row, token]), y.load([column, token]).T, sums, out_dtype=tl.int32)
        elif WIDEN:
            sums = tl.dot(x.load([token, row]).T.to(tl.float32), y.load([token, column]).to(tl.float32), sums)
        else:
            sums = tl.dot(x.load([token, row]).T, y.load([token, column]), sums)
    of_x = tl.load(x_scale + row + tl.arange(0, ROWS)) if INT8 else 0
    HALF: tl.constexpr = COLUMNS // 2
    left, right = tl.split(tl.permute(tl.reshape(sums, (ROWS, 2, HALF)), (0, 2, 1)))
    _add_half(total, stride, of_x, y_scale, rows, columns, row, column, left, INT8, DESCRIBED, MIRROR)
    _add_half(total, stride, of_x, y_scale, rows, columns, row, column + HALF, right, INT8, DESCRIBED, MIRROR)


@triton.jit
def _product(
    x,  # int8 [rows, tokens], bf16 [tokens, rows]
    y,  # int8 [columns, tokens], bf16 [tokens, columns]
    total,  # float32 [rows, columns]: a descriptor, or a pointer with the stride between rows
    stride,
    x_scale,  # float32 [rows], read for int8, with room for whole tiles
    y_scale,  # float32 [columns]
    rows,
    columns,
    tokens,
    INT8: tl.constexpr,
    WIDEN: tl.constexpr,  # interpreted: it would multiply the bits of bf16
    DESCRIBED: tl.constexpr,
    MIRROR: tl.constexpr,  # 0, or the side of squares of tiles of which those below the diagonal are copied from above it
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    BAND: tl.constexpr,
):
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        first = tile // (BAND * across) * BAND
        height = min(down - first, BAND)
        inside = tile % (BAND * across)
        row, column = (first + inside % height) * ROWS, inside // height * COLUMNS
        if MIRROR:
            if column // MIRROR >= row // MIRROR:
                _tile(x, y, total, stride, x_scale, y_scale, rows, columns, tokens, row, column, INT8, WIDEN, DESCRIBED, MIRROR, ROWS, COLUMNS, TOKENS)
        else:
            _tile(x, y, total, stride, x_scale, y_scale, rows, columns, tokens, row, column, INT8, WIDEN, DESCRIBED, MIRROR, ROWS, COLUMNS, TOKENS)


def configuration(rows: int, columns: int, *, int8: bool, total_described: bool) -> dict[str, int]:
    """The tiles for a total of this shape."""
    tiles = SMALL if rows * columns < SMALL_TOTAL else WIDE if total_described else ODD
    return tiles if int8 else tiles | {"TOKENS": tiles["TOKENS"] // 2}


def _whole(scale: Tensor, tile: int) -> Tensor:
    return F.pad(scale, (0, -len(scale) % tile))


def product(total: Tensor, x: Tensor, y: Tensor, x_scale: Tensor, y_scale: Tensor, *, tiles: dict[str, int] | None = None, programs: int | None = None) -> None:
    """total [rows, columns] float32 += products of x and y, int8 [neurons, tokens] with scales [neurons], or bf16 [tokens, neurons]; each `described`.

    The same operand twice is half of the work: a total of a source with itself is computed above its diagonal and copied below.
    """
    int8, (rows, columns) = x.dtype == torch.int8, total.shape
    tokens = x.shape[1 if int8 else 0]
    if not rows or not columns or not tokens:
        return
    through_descriptors = described(total)
    tiles = tiles or configuration(rows, columns, int8=int8, total_described=through_descriptors)
    height, width, depth = tiles["ROWS"], tiles["COLUMNS"], tiles["TOKENS"]
    x_block, y_block = ([height, depth], [width, depth]) if int8 else ([depth, height], [depth, width])
    target: Any = TensorDescriptor(total, list(total.shape), list(total.stride()), [height, width // 2]) if through_descriptors else total
    same = x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x_scale.data_ptr() == y_scale.data_ptr()
    if programs is None:
        programs = torch.cuda.get_device_properties(total.device).multi_processor_count if total.is_cuda else 4
    _product[(min(programs, triton.cdiv(rows, height) * triton.cdiv(columns, width)),)](
        TensorDescriptor(x, list(x.shape), list(x.stride()), x_block),
        TensorDescriptor(y, list(y.shape), list(y.stride()), y_block),
        target,
        total.stride(0),
        _whole(x_scale, height),
        _whole(y_scale, width),
        rows,
        columns,
        tokens,
        INT8=int8,
        WIDEN=not total.is_cuda,
        DESCRIBED=through_descriptors,
        MIRROR=max(height, width) if same and through_descriptors else 0,  # pointers would not have the registers
        enable_fp_fusion=True,  # one rounding less in what is added; said, since Triton 3.9 warns where it is not
        **tiles,
    )
