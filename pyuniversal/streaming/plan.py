"""What a run will cost, before it starts: operations, memory, disk and time, from the shapes and from rates that are measured here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ..errors import InputError, NotEnoughMemoryError
from .afterwards import DRAWS, candidates_bytes, confirm_bytes, null_bytes, rotating_bytes, rotations_read, sampled, sums_bytes, visiting_bytes
from .confirmation import BATCHES, CANDIDATES, STEPS
from .layout import DTYPE_BYTES, Layout, Shapes, SourceShape, layouts, size
from .memory import available_bytes
from .rates import ROTATION, Rates, measure_rates

STORAGES = ("auto", "resident", "host", "disk", "sweeps")
SLACK = 1.03  # of memory: what allocators leave between
# Under a limit that was asked for: as far as a pass may be above its plan (tests/streaming/test_plan.py), so that it keeps the limit all the same.
LIMITED = 1.15
LATER = {"candidates": "candidates", "confirm": "confirmation"}  # stages, as they are told
HELD_OUT, NULL_SHARE = 9, 4  # the run's tokens for one that confirms, and for one of the null, as `stages` have them


@dataclass(frozen=True)
class Work:
    """Operations of a run; a multiplication and an addition are two. `elements`: activations of the correlated sites, once over the tokens.

    candidate_tokens: those that only the candidates are summed over. confirmed_tokens: of held-out documents, which run once more for the partners alone.
    null_tokens: those that run once more, re-paired, with `null_flops` in products.
    """

    tokens: int
    candidate_tokens: int
    confirmed_tokens: int
    null_tokens: int
    forward_flops: float
    product_flops: float
    null_flops: float
    baseline_flops: float
    rotation_flops: float
    weights_flops: float
    elements: float
    pairs: float  # numbers in the products of different models
    totals_bytes: float  # of all products
    read_bytes: float  # of products that memory does not hold, by the baseline
    neurons: float  # of all models
    choices: float  # neurons times the other models: so many partners are confirmed
    partners: float  # kept in the table of matches


@dataclass(frozen=True)
class Plan:
    """A run's predicted cost. Bytes are peaks beyond what the process holds already; seconds are estimates from rates measured here.

    Attributes:
        shapes, device, work: what will be done, and where.
        weights_bytes: of the models, where they are not in memory yet.
        table_bytes: what the table stage takes of the host's memory; the products are mapped from their files then.
        visiting_bytes: what it takes of a GPU, which the products visit; 0 on a CPU.
        later_bytes: what models that run again after the pass take: "candidates" (0 without --dense-tokens), "confirm", "nulls" (which go in parts where they
            do not fit at once, and are left out, 0, where those do not either).
        layout: where the products live during the pass.
        available_bytes: free memory of the device, or what `--memory` leaves of it.
        disk_available_bytes: free disk.
        lacks: where nothing fits, what each storage lacks.
        phases: estimated seconds of each part of the run, under the names that its manifest gives the measured ones; None where no rate was measured.
    """

    shapes: Shapes
    device: str
    work: Work
    weights_bytes: float
    table_bytes: float
    visiting_bytes: float
    later_bytes: dict[str, float]
    layout: Layout
    available_bytes: float
    disk_available_bytes: float
    lacks: tuple[tuple[str, str], ...]
    phases: dict[str, float] | None

    @property
    def seconds(self) -> float | None:
        """Estimate of the whole run."""
        return None if self.phases is None else sum(self.phases.values())

    @property
    def memory_bytes(self) -> float:
        """Predicted peak: the largest of the pass and the stages after it, and the models."""
        tables = self.table_bytes if self.device == "cpu" else self.visiting_bytes
        return self.weights_bytes + SLACK * max(self.layout.memory_bytes, *self.later_bytes.values(), tables)

    @property
    def fits(self) -> bool:
        """Whether memory and disk hold it."""
        return not self.lacks

    def as_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        layout = {k: v for k, v in asdict(self.layout).items() if k != "sweeps"}
        return {
            "sources": [asdict(s) | {"columns": s.columns} for s in self.shapes.sources],
            "device": self.device,
            "precision": self.shapes.precision,
            **asdict(self.work),
            "storage": self.layout.storage,
            "storage_words": self.layout.words,
            "sweeps": max(len(self.layout.sweeps), 1),
            "layout": layout,
            "weights_bytes": self.weights_bytes,
            "chunk_bytes": self.shapes.chunk_bytes(),
            **{f"{name}_bytes": needs for name, needs in self.later_bytes.items()},
            "table_bytes": self.table_bytes,
            "visiting_bytes": self.visiting_bytes,
            "memory_bytes": self.memory_bytes,
            "available_bytes": self.available_bytes,
            "disk_bytes": self.layout.disk_bytes,
            "disk_available_bytes": self.disk_available_bytes,
            "seconds": self.seconds,
            "phases": self.phases,
            "fits": self.fits,
        }

    def refuse(self) -> None:
        """Raise `NotEnoughMemoryError` with the numbers and cheaper ways, unless the run fits."""
        if self.fits:
            return
        needs = "; ".join(f"products {storage}: {lack}" for storage, lack in self.lacks)
        nothing = " --memory leaves nothing beyond what the process holds already." if self.available_bytes <= 0 else ""
        raise NotEnoughMemoryError(
            f"this run does not fit on {self.device}.{nothing} Its products take {size(self.shapes.totals_bytes)}, a chunk in work "
            f"{size(self.shapes.chunk_bytes())}, the models {size(self.weights_bytes)}, the tables {size(self.table_bytes)}, "
            f"what runs the models again {size(max(self.later_bytes.values()))}. "
            f"Needed with {needs}. Cheaper: {self._cheaper()}."
        )

    def _cheaper(self) -> str:
        """Three ways to a smaller run, each with the memory it needs at least."""
        shapes = self.shapes
        fewer = tuple(replace(s, layers=max(1, s.layers // 2)) for s in shapes.sources)
        short, shortest = (max(shapes.chunk_tokens // n, 512) for n in (4, 16))
        options = {
            f"a shorter chunk (--chunk-tokens {short})": replace(shapes, chunk_tokens=short),
            f"half of the layers (--layers 0-{fewer[0].layers - 1})": replace(shapes, sources=fewer),
        }
        if len(shapes.sources) > 2:
            options["two models at a time"] = replace(shapes, sources=tuple(sorted(shapes.sources, key=lambda s: s.columns)[-2:]))
        else:
            options[f"a very short one (--chunk-tokens {shortest})"] = replace(shapes, chunk_tokens=shortest)
        words = []
        for name, smaller in options.items():
            least = min(layout.memory_bytes for layout in layouts(smaller, memory=0, cuda=self.device != "cpu"))
            words.append(f"{name} needs {size(SLACK * least + self.weights_bytes)} of memory")
        return ", ".join(words)


def make_plan(
    sources: Sequence[SourceShape],
    *,
    tokens: int,
    dense_tokens: int | None = None,
    precision: str = "int8",
    site: str = "mlp.post",
    dtype: str = "float32",
    chunk_tokens: int = 16_384,
    batch_tokens: int = 2_048,
    baseline_draws: int = 5,
    top_k: int = 50,
    null_tokens: int = 1_000_000,
    device: str = "cpu",
    storage: str = "auto",
    memory: int | None = None,
    out: str | os.PathLike[str] = ".",
    disk_held: int = 0,
    loaded: bool = False,
    processes: int = 1,
    measure: bool = True,
) -> Plan:
    """Predict the cost of a run of `sources` over `tokens` tokens, and choose where its products live.

    Args:
        sources: shapes of the models.
        tokens: that go through every model.
        dense_tokens: of these, through the product of all neurons with all; the others are summed for the candidates alone. All where None.
        precision: of the products.
        site: that is correlated.
        dtype: of the models.
        chunk_tokens: of a chunk.
        batch_tokens: of a forward pass.
        baseline_draws: rotations.
        top_k: partners kept of every neuron.
        null_tokens: as of `pyuniversal.run`.
        device: where it runs.
        storage: "auto", or one that must be taken: "resident", "host", "disk", "sweeps".
        memory: bytes that the process may hold on the device in all (what it holds already included); all that is free where None.
        out: a path on the disk that will hold the run.
        disk_held: bytes of the disk that this run holds already.
        loaded: the models are in memory already.
        processes: that share the host's memory and disk, each with totals of its own.
        measure: measure rates (a second or two, and 64 MB in `out`, deleted again) for the estimate of the seconds; without, the choice goes by typical ones.

    Raises:
        InputError: an unknown storage, or one that this device does not have.
    """
    cuda = torch.device(device).type == "cuda"
    if storage not in STORAGES or (storage == "host" and not cuda):
        reason = "is the same as resident on a CPU" if storage in STORAGES else f"is none of {', '.join(STORAGES)}"
        raise InputError(f"--storage {storage} {reason}")
    shapes = Shapes(tuple(sources), precision, dtype, site, chunk_tokens, batch_tokens)
    dense = min(tokens, dense_tokens or tokens)
    weights = 0.0 if loaded else float(DTYPE_BYTES[dtype] * sum(s.parameters for s in sources))
    free = available_bytes(device, memory, processes=processes) - weights
    host, disk = (float(room) / processes for room in (psutil.virtual_memory().available, shutil.disk_usage(_existing(out)).free))
    rates = measure_rates(device, shapes, folder=_existing(out)) if measure else Rates()
    disk += disk_held
    slack = SLACK if memory is None else LIMITED
    room = {"memory": free / slack, "host": host, "disk": disk}
    work = work_of(shapes, dense, draws=baseline_draws, top_k=top_k, null_tokens=null_tokens, candidate_tokens=tokens - dense, room=room["memory"])
    found = [layout for layout in layouts(shapes, memory=free / slack, cuda=cuda) if storage in ("auto", layout.storage) or not shapes.product_keys()]
    lacks = {layout.storage: layout.lack(**room) for layout in found}
    chunks = max(1, dense // chunk_tokens)
    fitting = [layout for layout in found if lacks[layout.storage] is None]
    chosen = min(fitting or found[:1], key=lambda layout: rates.seconds(work, layout, chunks=chunks))
    later = {"candidates": candidates_bytes(shapes) if dense_tokens is not None else 0.0, "confirm": confirm_bytes(shapes)}
    table, visiting = _table_bytes(shapes, top_k=top_k, refined=dense_tokens is not None), 0.0
    rotating = rotating_bytes(shapes, draws=baseline_draws, room=room["memory"])
    if cuda:
        visiting = max(visiting_bytes(shapes, top_k=top_k), rotating)
    else:
        table += rotating
    needed = [(later[name], "memory", words) for name, words in LATER.items()] + [(visiting, "memory", "tables")]
    needed.append((table, "host" if cuda else "memory", "tables"))
    for needs, where, words in needed:
        if fitting and needs > room[where]:
            of = {"memory": device if cuda else "memory", "host": "the host's memory"}[where]
            fitting, lacks = [], {"anywhere": f"{size(needs)} of {of} for the {words} ({size(max(room[where], 0))} free)"}
    return Plan(
        shapes=shapes,
        device=device,
        work=work,
        weights_bytes=weights,
        table_bytes=table,
        visiting_bytes=visiting,
        later_bytes=later | {"nulls": null_bytes(shapes, room["memory"])},
        layout=chosen,
        available_bytes=free + weights,
        disk_available_bytes=disk,
        lacks=() if fitting else tuple((name, str(lack)) for name, lack in lacks.items()),
        phases=rates.phases(work, chosen, chunks=chunks) if measure else None,
    )


def work_of(shapes: Shapes, tokens: int, *, draws: int, top_k: int, null_tokens: int, room: float, candidate_tokens: int = 0) -> Work:
    """What a run of so many tokens, rotations, partners a neuron, re-paired tokens and tokens for the candidates alone does, `room` bytes being free."""
    columns = [s.columns for s in shapes.sources]
    ring = list(zip(shapes.sources, columns[1:] + columns[:1], strict=True)) if len(columns) > 1 else []
    again = min(null_tokens, tokens // NULL_SHARE) if ring else 0
    pairs = [(a, b) for n, a in enumerate(shapes.sources) for b in shapes.sources[n + 1 :]]
    cells = shapes.totals_bytes / shapes.cell_bytes
    return Work(
        tokens=tokens,
        candidate_tokens=candidate_tokens if ring else 0,
        confirmed_tokens=tokens // HELD_OUT if ring else 0,
        null_tokens=again,
        forward_flops=2.0 * tokens * sum(s.block_parameters for s in shapes.sources),
        product_flops=2.0 * tokens * cells,
        null_flops=2.0 * again * DRAWS * sum(chosen * other for chosen, (_, other) in zip(sampled(shapes), ring, strict=False)),
        baseline_flops=2.0 * draws * sum(a.columns * b.columns * (a.width + b.width) for a, b in pairs),
        rotation_flops=draws * sum(s.layers * ROTATION * s.width**3 for s in shapes.sources) if pairs else 0.0,
        weights_flops=2.0 * sum(s.columns * s.d_model * s.d_vocab for s in shapes.sources),  # cosines with the unembedding, in float64
        elements=float(tokens * sum(s.columns for s in shapes.sources)),
        pairs=float(sum(a.columns * b.columns for a, b in pairs)),
        totals_bytes=shapes.totals_bytes,
        read_bytes=rotations_read(shapes, draws=draws, room=room),
        neurons=float(sum(columns)),
        choices=float(sum(columns) * (len(columns) - 1)),
        partners=float(sum(a.columns * min(top_k, b.columns) + b.columns * min(top_k, a.columns) for a, b in pairs)),
    )


def _table_bytes(shapes: Shapes, *, top_k: int, refined: bool) -> float:
    """Of the tables: partners of all ordered pairs as tensors and as a table, sums of confirmation (and candidates); not the rotations at work."""
    sources = shapes.sources
    ordered = [(a, b) for a in sources for b in sources if a is not b]
    # Partners: 24 bytes in tensors, 34 in the table, and the table once more when its parts are joined; a few columns a neuron.
    partners = sum(a.columns * min(top_k, b.columns) * (24 + 2 * 34) for a, b in ordered) + 2_000 * sum(s.columns for s in sources)
    sums = sums_bytes(shapes, candidates=1, batches=BATCHES) + (sums_bytes(shapes, candidates=CANDIDATES, batches=STEPS) if refined else 0.0) if ordered else 0
    return float(partners + sums + STATE_OF_TABLE * sum(s.columns for s in sources))


STATE_OF_TABLE = 2 * 257 * 8  # histograms are read whole


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(p for p in (path, *path.parents) if p.exists())
