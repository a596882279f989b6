"""What the stages of a run do; their arguments, defaults and errors are told in `pipeline`."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import report, results, universality, zoo
from .errors import FileError, InputError
from .files import check_writable, read_json, write_json
from .models import Model, check_tokenizers, load_config, load_model
from .neurons import weight_columns
from .ops import PRECISIONS, backends
from .sources import ModelSite
from .streaming import Plan, SourceShape, make_plan
from .streaming import observe as stream
from .table import neuron_table, write_tables
from .tokens import Tokens, load_tokens, tokenize
from .totals import Totals

log = logging.getLogger(__name__)

OURS = ("manifest.json", "totals", "tokens", "tables", "figures", *(f"{t}.parquet" for t in (*results.TABLES, "weights")))
VERSIONS = ("pyuniversal", "torch", "transformers", "transformer_lens", "datasets", "numpy", "pandas", "scipy")
PLAN_TOKENS = 100_000_000
FEW_TOKENS = 10_000


def observe(
    models: Sequence[Any] | None,
    out: str | os.PathLike[str],
    *,
    source: Mapping[str, Any],
    max_tokens: int | None,
    row_tokens: int,
    layers: Sequence[int] | None,
    site: str,
    precision: str,
    seed: int,
    device: str,
    dtype: str,
    batch_tokens: int,
    chunk_tokens: int,
    trust_remote_code: bool,
    overwrite: bool,
    progress: bool,
) -> Totals:
    """Everything up to the totals, and the manifest that says of what."""
    folder = check_writable(out)
    _choice("precision", precision, PRECISIONS)
    device = _device(device)
    timings: dict[str, float] = {}
    if models is None and source["text"] is None and source["tokens"] is None and max_tokens is None:
        max_tokens = zoo.MAX_TOKENS
    with _clock(timings, "models"):
        loaded = _load(models, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        names = _unique([model.label for model in loaded])
        sources = [ModelSite(model, site=site, layers=layers, name=label) for model, label in zip(loaded, names, strict=True)]
    if overwrite:  # not before the models are there: a misspelt name must not cost a run
        _clear(folder, spare=[source["tokens"], source["text"]])
    with _clock(timings, "tokens"):
        corpus = _corpus(loaded, source, zoo_text=models is None, folder=folder / "tokens", max_tokens=max_tokens, row_tokens=row_tokens, progress=progress)
    make_plan(
        [_shape(s.name, s.model.config, s.layers) for s in sources],
        tokens=min(corpus.n_tokens, max_tokens or corpus.n_tokens),
        precision=precision,
        site=site,
        dtype=dtype,
        chunk_tokens=chunk_tokens,
        baseline_draws=1,
        top_k=1,
        device=device,
        loaded=True,
        measure=False,
    ).refuse()
    options = {k: _plain(v) for k, v in source.items()} | {
        "max_tokens": max_tokens,
        "row_tokens": row_tokens,
        "layers": None if layers is None else list(layers),
        "site": site,
        "precision": precision,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
        "chunk_tokens": chunk_tokens,
    }
    manifest = _manifest(sources, corpus, options)
    with _clock(timings, "pass"):
        totals = stream(
            sources,
            corpus,
            out=folder / "totals",
            precision=precision,
            max_tokens=max_tokens,
            seed=seed,
            chunk_tokens=chunk_tokens,
            batch_tokens=batch_tokens,
            device=device,
            progress=progress,
        )
    log.info("the pass is done: %s tokens correlated; statistics of the weights", f"{totals.tokens:,}")
    with _clock(timings, "weights"):
        results.write_table(folder, "weights", _weights(sources, corpus.d_vocab))
    manifest["tokens"]["correlated"] = totals.tokens
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    return totals


def table(out: str | os.PathLike[str], *, baseline: str, baseline_draws: int, top_k: int, seed: int, legacy: bool) -> results.Run:
    """Everything after the totals."""
    folder = Path(out)
    check_table(baseline=baseline, baseline_draws=baseline_draws, top_k=top_k)
    if not (folder / "manifest.json").exists():
        raise FileError(f"{folder} holds no complete pass (there is no manifest.json in it); `pyuniversal observe` makes one")
    manifest = read_json(folder / "manifest.json")
    totals = Totals.load(folder / "totals")
    if not totals.complete:
        raise FileError(f"the pass in {folder} is at chunk {len(totals.chunks)} of {totals.n_chunks}: repeat the command that started it")
    timings = {k: v for k, v in manifest.get("timings", {}).items() if k not in ("table", "figures")}
    # Until the end the run counts as unfinished: a kill must not leave tables of two kinds that look like one.
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    if totals.cross and totals.tokens < FEW_TOKENS:
        log.warning(
            "only %s tokens were correlated: with so few, neurons find partners by chance alone; do not read the table as a finding", f"{totals.tokens:,}"
        )
    log.info("partners, %d rotations of every layer, table", baseline_draws)
    with _clock(timings, "table"):
        matches = universality.matches(totals, top_k=top_k)
        weights = results.read_table(folder, "weights")
        kind = "legacy" if legacy else "corrected"
        by_model = {str(m): t.drop(columns=["model", "convention"]) for m, t in weights[weights["convention"] == kind].groupby("model", sort=False)}
        neurons = neuron_table(totals, matches, by_model, kind=baseline, draws=baseline_draws, seed=seed, legacy=legacy)
        depth = universality.depth(matches)
        for name, value in (("neurons", neurons.reset_index()), ("matches", matches), ("depth", depth)):
            results.write_table(folder, name, value)
        write_tables(neurons, folder / "tables")
    log.info("figures")
    with _clock(timings, "figures"):
        report.save_figures(neurons, matches, depth, folder / "figures")
    options = {"baseline": baseline, "baseline_draws": baseline_draws, "top_k": top_k, "baseline_seed": seed, "legacy": legacy}
    manifest["options"] |= options
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    return results.open_run(folder)


def plan(
    models: Sequence[Any] | None,
    *,
    tokens: str | os.PathLike[str] | None,
    max_tokens: int | None,
    layers: Sequence[int] | None,
    trust_remote_code: bool,
    device: str,
    **options: Any,
) -> Plan:
    """The plan of a run that has not been started."""
    names = list(models) if models is not None else [str(p) for p in zoo.models()]
    if models is None and tokens is None:
        tokens, max_tokens = zoo.tokens(), max_tokens or zoo.MAX_TOKENS
    count = PLAN_TOKENS if max_tokens is None else max_tokens
    if tokens is not None:
        held = load_tokens(tokens).n_tokens
        count = min(held, max_tokens or held)
    shapes = []
    for name in names:
        config = name.config if isinstance(name, Model) else load_config(name, trust_remote_code=trust_remote_code)
        shapes.append(_shape(str(name), config, range(config.n_layers) if layers is None else layers))
    return make_plan(shapes, tokens=count, device=_device(device), **options)


def check_table(*, baseline: str, baseline_draws: int, top_k: int) -> None:
    """Raise `InputError` for options of the table, before the hours that a pass can take."""
    _choice("baseline", baseline, universality.BASELINES)
    for name, value in (("baseline_draws", baseline_draws), ("top_k", top_k)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def _load(models: Sequence[Any] | None, **options: Any) -> list[Model]:
    given = list(zoo.models() if models is None else models)
    if not given:
        raise InputError("no model was given: name at least one, or leave models out for the embedded zoo")
    loaded = [m if isinstance(m, Model) else load_model(m, **options) for m in given]
    check_tokenizers(loaded)
    hashes = [m.weight_hash for m in loaded]
    for n, digest in enumerate(hashes):
        if digest in hashes[:n]:
            first = loaded[hashes.index(digest)]
            raise InputError(f"{first.source} and {loaded[n].source} have the same weights: every neuron would be its own partner; give each once")
    return loaded


def _unique(labels: Sequence[str]) -> list[str]:
    """The labels, those that stand twice with a number behind: a, a-2."""
    names: list[str] = []
    for label in labels:
        number, name = 1, label
        while name in names:
            number += 1
            name = f"{label}-{number}"
        names.append(name)
    return names


def _corpus(
    models: Sequence[Model], source: Mapping[str, Any], *, zoo_text: bool, folder: Path, max_tokens: int | None, row_tokens: int, progress: bool
) -> Tokens:
    """The tokens of the run, checked against every model."""
    text, tokens = source["text"], source["tokens"]
    options = {k: v for k, v in source.items() if k not in ("text", "tokens")}
    if text is not None and tokens is not None:
        raise InputError("both a text and a folder of tokens were given; give one of them")
    if tokens is not None:
        corpus = load_tokens(tokens)
    elif text is not None:
        longest = min([row_tokens, *(m.config.n_ctx for m in models)])
        corpus = tokenize(text, models[0].tokenizer, out=folder, row_tokens=longest, max_tokens=max_tokens, progress=progress, **options)
    elif zoo_text:
        corpus = load_tokens(zoo.tokens())
    else:
        raise InputError(
            "models were given but no text: give --text (a file, a folder, the name of a data set) or --tokens (a folder made by `pyuniversal tokens`)"
        )
    return corpus


def _weights(sources: Sequence[ModelSite], d_vocab: int) -> pd.DataFrame:
    """Statistics of the weights, of every model in both conventions: the vocabulary of the tokenizer, or (legacy) all columns of the unembedding."""
    parts = []
    for source in sources:
        with torch.inference_mode():
            weights = source.model.weights()
            for convention, limit in (("corrected", d_vocab), ("legacy", None)):
                columns = weight_columns(weights, source.layers, d_vocab=limit)
                columns.insert(0, "model", source.name)
                columns.insert(1, "convention", convention)
                parts.append(columns)
    return pd.concat(parts, ignore_index=True)


def _shape(name: str, config: Any, layers: Sequence[int]) -> SourceShape:
    """The blocks from the architecture: attention (all heads with keys of their own, an upper bound) and MLP."""
    attention = 4 * config.d_model * config.d_head * config.n_heads
    block = attention + (3 if config.gated else 2) * config.d_model * config.d_mlp
    return SourceShape(name, config.n_params, config.n_layers * block, len(layers), config.d_mlp)


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


def _plain(value: Any) -> Any:
    """An option as JSON can hold it: what is no name or path is told by its type."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value) if isinstance(value, os.PathLike) else type(value).__name__


def _device(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _clear(folder: Path, *, spare: Sequence[Any]) -> None:
    """Remove what a run writes, and nothing else, from a folder.

    Raises:
        InputError: one of `spare`, the new run's own input, lies in what would go.
    """
    for name in OURS:
        path = folder / name
        for kept in (Path(s).resolve() for s in spare if isinstance(s, str | os.PathLike)):
            if path.exists() and (kept == path.resolve() or path.resolve() in kept.parents):
                raise InputError(f"--overwrite would remove {path}, which this run is to read; choose another --out")
    for name in OURS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _clock(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)
