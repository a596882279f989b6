"""`summarize_correlation` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import summarize_correlation as kernels
from .._op import Implementation
from ..summarize_correlation import HISTOGRAM_EDGES, Columns, Correlations, best, correlations, lines, rounding_stderr
from ._device import elsewhere


def _why_not(total: Tensor, tokens: int, x: Columns, y: Columns, *, top_k: int = 50) -> str | None:
    return elsewhere(total) or (None if total.numel() else "does not take a total without neurons")


def _run(total: Tensor, tokens: int, x: Columns, y: Columns, *, top_k: int = 50) -> tuple[Correlations, Correlations]:
    with torch.cuda.device_of(total):
        of_x, of_y = lines(total, tokens, x, y)
        rows, columns = kernels.summarize(total, tokens, of_x, of_y)
        return _kept(rows, total, tokens, (x, y), (of_x, of_y), top_k), _kept(columns, total.T, tokens, (y, x), (of_y, of_x), top_k)


def _kept(side: kernels.Side, total: Tensor, tokens: int, columns: tuple[Columns, Columns], sides: tuple[Tensor, Tensor], top_k: int) -> Correlations:
    """What is kept of the rows of total."""
    k = min(top_k, total.shape[1])
    if k <= kernels.MOST:
        values, index = kernels.best(side, total, tokens, *sides, k)
        found = values > -torch.inf
        values, index = values.where(found, torch.nan), index.where(found, -1)
        ends = [(values[0], index[0]), (-values[1], index[1])]
    else:
        ends = _many(total, tokens, columns, k)
    histogram = side.counts[:, : len(HISTOGRAM_EDGES) - 1].long()
    stderr = rounding_stderr(*ends[0], tokens, *columns)
    return Correlations(*ends[0], stderr, *ends[1], histogram, *_moments(side.sums, histogram.sum(1).double(), sides[0][2]))


def _many(total: Tensor, tokens: int, columns: tuple[Columns, Columns], k: int) -> list[tuple[Tensor, Tensor]]:
    """More partners than the kernel picks from: sorted by the library, some rows at a time."""
    parts = []
    for start in range(0, total.shape[0], 256):
        rows = slice(start, start + 256)
        r = correlations(total[rows], tokens, columns[0].some(rows), columns[1])
        parts.append([*best(r, ~torch.isnan(r), k, largest=True), *best(r, ~torch.isnan(r), k, largest=False)])
    top, top_index, bottom, bottom_index = (torch.cat(field) for field in zip(*parts, strict=True))
    return [(top, top_index), (bottom, bottom_index)]


def _moments(sums: Tensor, n: Tensor, pilot: Tensor) -> tuple[Tensor, ...]:
    """mean, var, skew, kurt from the sums [4, lines] of n powers about the pilot."""
    m, second, third, fourth = sums / n
    var = second - m**2
    skew = (third - 3 * m * second + 2 * m**3) / var**1.5
    return pilot + m, var, skew, (fourth - 4 * m * third + 6 * m**2 * second - 3 * m**4) / var**2


summarize_correlation = Implementation(run=_run, why_not=_why_not)
