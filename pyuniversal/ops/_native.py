"""Implementations in the compiled extension, for tensors in host memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from ._op import Implementation
from .logit_stats import LogitStats, statistics
from .quantize import Packed, empty_panels, in_panels, packed_int8, scales, unpack
from .summarize_correlation import HISTOGRAM_EDGES, Columns, Correlations, lines, rounding_stderr


def _why_not(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"does not take {x.device.type} tensors"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"does not take {str(x.dtype).removeprefix('torch.')}"
    if x.stride(1) != 1:
        return "needs neighbouring columns (unit stride)"
    return None


def _moments(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    _C.moments_(state, x, list(ends), torch.get_num_threads(), activation or "")


def _histogram(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    _C.histogram_(counts, x, edges, torch.get_num_threads())


def _dyadic_histogram(counts: Tensor, exponent: Tensor, x: Tensor) -> None:
    _C.dyadic_histogram_(counts, exponent, x, torch.get_num_threads())


def _token_sums(sums: Tensor, counts: Tensor, x: Tensor, ids: Tensor) -> None:
    _C.token_sums_(sums, counts, x, ids.contiguous(), torch.get_num_threads())


def _logit_stats(logits: Tensor, next_id: Tensor) -> LogitStats:
    sums, greater = torch.empty(4, len(logits), dtype=torch.float64), torch.empty(len(logits), dtype=torch.int64)
    _C.logit_stats(sums, greater, logits, next_id.contiguous(), torch.get_num_threads())
    return statistics(sums, greater, next_id)


def _why_not_pair_sums(sums: Tensor, x: Tensor, y: Tensor, *_: Tensor) -> str | None:
    return _why_not(x) or _why_not(y)


def _pair_sums(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> None:
    _C.pair_sums_(sums, x, y, centre_x.contiguous(), centre_y.contiguous(), partner, torch.get_num_threads())


def _why_not_quantize(x: Tensor, *_: Tensor, precision: str) -> str | None:
    return _why_not(x) if precision == "int8" else f"does not pack {precision}"


def _quantize(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> Packed:
    tokens, neurons = x.shape
    scale, inverse = scales(absmax)
    data = empty_panels(neurons, tokens)
    rounding = torch.empty(2, neurons, dtype=torch.float64)
    _C.quantize(data, rounding, x, centre.contiguous(), inverse, token_key.contiguous(), neuron_key.contiguous(), torch.get_num_threads())
    return packed_int8(data, scale, centre, rounding, "panels", neurons, tokens)


def _why_not_product(total: Tensor, x: Packed, y: Packed) -> str | None:
    if total.device.type != "cpu":
        return f"does not take {total.device.type} tensors"
    return None


def _product(total: Tensor, x: Packed, y: Packed) -> None:
    if x.precision != "int8":
        # The library's products; bf16 operands are widened, since a bf16 matmul would round the sums to eight bits.
        total.addmm_(unpack(x).to(total.dtype).T, unpack(y).to(total.dtype))
        return
    left, right = in_panels(x), in_panels(y)
    _C.product_(total, left.data, right.data, left.scale.contiguous(), right.scale.contiguous(), torch.get_num_threads())


def _why_not_summary(total: Tensor, tokens: int, x: Columns, y: Columns, *, top_k: int = 50) -> str | None:
    if total.device.type != "cpu":
        return f"does not take {total.device.type} tensors"
    if total.shape[1] > 1 and total.stride(1) != 1:
        return "needs a total with neighbouring columns"
    return None


def _summarize_correlation(total: Tensor, tokens: int, x: Columns, y: Columns, *, top_k: int = 50) -> tuple[Correlations, Correlations]:
    n, m = total.shape
    rows, columns = _Summary(n, min(top_k, m)), _Summary(m, min(top_k, n))
    x_line, y_line = lines(total, tokens, x, y)
    _C.summarize_correlation(
        total,
        tokens,
        x_line,
        y_line,
        HISTOGRAM_EDGES,
        rows.best,
        rows.index,
        rows.histogram,
        rows.moments,
        columns.best,
        columns.index,
        columns.histogram,
        columns.moments,
        torch.get_num_threads(),
    )
    return rows.correlations(tokens, x, y), columns.correlations(tokens, y, x)


class _Summary:
    """What the kernel fills in for one side."""

    def __init__(self, neurons: int, k: int) -> None:
        self.best = torch.empty(2, neurons, k, dtype=torch.float64)
        self.index = torch.empty(2, neurons, k, dtype=torch.int64)
        self.histogram = torch.empty(neurons, len(HISTOGRAM_EDGES) - 1, dtype=torch.int64)
        self.moments = torch.empty(4, neurons, dtype=torch.float64)

    def correlations(self, tokens: int, mine: Columns, theirs: Columns) -> Correlations:
        (top, bottom), (top_index, bottom_index) = self.best, self.index
        stderr = rounding_stderr(top, top_index, tokens, mine, theirs)
        return Correlations(top, top_index, stderr, bottom, bottom_index, self.histogram, *self.moments)


quantize = Implementation(run=_quantize, why_not=_why_not_quantize)
moments_ = Implementation(run=_moments, why_not=lambda state, x, ends, **_: _why_not(x))
histogram_ = Implementation(run=_histogram, why_not=lambda counts, x, edges: _why_not(x))
dyadic_histogram_ = Implementation(run=_dyadic_histogram, why_not=lambda counts, exponent, x: _why_not(x))
token_sums_ = Implementation(run=_token_sums, why_not=lambda sums, counts, x, ids: _why_not(x))
logit_stats = Implementation(run=_logit_stats, why_not=lambda logits, next_id: _why_not(logits))
pair_sums_ = Implementation(run=_pair_sums, why_not=_why_not_pair_sums)
product_ = Implementation(run=_product, why_not=_why_not_product)
summarize_correlation = Implementation(run=_summarize_correlation, why_not=_why_not_summary)
