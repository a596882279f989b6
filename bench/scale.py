"""Predicted, not measured: how long runs of other sizes would take on 1, 8 and 64 H100s, by the planner's own arithmetic at assumed rates."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pyuniversal.streaming.layout import Layout, Shapes, SourceShape, layouts, size
from pyuniversal.streaming.plan import work_of
from pyuniversal.streaming.rates import Rates

from .trial import Setting

SEEDS = 5
MEMORY = 74e9  # bytes of a GPU that products and chunk may take
HOST = 1.8e12 / 8  # bytes of host memory for each GPU: eight share a machine
DISK = 20e12 / 8
REDUCE = 3e11  # bytes/s at which totals are summed over the GPUs of a machine; a tenth of it between machines
MODELS = {
    "GPT2-small": SourceShape("seed", 124_000_000, 85_000_000, layers=12, width=3072, d_model=768),
    "GPT2-medium": SourceShape("seed", 355_000_000, 302_000_000, layers=24, width=4096, d_model=1024),
    "Pythia-6.9B": SourceShape("seed", 6_900_000_000, 6_440_000_000, layers=32, width=16_384, d_model=4096),
}
ASSUMED = {
    "product": (1.2e15, "int8 products with their sums added into a float32 total; CUTLASS reports 1.32e15 to 1.36e15 without"),
    "forward": (3.0e14, "blocks in bf16, 300 Tflop/s of the 800 that large bf16 products reach"),
    "single": (5.0e13, "float32 products of the rotated baseline, operands not rounded"),
    "double": (5.0e12, "QR in float64"),
    "element": (1.2e-11, "36 bytes an activation at 3 TB/s: gathered, moments, histogram, packed"),
    "repaired": (8e-12, "24 bytes an activation"),
    "confirmed": (8e-12, "gathered partners from L2"),
    "moved": (2e9, "bytes/s of the disk, hashed"),
}


def scale(setting: Setting) -> tuple[list[dict[str, Any]], Table]:
    """No rows, since nothing is measured; a table."""
    rates = Rates(**{name: value for name, (value, _) in ASSUMED.items()})
    table = Table(
        title=f"PREDICTED, nothing of it measured: {SEEDS} seeds, all pairs, int8, 5 rotations, tables included",
        caption="Assumed: " + "; ".join(f"{name} {value:.2g} ({words})" for name, (value, words) in ASSUMED.items()),
    )
    for heading in ("model", "tokens", "GPUs", "products", "where they live", "pass", "everything"):
        table.add_column(heading, justify="left" if heading in ("model", "where they live") else "right")
    for name, model in MODELS.items():
        shapes = Shapes((model,) * SEEDS, "int8", "bfloat16", "mlp.post", 16_384, 16_384)
        for tokens in (100_000_000, 10_000_000_000):
            for gpus in (1, 8, 64):
                layout, passing, whole = _hours(shapes, tokens, gpus, rates)
                table.add_row(name, f"{tokens:.0e}", str(gpus), size(shapes.totals_bytes), layout.words, _words(passing), _words(whole))
    return [], table


def _hours(shapes: Shapes, tokens: int, gpus: int, rates: Rates) -> tuple[Layout, float, float]:
    """Where the products live on each GPU, and seconds of the pass and of the whole. Tokens are dealt out; the totals are summed once."""
    weights = 2 * max(s.parameters for s in shapes.sources) * SEEDS
    room = {"memory": MEMORY - weights, "host": HOST, "disk": DISK}
    work = work_of(shapes, tokens // gpus, draws=5, top_k=50, null_tokens=1_000_000 // gpus)
    chunks = max(1, tokens // gpus // shapes.chunk_tokens)
    fitting = [layout for layout in layouts(shapes, memory=room["memory"], cuda=True) if layout.lack(**room) is None]
    layout = min(fitting, key=lambda layout: rates.seconds(work, layout, chunks=chunks))
    phases = rates.phases(work, layout, chunks=chunks)
    speed = REDUCE if gpus <= 8 else REDUCE / 10
    passing = phases["pass"] + (2 * shapes.totals_bytes / speed if gpus > 1 else 0.0)
    return layout, passing, passing + sum(seconds for name, seconds in phases.items() if name != "pass")


def _words(seconds: float) -> str:
    return f"{seconds / 86400:,.1f} d" if seconds > 2 * 86400 else f"{seconds / 3600:,.1f} h" if seconds > 3600 else f"{seconds / 60:,.1f} min"
