"""The pass: everything up to the totals, and the manifest that says of what."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .. import results
from ..files import write_json
from ..neurons import weight_columns
from ..ops import backends
from ..sources import ModelSite
from ..streaming import make_plan
from ..streaming import observe as stream
from ..tokens import Tokens
from ..totals import Totals
from .inputs import Inputs, clock, shape_of

log = logging.getLogger(__name__)

VERSIONS = ("pyuniversal", "torch", "transformers", "transformer_lens", "datasets", "numpy", "pandas", "scipy")


def observe(inputs: Inputs, *, storage: str, memory: int | None, progress: bool, shard: tuple[int, int] | None = None) -> Totals:
    """Make the pass and leave its sums in the run's folder; `note` leaves the rest of it there."""
    sources, corpus, options = inputs.sources, inputs.corpus, inputs.options
    plan = make_plan(
        [shape_of(s.name, s.model.config, s.layers) for s in sources],
        tokens=min(corpus.n_tokens, inputs.dense_tokens or corpus.n_tokens),
        dense_tokens=options["dense_tokens"],
        storage=storage,
        memory=memory,
        out=inputs.folder,
        disk_held=_held(inputs.folder / "totals"),
        loaded=True,
        processes=inputs.ranks.neighbours,
        measure=False,
        **{name: options[name] for name in ("precision", "site", "dtype", "chunk_tokens", "batch_tokens", "device")},
    )
    plan.refuse()
    if len(sources) > 1:
        log.info("the products take %.2f GB: %s", plan.as_dict()["totals_bytes"] / 1e9, plan.layout.words)
    with clock(inputs.timings, "pass"):
        return stream(
            sources,
            corpus,
            out=inputs.folder / "totals",
            max_tokens=inputs.dense_tokens,
            storage="resident" if plan.layout.storage == "sweeps" else plan.layout.storage,
            sweeps=plan.layout.sweeps or None,
            shard=shard or (0, 1),
            ranks=inputs.ranks,
            progress=progress,
            **{name: options[name] for name in ("precision", "seed", "chunk_tokens", "batch_tokens", "device")},
        )


def note(inputs: Inputs, totals: Totals, *, shard: tuple[int, int] | None = None) -> None:
    """Leave the statistics of the weights and the manifest beside the sums: from here on the folder is of a run with these options."""
    sources, corpus = inputs.sources, inputs.corpus
    log.info("the pass is done: %s tokens correlated; statistics of the weights", f"{totals.tokens:,}")
    with clock(inputs.timings, "weights"):
        results.write_table(inputs.folder, "weights", _weights(sources, corpus.d_vocab))
    manifest = _manifest(sources, corpus, inputs.options)
    manifest["tokens"]["correlated"] = totals.tokens
    if shard is not None and not totals.complete:
        manifest["shard"] = list(shard)
    write_json(inputs.folder / "manifest.json", manifest | {"timings": inputs.timings})


def _held(folder: Path) -> int:
    """Bytes on the disk that a run which goes on needs not find free: its files, and the next ones in their place."""
    return 2 * sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.exists() else 0


def _weights(sources: Sequence[ModelSite], d_vocab: int) -> pd.DataFrame:
    """Statistics of the weights, of every model in both conventions: the vocabulary of the tokenizer, or (legacy) all columns of the unembedding."""
    parts = []
    for source in sources:
        with torch.inference_mode():
            weights = source.model.weights()
            corrected = weight_columns(weights, source.layers, d_vocab=d_vocab)
            padded = source.model.config.d_vocab > d_vocab  # where it is not, both conventions are one
            legacy = weight_columns(weights, source.layers) if padded else corrected
            for convention, columns in (("corrected", corrected), ("legacy", legacy)):
                parts.append(pd.concat([pd.DataFrame({"model": source.name, "convention": convention}, index=columns.index), columns], axis=1))
    return pd.concat(parts, ignore_index=True)


def _manifest(sources: Sequence[ModelSite], corpus: Tokens, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": _version("pyuniversal"),
        "versions": {name: _version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "backends": backends(options["device"], options["precision"]),
        "models": [{"label": s.name, "source": s.model.source, "weights": s.hash, "config": asdict(s.model.config)} for s in sources],
        "tokens": {"path": str(corpus.path), "hash": corpus.hash, "tokenizer": corpus.tokenizer_hash, "rows": corpus.n_rows, "count": corpus.n_tokens},
        "options": options,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
