"""What a GPU does during a pass, and whether anybody waits: shares of its time by kernel, idle time, and the calls in which the host waits for it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import pyuniversal

from .machine import identity
from .run import GPT2_SMALL, TINY, make_study
from .trial import Setting, preferring

CHUNKS, CHUNK_TOKENS = 6, 16_384
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree", "cudaHostAlloc")
SHOWN = 14  # kernels


@dataclass(frozen=True)
class Span:
    """Something that happened: on the GPU a kernel or a copy, on the host a call; microseconds."""

    name: str
    start: float
    end: float
    on_gpu: bool


def loop(setting: Setting) -> Iterator[dict[str, Any] | Table]:
    """A row and a table of the pass of `pyuniversal.run` over two models at the shape of GPT2-small, everything compiled before.

    Raises:
        click.ClickException: there is no GPU.
    """
    if not setting.device.startswith("cuda"):
        raise click.ClickException("loop watches a GPU; on a CPU `profile` says where the time goes")
    shape, chunk_tokens = (TINY, 1_024) if setting.quick else (GPT2_SMALL, CHUNK_TOKENS)
    tokens = setting.tokens or CHUNKS * chunk_tokens
    with tempfile.TemporaryDirectory(prefix="pyuniversal-bench-") as scratch, preferring(setting.backend):
        study = make_study(Path(scratch), shape, tokens, setting.device)
        options: dict[str, Any] = {"chunk_tokens": chunk_tokens, "batch_tokens": chunk_tokens, "device": setting.device, "progress": False}
        pyuniversal.observe(study.models, study.corpus, max_tokens=2 * chunk_tokens, **options)
        torch.cuda.synchronize(setting.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            totals = pyuniversal.observe(study.models, study.corpus, max_tokens=tokens, **options)
            torch.cuda.synchronize(setting.device)
    kinds = {DeviceType.CUDA: True, DeviceType.CPU: False}
    spans = [Span(e.name, e.time_range.start, e.time_range.end, kinds[e.device_type]) for e in watched.events() if e.device_type in kinds]
    row = {
        "op": "loop",
        "case": f"{shape.layers} layers of {shape.d_mlp}, 2 models, {totals.n_chunks} chunks of {chunk_tokens} tokens",
        "quick": setting.quick,
        "shape": {"layers": shape.layers, "d_mlp": shape.d_mlp, "tokens": tokens, "chunks": totals.n_chunks},
        **summary(spans),
        "counting": "seconds from the first to the last kernel of a pass under torch's profiler, with its pilot. busy: share of them in which a kernel or a "
        "copy ran. kernels: seconds of each. waits: calls in which the host may wait for the GPU, and their seconds",
        **identity(setting.device),
    }
    yield row
    yield _table(row)


def summary(spans: Iterable[Span]) -> dict[str, Any]:
    """seconds, busy, kernels {name: seconds} and waits {name: {calls, seconds}} of what a profiler saw."""
    spans = list(spans)
    on_gpu = sorted((s for s in spans if s.on_gpu), key=lambda s: s.start)
    kernels: dict[str, float] = defaultdict(float)
    for span in on_gpu:
        kernels[span.name] += (span.end - span.start) / 1e6
    waits = {name: [s for s in spans if not s.on_gpu and s.name == name] for name in WAITS}
    whole = (max(s.end for s in on_gpu) - on_gpu[0].start) / 1e6 if on_gpu else 0.0
    return {
        "seconds": whole,
        "busy": _covered(on_gpu) / 1e6 / whole if whole else None,
        "kernels": dict(sorted(kernels.items(), key=lambda item: -item[1])[:SHOWN]),
        "waits": {name: {"calls": len(found), "seconds": sum(s.end - s.start for s in found) / 1e6} for name, found in waits.items() if found},
    }


def _covered(spans: Sequence[Span]) -> float:
    """Microseconds in which at least one of them ran; they come by their starts."""
    covered, reached = 0.0, float("-inf")
    for span in spans:
        covered += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return covered


def _table(row: dict[str, Any]) -> Table:
    waits = ", ".join(f"{name} {found['calls']} times, {found['seconds']:.3f} s" for name, found in row["waits"].items()) or "none"
    busy = "unknown" if row["busy"] is None else f"{row['busy']:.1%}"
    shown = Table(title=f"pass, {row['case']}: {row['seconds']:.2f} s, GPU busy {busy}", caption=f"the host waited in: {waits}")
    for heading in ("kernel", "seconds", "share"):
        shown.add_column(heading, justify="left" if heading == "kernel" else "right")
    for name, seconds in row["kernels"].items():
        shown.add_row(name[:90], f"{seconds:.3f}", f"{seconds / row['seconds']:.1%}")
    return shown
