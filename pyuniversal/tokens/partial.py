"""An unfinished tokenisation: shards of tokenised documents, and a ledger that says what they hold and where the corpus goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import FileError
from ..files import atomic, read_json, write_json
from .documents import Document
from .folder import PARTIAL


def differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """What two recipes differ in, in words; "" where they ask for the same. How the text is called does not count, its identity is too long to show."""
    if asked["identity"] is None:
        return "an iterable cannot be compared with what is there"
    keys = [key for key in asked if key != "text" and there.get(key) != asked[key]]
    return ", ".join("content of the text" if key == "identity" else f"{key} {there.get(key)!r} there and {asked[key]!r} here" for key in keys)


class Partial:
    """The folder `out`/.partial. A shard counts from the moment that the ledger names it, so a kill at any point loses one block of documents at most.

    shards, documents: how many there are. content: tokens of all documents. pieces: rows they would fill, each document on its own. complete: no more to read.
    """

    def __init__(self, out: Path, recipe: dict[str, Any]) -> None:
        self.folder = out / PARTIAL
        self.recipe = recipe
        self.shards = self.documents = self.content = self.pieces = 0
        self.complete = False
        self.state: dict[str, Any] | None = None
        self.provenance: dict[str, Any] = {}
        if recipe["identity"] is None:
            self.remove()  # an iterator: nothing says that it would give the same text again
        elif (self.folder / "ledger.json").exists():
            self._resume(read_json(self.folder / "ledger.json"))

    def _resume(self, ledger: dict[str, Any]) -> None:
        there = ledger.pop("recipe", {})
        if different := differences(there, self.recipe):
            raise FileError(
                f"{self.folder} holds an interrupted tokenisation of {there.get('text')}, which is not what is asked for here, {self.recipe['text']} "
                f"(different: {different}). Delete that folder, or choose another out"
            )
        for key, value in ledger.items():
            setattr(self, key, value)

    def add(self, documents: list[Document], ids: NDArray, lengths: NDArray[np.int64], *, state: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Write a block of tokenised documents: ids of all of them in a row, and how many each has."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = {
            "ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "length": pa.array(lengths),
            "subset": pa.array([document.subset for document in documents], pa.string()),
            "source": pa.array([document.source for document in documents], pa.string()),
        }
        with atomic(self._shard(self.shards)) as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False, compression="zstd")
        self.shards += 1
        self.documents += len(documents)
        self.content += len(ids)
        self.pieces += int((-(-lengths // (self.recipe["row_tokens"] - 1))).sum())
        self.state, self.provenance = state, provenance
        self._write_ledger()

    def finish(self) -> None:
        """Note that the corpus has been read as far as it is wanted."""
        self.complete = True
        if self.shards:
            self._write_ledger()

    def _write_ledger(self) -> None:
        write_json(
            self.folder / "ledger.json",
            {key: getattr(self, key) for key in ("recipe", "shards", "documents", "content", "pieces", "complete", "state", "provenance")},
        )

    def _shard(self, i: int) -> Path:
        return self.folder / f"{i:06d}.parquet"

    def _read(self, i: int, *columns: str) -> pa.Table:
        try:
            return pq.read_table(self._shard(i), columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{self._shard(i)} is damaged ({error}); delete {self.folder} and tokenise again") from error

    def tables(self) -> Iterator[pa.Table]:
        """length, subset and source of the documents, a shard at a time."""
        return (self._read(i, "length", "subset", "source") for i in range(self.shards))

    def ids(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """The ids of all documents in a row, a shard at a time."""
        for i in range(self.shards):
            for chunk in self._read(i, "ids")["ids"].chunks:
                yield chunk.flatten().to_numpy()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
