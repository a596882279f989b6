"""How long runs take beside what their plans say, on five shapes: the plan first, as a user would ask for it, then the run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table

import pyuniversal
from pyuniversal import Model, pipeline, results, zoo

from .machine import identity
from .models import Shape, make_models
from .trial import Setting, WrongResultError, preferring

ALLOWED = 1.5  # times, either way
WIDE = Shape(layers=4, d_mlp=3072, d_model=768, heads=12, row_tokens=128)
QUICK = 4_000


def _cases(scratch: Path, device: str) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """What it is called, models, options."""
    five, two = list(zoo.models()), list(zoo.models()[:2])
    yield "five of the zoo, as by default", five, {"max_tokens": zoo.MAX_TOKENS}
    yield "two of the zoo, float32, 200,000 tokens", two, {"max_tokens": 200_000, "precision": "float32", "baseline_draws": 1}
    yield "five of the zoo, on disk", five, {"max_tokens": 60_000, "storage": "disk", "baseline_draws": 1}
    little: dict[str, Any] = {"storage": "sweeps", "room": 600_000_000 if device != "cpu" else 700_000_000, "batch_tokens": 2_048}
    yield "five of the zoo, in sweeps", five, {"max_tokens": 60_000, "baseline_draws": 1} | little
    yield "two of 4 layers of 3072", make_models(scratch / "wide", WIDE), {"max_tokens": 50_000}


def plan(setting: Setting) -> Iterator[dict[str, Any] | Table]:
    """A row for each shape, and all as a table."""
    table = Table(title="seconds of a run beside its plan" + (" (--quick: no measurement)" if setting.quick else ""))
    for heading in ("case", "planned", "measured", "times"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    table.add_column("phases: planned / measured")
    with tempfile.TemporaryDirectory(prefix="pyuniversal-bench-") as scratch, preferring(setting.backend):
        for n, (case, paths, options) in enumerate(_cases(Path(scratch), setting.device)):
            if setting.quick:
                paths, options = paths[:2], options | {"max_tokens": QUICK}
            row = _row(case, paths, options, Path(scratch) / str(n), setting)
            phases = ", ".join(f"{name} {planned:.1f} / {measured:.1f}" for name, (planned, measured) in row["phases"].items())
            table.add_row(row["case"], f"{row['planned_s']:.1f}", f"{row['measured_s']:.1f}", f"{row['ratio']:.2f}", phases)
            yield row
            shutil.rmtree(Path(scratch) / str(n))
    yield table


def _row(case: str, paths: list[Any], options: dict[str, Any], out: Path, setting: Setting) -> dict[str, Any]:
    models: list[Model] = [pyuniversal.load_model(path, device=setting.device) for path in paths]
    if "room" in options:  # bytes that the run may take beyond what is held
        cuda = setting.device != "cpu"
        held = torch.cuda.memory_allocated(setting.device) if cuda else psutil.Process().memory_info().rss
        options = {k: v for k, v in options.items() if k != "room"} | {"memory": held + options["room"]}
    planned = pipeline.plan(models, tokens=zoo.tokens(), out=out, device=setting.device, **options)
    if planned.phases is None or planned.seconds is None or not planned.fits:
        raise WrongResultError(f"plan ({case}): it does not fit here: {planned.lacks}")
    start = time.perf_counter()
    pyuniversal.run(models, tokens=zoo.tokens(), out=out, device=setting.device, progress=False, **options)
    seconds = time.perf_counter() - start
    measured = results.read_manifest(out)["timings"]
    return {
        "op": "plan",
        "case": case,
        "quick": setting.quick,
        "shape": {"models": len(models), "layers": models[0].config.n_layers, "d_mlp": models[0].config.d_mlp, "tokens": planned.work.tokens},
        "storage": planned.layout.storage,
        "sweeps": max(len(planned.layout.sweeps), 1),
        "planned_s": planned.seconds,
        "measured_s": seconds,
        "ratio": seconds / planned.seconds,
        "allowed": ALLOWED,
        "phases": {name: (value, measured.get(name, 0.0)) for name, value in planned.phases.items()},
        "counting": "the models are in memory; tokens, pass, tables, figures and files of a whole run; phases as in the run's manifest, planned and measured",
        **identity(setting.device),
    }
