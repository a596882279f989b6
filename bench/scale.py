"""Predicted, not measured: how long runs of other sizes would take on 1, 8 and 64 H100s, by the planner's own arithmetic at assumed rates."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from pyuniversal.streaming.layout import Shapes, SourceShape, layouts, size
from pyuniversal.streaming.plan import work_of
from pyuniversal.streaming.rates import Rates

from .trial import Setting

SEEDS = 5
MEMORY = 74e9  # bytes of a GPU that products and chunk may take
HOST = 1.8e12 / 8  # bytes of host memory for each GPU: eight share a machine
DISK = 20e12 / 8
REDUCE = 3e11  # bytes/s at which totals are summed over the GPUs of a machine; a tenth of it between machines
MODELS = {
    "GPT2-small": SourceShape("seed", 124_000_000, 85_000_000, layers=12, width=3072, d_model=768, d_vocab=50_257),
    "GPT2-medium": SourceShape("seed", 355_000_000, 302_000_000, layers=24, width=4096, d_model=1024, d_vocab=50_257),
    "Pythia-6.9B": SourceShape("seed", 6_900_000_000, 6_440_000_000, layers=32, width=16_384, d_model=4096, d_vocab=50_432),
}
ASSUMED = {
    "product": (1.2e15, "int8 products with their sums added into a float32 total; CUTLASS reports 1.32e15 to 1.36e15 without"),
    "forward": (3.0e14, "blocks in bf16, 300 Tflop/s of the 800 that large bf16 products reach"),
    "single": (5.0e13, "float32 products of the rotated baseline, operands not rounded"),
    "rotation": (5.0e12, "QR in float64"),
    "host": (1.0e12, "float64 products on the CPU, for statistics of the weights"),
    "element": (1.2e-11, "36 bytes an activation at 3 TB/s: gathered, moments, histogram, packed"),
    "repaired": (8e-12, "24 bytes an activation"),
    "confirmed": (8e-12, "gathered partners from L2"),
    "moved": (2e9, "bytes/s of the disk, hashed"),
}


def scale(setting: Setting) -> Iterator[Table]:
    """No rows, since nothing is measured; a table."""
    rates = Rates(**{name: value for name, (value, _) in ASSUMED.items()})
    table = Table(
        title=f"PREDICTED, nothing of it measured: {SEEDS} seeds, all pairs, int8, 5 rotations, tables included",
        caption="Assumed: " + "; ".join(f"{name} {value:.2g} ({words})" for name, (value, words) in ASSUMED.items()),
    )
    for heading in ("model", "tokens", "GPUs", "products", "how", "pass", "everything"):
        table.add_column(heading, justify="left" if heading in ("model", "how") else "right")
    for name, model in MODELS.items():
        for tokens in (100_000_000, 10_000_000_000):
            for gpus in (1, 8, 64):
                table.add_row(name, f"{tokens:.0e}", str(gpus), *_predicted(model, tokens, gpus, rates))
    yield table


def _predicted(model: SourceShape, tokens: int, gpus: int, rates: Rates) -> tuple[str, str, str, str]:
    """Bytes of the products, how the run is made, time of the pass and of everything. Each GPU takes its share of the tokens; the totals are added once.

    All seeds in one run with the usual chunk if that fits; else two at a time, in shorter ones.
    """
    work = chosen = None
    for together, chunk_tokens in ((SEEDS, 16_384), (SEEDS, 4096), (2, 16_384), (2, 4096), (2, 1024)):
        shapes = Shapes((model,) * together, "int8", "bfloat16", "mlp.post", chunk_tokens, min(chunk_tokens, 16_384))
        room = {"memory": MEMORY - 2 * model.parameters * together, "host": HOST, "disk": DISK}
        work = work_of(shapes, tokens // gpus, draws=5, top_k=50, null_tokens=1_000_000 // gpus, room=room["memory"])
        chunks = max(1, tokens // gpus // chunk_tokens)
        fitting = [layout for layout in layouts(shapes, memory=room["memory"], cuda=True) if layout.lack(**room) is None]
        if fitting:
            chosen = min(fitting, key=lambda layout: rates.seconds(work, layout, chunks=chunks))
            break
    if chosen is None or work is None:
        return "-", "does not fit", "-", "-"
    runs = 1 if together == SEEDS else SEEDS * (SEEDS - 1) // 2
    phases = rates.phases(work, chosen, chunks=chunks)
    added = 2 * shapes.totals_bytes / (REDUCE if gpus <= 8 else REDUCE / 10) if gpus > 1 else 0.0
    how = ("" if runs == 1 else f"{runs} runs of two, ") + f"chunks of {chunk_tokens:,}, products {chosen.words}"
    return size(shapes.totals_bytes), how, _words(runs * (phases["pass"] + added)), _words(runs * (sum(phases.values()) + added))


def _words(seconds: float) -> str:
    return f"{seconds / 86400:,.1f} d" if seconds > 2 * 86400 else f"{seconds / 3600:,.1f} h" if seconds > 3600 else f"{seconds / 60:,.1f} min"
