"""Shards of one pass that were made apart, joined."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from .. import results
from ..errors import FileError, InputError
from ..files import atomic, check_writable, replace, write_json
from ..totals import Totals

log = logging.getLogger(__name__)


def merge(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Totals:
    """Write the sum of the folders' totals to `out`, with the manifest and the weights' statistics of the first."""
    paths, out = [Path(f) for f in folders], Path(out)
    if len(paths) < 2:
        raise InputError("merging takes two folders or more: those that `pyuniversal observe --shard` made")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty; choose another --out")
    for path in paths:
        for name in ("manifest.json", "weights.parquet"):
            if not (path / name).exists():
                raise FileError(f"{path} holds no pass that came to its end (there is no {name} in it); `pyuniversal observe --shard` makes one")
    parts = [Totals.load(path / "totals") for path in paths]
    for (a, left), (b, right) in combinations(zip(paths, parts, strict=True), 2):
        try:
            left.check_mergeable(right)
        except InputError as error:
            raise InputError(f"{a} and {b}: {error}") from error
    manifest = _manifest(paths, parts)
    check_writable(out.parent)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")  # a folder appears whole or not at all
    try:
        totals = _sum(parts, temporary / "totals")
        with atomic(temporary / "weights.parquet") as file:
            shutil.copyfile(paths[0] / "weights.parquet", file)
        manifest["tokens"]["correlated"] = totals.tokens
        write_json(temporary / "manifest.json", manifest)
        replace(temporary, out)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot write {out}: {error.strerror or error}. Choose another folder or free some space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("%d of %d chunks are there", len(totals.chunks), totals.n_chunks)
    return Totals.load(out / "totals")


def _sum(parts: Sequence[Totals], folder: Path) -> Totals:
    """All parts in one, a product at a time in memory."""
    totals = parts[0]
    totals.open(folder)  # what is added goes there; the files of the first part stay as they are
    for part in parts[1:]:
        totals.merge(part, settle=True)
    totals.save(folder, final=True)
    return totals


def _manifest(paths: Sequence[Path], parts: Sequence[Totals]) -> dict[str, Any]:
    """The first part's manifest, which says what was merged; `pass` is the time of all parts together."""
    manifests = [results.read_manifest(path) for path in paths]
    whole: dict[str, Any] = {k: v for k, v in manifests[0].items() if k != "shard"}
    whole["timings"] = {"pass": round(sum(m["timings"].get("pass", 0.0) for m in manifests), 3)}
    whole["parts"] = [
        {"path": str(path), "chunks": len(part.chunks), "tokens": part.tokens, "machine": m.get("machine"), "device": m["options"]["device"]}
        for path, part, m in zip(paths, parts, manifests, strict=True)
    ]
    return whole
