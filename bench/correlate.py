"""`pyuniversal.correlate` in int8, everything included, against what a competent user of torch would write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyuniversal
from pyuniversal.ops import backends
from pyuniversal.universality import Correlation

from .data import activations
from .trial import Contender, Setting, Trial, preferring, within

TOP_K = 50
SAMPLE = 256  # neurons of either side whose correlations are checked


@dataclass(frozen=True)
class Standardised:
    """What the opponent makes: r [x neurons, y neurons] and the best partners of either side, (values, indices) [neurons, TOP_K]."""

    r: Tensor
    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]


def trials(setting: Setting) -> Iterator[Trial]:
    yield _trial(setting, *((512, 512, 8192) if setting.quick else (8192, 8192, 65_536)))


def _trial(setting: Setting, rows: int, columns: int, tokens: int) -> Trial:
    x, y = (activations(tokens, neurons, seed=1 + source, device=setting.device) for source, neurons in enumerate((rows, columns)))
    truth = torch.corrcoef(torch.cat([x[:, :SAMPLE], y[:, :SAMPLE]], dim=1).double().T)[:SAMPLE, SAMPLE:]  # [SAMPLE, SAMPLE]

    def ours() -> Correlation:
        with preferring(setting.backend):
            return pyuniversal.correlate(x, y, precision="int8", top_k=TOP_K)

    def verify(_: str, result: Correlation | Standardised) -> dict[str, float]:
        r = result.full() if isinstance(result, Correlation) else result.r.double()
        best = result.r if isinstance(result, Correlation) else result.rows[0]  # [x neurons, TOP_K]
        partner = result.partner if isinstance(result, Correlation) else result.rows[1]
        error = r[:SAMPLE, :SAMPLE] - truth
        # The gate of int8: rounding may add 0.3 / sqrt(tokens) to r. `best` must be r at the partners, and the largest.
        gate = 0.3 / tokens**0.5 if isinstance(result, Correlation) else 1e-5
        found = (r.gather(1, partner) - best).abs().max(), (r.amax(1) - best[:, 0]).abs().max()
        return within({"rms": gate, "largest": 10 * gate, "partners": 2e-6}, rms=error.square().mean().sqrt(), largest=error.abs().max(), partners=max(found))

    with preferring(setting.backend):
        chosen = backends(setting.device, "int8")
    return Trial(
        op="correlate",
        case=f"int8 of float32 {rows} x {columns} x {tokens} tokens",
        shape={"rows": rows, "columns": columns, "tokens": tokens, "top_k": TOP_K},
        ours={setting.backend or "dispatch": Contender(ours, does="pyuniversal.correlate(x, y, precision='int8')")},
        opponents={
            "torch fp32": Contender(
                lambda: standardised(x, y),
                does="float32: mean and std of every column; 8,192 tokens at a time, standardise both sides, total.addmm_(a.T, b); r, topk of rows and columns",
            )
        },
        verify=verify,
        bytes=4 * tokens * (rows + columns) + 4 * rows * columns,
        operations=2 * rows * columns * tokens,
        counting="operations: 2 x rows x columns x tokens of the product, nothing else; bytes: x and y read once, the total written once",
        work=2 * rows * columns * tokens,
        unit="op/s",
        ceilings=("read", "int8"),
        repeats=3,
        notes={"precision": "int8", "backends": chosen},
    )


def standardised(x: Tensor, y: Tensor, *, chunk: int = 8192) -> Standardised:
    """r by float32 products of standardised chunks."""
    total = torch.zeros(x.shape[1], y.shape[1], device=x.device)
    moments = [(side.mean(0), side.std(0, correction=0)) for side in (x, y)]
    for start in range(0, x.shape[0], chunk):
        a, b = ((side[start : start + chunk] - mean) / std for side, (mean, std) in zip((x, y), moments, strict=True))  # [tokens, neurons]
        total.addmm_(a.T, b)
    total /= x.shape[0]
    found: list[Any] = [tuple(r.topk(min(TOP_K, r.shape[1]), dim=1)) for r in (total, total.T)]
    return Standardised(total, found[0], found[1])
