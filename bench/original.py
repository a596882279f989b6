"""The algorithm of Gurnee et al. 2024 (correlations_fast.py of their repository), in our own words, as the opponent of `run` and `summarize_correlation`.

As theirs: activations cast to float16 in the hook; sums and sums of squares of a batch in float16, those of rotated activations in float32; one float32 einsum
for every pair of layers, copied to the host and added to a float64 total there; the whole of it again, both forwards included, for the rotated baseline; r in
float16, its summary and that of its transpose in float32, on the GPU where there is one (a host takes a minute for what a GPU does in seconds).

Otherwise: the models are Hugging Face's without unembedding, which is faster than theirs; the summary goes block by block of rows, since the index tensors of
36,864^2 correlations at once do not fit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .models import Rows, post_activations, sizes

BATCH_ROWS = 24


@dataclass(frozen=True)
class Summary:
    """Of every row of r: the top_k largest and smallest and where they are, counts between the 100 edges from -1 to 1, moments (ddof 0, raw kurtosis)."""

    top: Tensor
    top_index: Tensor
    bottom: Tensor
    bottom_index: Tensor
    histogram: Tensor
    mean: Tensor
    var: Tensor
    skew: Tensor
    kurt: Tensor


@dataclass(frozen=True)
class Outcome:
    """What an opponent of `run` finds for the neurons of the first model: best r, whose it is, best r among the rotated neurons, all [neurons].

    seconds: "pass" and "rotated pass" grow with the tokens, "summary" and "rotated summary" do not.
    """

    best: Tensor
    partner: Tensor
    baseline: Tensor
    seconds: dict[str, float]

    def at(self, factor: float) -> tuple[float, float]:
        """Seconds for `factor` times the tokens: with the baseline and without it."""
        s = self.seconds
        plain, rotated = factor * s["pass"] + s["summary"], factor * s["rotated pass"] + s["rotated summary"]
        return plain + rotated, plain

    def passes(self, factor: float) -> tuple[float, float]:
        """Seconds of both passes for `factor` times the tokens, and of the first alone: what grows with the tokens."""
        return factor * (self.seconds["pass"] + self.seconds["rotated pass"]), factor * self.seconds["pass"]


def original(modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor]) -> Outcome:
    """Correlate all neurons of two models, then again with each layer of the second rotated: rotations, [d_mlp, d_mlp] a layer."""
    (ahead, _), first = _run(modules, rows, None)
    (chance, _), second = _run(modules, rows, [r.half().to(rows.ids.device) for r in rotations])
    seconds = {"pass": first[0], "summary": first[1], "rotated pass": second[0], "rotated summary": second[1]}
    return Outcome(ahead.top[:, 0], ahead.top_index[:, 0], chance.top[:, 0], seconds)


def _run(modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor] | None) -> tuple[tuple[Summary, Summary], tuple[float, float]]:
    """Summaries of r and of its transpose; seconds of the pass, and of what does not grow with the tokens."""
    device = rows.ids.device
    start = now(device)
    total = torch.empty(*sizes(modules[0]), *sizes(modules[1]), dtype=torch.float64).zero_()  # its pages are touched here, not in the pass
    before = now(device) - start
    if device.type == "cuda":  # its libraries are loaded, and its memory taken, before the clock runs
        _stream(total, modules, rows.first(BATCH_ROWS * rows.ids.shape[1]), rotations)
        total.zero_()
    clock = [now(device)]
    sums, n = _stream(total, modules, rows, rotations)
    clock.append(now(device))
    r = _correlations(total, sums, n)  # float16 [x neurons, y neurons]
    del total
    r = r.to(device)  # where a summary is quicker
    found = summarise(r, top_k=50), summarise(r.T, top_k=50)
    clock.append(now(device))
    streaming, after = (b - a for a, b in itertools.pairwise(clock))
    return found, (streaming, before + after)


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _stream(total: Tensor, modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor] | None) -> tuple[list[Tensor], int]:
    """Add all products x y to total, float64 [x layers, d_mlp, y layers, d_mlp] on the host; sums of x, x^2, y, y^2, float64 [layers, d_mlp]; tokens."""
    sums, n = [torch.zeros(1, dtype=torch.float64)] * 4, 0
    for ids, kept in rows.batches(BATCH_ROWS):
        x, y = (_activations(module, ids, kept) for module in modules)  # float16 [layers, d_mlp, tokens]
        if rotations is not None:
            y = _rotate(y, rotations)
        for i, a in enumerate(x):
            for j, b in enumerate(y):
                total[i, :, j] += torch.einsum("it,jt->ij", a.float(), b.float()).cpu()
        sums = [known + new.cpu().double() for known, new in zip(sums, (x.sum(-1), (x**2).sum(-1), y.sum(-1), (y**2).sum(-1)), strict=True)]
        n += len(kept)
    return sums, n


def _rotate(y: Tensor, rotations: Sequence[Tensor]) -> Tensor:
    """float32 [layers, d_mlp, tokens]."""
    rotated = torch.empty(y.shape, device=y.device)
    for layer, rotation in enumerate(rotations):
        torch.mm(rotation.float(), y[layer].float(), out=rotated[layer])
    return rotated


def _activations(module: Any, ids: Tensor, kept: Tensor) -> Tensor:
    layers = [layer.half().flatten(0, 1)[kept] for layer in post_activations(module, ids)]  # [tokens, d_mlp] each
    return torch.stack(layers).transpose(1, 2)


def _correlations(total: Tensor, sums: Sequence[Tensor], n: int) -> Tensor:
    """r in float16, [x neurons, y neurons]; a layer of x at a time."""
    sx, sxx, sy, syy = sums
    y_spread = (syy - sy**2 / n).flatten().sqrt()
    r = torch.empty(*total.shape[:2], len(y_spread), dtype=torch.float16)
    for i, block in enumerate(total):
        covariance = block.flatten(1) - sx[i][:, None] * sy.flatten() / n  # [d_mlp, y neurons]
        r[i] = covariance / (sxx[i] - sx[i] ** 2 / n).sqrt()[:, None] / y_spread
    return r.flatten(0, 1)


def summarise(r: Tensor, *, top_k: int) -> Summary:
    """The study's summary of the rows of r, in float32, 1,024 rows at a time."""
    k = min(top_k, r.shape[1])
    parts = [_summarise(block.float().contiguous(), k) for block in r.split(1024)]
    return Summary(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _summarise(r: Tensor, k: int) -> tuple[Tensor, ...]:
    top, top_index = r.topk(k, dim=1)
    bottom, bottom_index = (-r).topk(k, dim=1)
    edges = torch.linspace(-1, 1, 100, device=r.device)
    bins = torch.zeros(r.shape[0], 101, dtype=torch.int64, device=r.device)
    index = torch.searchsorted(edges, r)  # bin i is (edge i - 1, edge i]
    bins.scatter_add_(1, index, torch.ones((), dtype=torch.int64, device=r.device).expand_as(index))
    bins[:, 1] += bins[:, 0]  # theirs are 101 bins; what lies outside goes to the outermost of 99, as ours does
    bins[:, 99] += bins[:, 100]
    mean = r.mean(1)
    d = r - mean[:, None]
    var = (d**2).mean(1)
    return top, top_index, -bottom, bottom_index, bins[:, 1:100], mean, var, (d**3).mean(1) / var**1.5, (d**4).mean(1) / var**2
