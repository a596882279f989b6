"""A pass in a process of its own, its peak of anonymous memory beside what the plan says: `python memory.py CASE-AS-JSON` prints both in bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def measured(**case: Any) -> dict[str, float]:
    """Measure a case in a child process: models (count), layers, width, d_model, storage, chunk_tokens, tokens, memory (bytes of the products' room)."""
    run = subprocess.run([sys.executable, __file__, json.dumps(case)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


def anonymous(process: int | str = "self") -> int:
    """Bytes of a process that no file backs; 0 of one that has ended."""
    found = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(found[0].split()[1]) * 1024 if found else 0


class Sampler(threading.Thread):
    """Samples `anonymous` every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.peak = max(self.peak, anonymous())


def later(case: dict[str, Any]) -> dict[str, float]:
    """A stage after the pass: "candidates", "confirm" or "nulls", its sums alone, of partners and neurons drawn at random."""
    import tempfile

    import numpy as np
    import tiny
    import torch

    from pyuniversal import ModelSite, load_model, tokenize
    from pyuniversal.stages.inputs import shape_of
    from pyuniversal.streaming import afterwards, best_by_chance, confirm_pass, document_batches
    from pyuniversal.streaming.layout import Shapes

    with tempfile.TemporaryDirectory() as scratch:
        shape = {"n_layer": case["layers"], "n_inner": case["width"], "n_embd": 128, "n_positions": 256}
        sources = [ModelSite(load_model(tiny.gpt2(Path(scratch) / f"m{seed}", seed=seed, **shape))) for seed in range(case["models"])]
        corpus = tokenize(tiny.sentences(case["tokens"] // 24), sources[0].model.tokenizer, out=Path(scratch) / "tokens", row_tokens=64, progress=False)
        shapes = Shapes(tuple(shape_of(s.name, s.model.config, s.layers) for s in sources), "int8", "float32", "mlp.post", case["chunk_tokens"], 2048)
        columns, every = case["layers"] * case["width"], range(len(sources))
        generator = torch.Generator().manual_seed(0)
        centre, rows = [torch.zeros(columns) for _ in every], np.arange(corpus.n_rows)
        before, sampler = anonymous(), Sampler()
        sampler.start()
        if case["stage"] == "nulls":
            planned = afterwards.null_work(shapes) + afterwards.null_products(shapes, parts=case["parts"])
            chosen = [torch.randperm(columns, generator=generator)[: case["layers"] * 400] for _ in every]
            best_by_chance(sources, corpus, rows, chosen, centre, chunk_tokens=case["chunk_tokens"] // 2, parts=case["parts"], progress=False)
        else:
            planned = {"candidates": afterwards.candidates_bytes, "confirm": afterwards.confirm_bytes}[case["stage"]](shapes)
            candidates, batches = (16, 4) if case["stage"] == "candidates" else (1, 32)
            partners = {(i, j): torch.randint(columns, (columns, candidates), generator=generator) for i in every for j in every if i != j}
            dealt = document_batches(corpus, rows, seed=0, batches=batches)
            confirm_pass(sources, corpus, rows=rows, batch_of_row=dealt, partners=partners, centre=centre, out=Path(scratch) / "out", progress=False)
        sampler.stopped.set()
        sampler.join()
    return {"measured": sampler.peak - before, "planned": planned}


def main(case: dict[str, Any]) -> None:
    import tempfile

    import tiny

    if "stage" in case:
        sys.stdout.write(json.dumps(later(case)))
        return
    from pyuniversal import ModelSite, load_model, tokenize
    from pyuniversal import observe as stream
    from pyuniversal.stages.inputs import shape_of
    from pyuniversal.streaming import make_plan

    with tempfile.TemporaryDirectory(dir=case.get("scratch")) as scratch:
        shape = {"n_layer": case["layers"], "n_inner": case["width"], "n_embd": case["d_model"], "n_positions": 256}
        models = [load_model(tiny.gpt2(Path(scratch) / f"m{seed}", seed=seed, **shape)) for seed in range(case["models"])]
        text = tiny.sentences(case["tokens"] // 24)
        corpus = tokenize(text, models[0].tokenizer, out=Path(scratch) / "tokens", row_tokens=256, packing="joined", progress=False)
        sources = [ModelSite(model) for model in models]
        options = {"precision": case.get("precision", "int8"), "chunk_tokens": case["chunk_tokens"], "batch_tokens": case.get("batch_tokens", 2048)}
        plan = make_plan(
            [shape_of(s.name, s.model.config, s.layers) for s in sources],
            tokens=case["tokens"], storage=case["storage"], memory=case.get("memory"), out=scratch, loaded=True, measure=False, **options,
        )  # fmt: skip
        plan.refuse()
        sampler = Sampler()
        before = anonymous()
        sampler.start()
        start = time.perf_counter()
        storage = "resident" if plan.layout.storage == "sweeps" else plan.layout.storage
        stream(
            sources,
            corpus,
            out=Path(scratch) / "totals",
            max_tokens=case["tokens"],
            storage=storage,
            sweeps=plan.layout.sweeps or None,
            progress=False,
            **options,
        )
        seconds = time.perf_counter() - start
        sampler.stopped.set()
        sampler.join()
    numbers = {"measured": sampler.peak - before, "planned": plan.memory_bytes, "sweeps": len(plan.layout.sweeps), "seconds": seconds}
    sys.stdout.write(json.dumps(numbers | {"chunk": plan.shapes.chunk_bytes(), "totals": plan.shapes.totals_bytes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
