"""`summarize_correlation`: what is kept of a block's correlations, against the study's way to summarise them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyuniversal.ops import Columns, Correlations, correlations, summarize_correlation

from . import original
from .data import activations
from .trial import Contender, Setting, Trial, implementations, within

TOP_K = 50
TOKENS = 4096
ALLOWED = {"top": 5e-6, "partner": 5e-6, "bottom": 5e-6, "histogram": 1e-3, "mean": 1e-5, "var": 1e-4, "skew": 1e-3, "kurt": 1e-3, "stderr": 1e-4}


def trials(setting: Setting) -> Iterator[Trial]:
    rows, columns = (300, 200) if setting.quick else (4096, 4096)
    yield _trial(setting, rows, columns)


def _trial(setting: Setting, rows: int, columns: int) -> Trial:
    x, y = (activations(TOKENS, neurons, seed=1 + source, device=setting.device) for source, neurons in enumerate((rows, columns)))
    sides = [_side(side) for side in (x, y)]
    total = (x - 0.1).T @ (y - 0.1)  # [rows, columns]
    truth = summarize_correlation(total, TOKENS, *sides, top_k=TOP_K, backend="reference")
    r = correlations(total, TOKENS, *sides)
    everything = (r, r.T)

    def ours(backend: str) -> Any:
        return summarize_correlation(total, TOKENS, *sides, top_k=TOP_K, backend=backend)

    def verify(_: str, result: Any) -> dict[str, float]:
        found = [_errors(*three) for three in zip(result, truth, everything, strict=True)]
        return within(ALLOWED, **{name: torch.stack([errors[name] for errors in found]).max() for name in found[0]})

    return Trial(
        op="summarize_correlation",
        case=f"float32 {rows} x {columns}, top {TOP_K}",
        shape={"rows": rows, "columns": columns, "top_k": TOP_K},
        ours=implementations(summarize_correlation, setting, ours, total, TOKENS, *sides, top_k=TOP_K),
        opponents={
            "original": Contender(
                lambda: _original(total, sides),
                does="the study's summary in float32 torch, of r and of its transpose: topk, topk of -r, searchsorted and scatter_add_ into bins, mean, var, "
                "skew and kurt of every row, 1,024 rows at a time; r itself from the total and the moments; without standard errors",
            )
        },
        verify=verify,
        bytes=4 * rows * columns,
        counting="bytes: the float32 total read once, for rows and columns together; what is kept is not counted",
        work=rows * columns,
        unit="pairs/s",
        ceilings=("read",),
    )


def _side(x: Tensor) -> Columns:
    """Its exact moments; a centre of 0.1, and the noise of a rounding a hundredth of its variance."""
    mean = x.mean(0, dtype=torch.float64)
    m2 = sum(((block.double() - mean) ** 2).sum(0) for block in x.split(1024))
    assert isinstance(m2, Tensor)
    return Columns(m2, mean - 0.1, m2 / TOKENS / 100, 3 * (m2 / TOKENS) ** 2 / 100)


def _original(total: Tensor, sides: list[Columns]) -> tuple[original.Summary, original.Summary]:
    x, y = sides
    r = total - (TOKENS * x.shift).float()[:, None] * y.shift.float()
    r /= x.M2.sqrt().float()[:, None]
    r /= y.M2.sqrt().float()
    return original.summarise(r, top_k=TOP_K), original.summarise(r.T, top_k=TOP_K)


def _errors(got: Correlations | original.Summary, true: Correlations, r: Tensor) -> dict[str, Tensor]:
    """Largest errors; of the partners, how far their true r lie from the largest ones, since partners may differ where two r agree."""
    errors = {
        "top": (got.top - true.top).abs(),
        "partner": (r.gather(1, got.top_index) - true.top).abs(),
        "bottom": (got.bottom - true.bottom).abs(),
        "histogram": (got.histogram - true.histogram).abs().sum(1) / 2 / r.shape[1],
        "mean": (got.mean - true.mean).abs(),
        "var": (got.var / true.var - 1).abs(),
        "skew": (got.skew - true.skew).abs(),
        "kurt": (got.kurt / true.kurt - 1).abs(),
    }
    if isinstance(got, Correlations):
        errors["stderr"] = (got.top_stderr / true.top_stderr - 1).abs()
    return {name: error.double().max() for name, error in errors.items()}
