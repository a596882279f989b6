"""An unfinished tokenisation: shards of tokenised documents, and a ledger that says what they hold and where the corpus goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import FileError
from ..files import atomic, check_fields, read_json, reading, write_json
from .documents import Document
from .folder import PARTIAL

COLUMNS = {"length": pa.int64(), "subset": pa.string(), "source": pa.string()}
IDS = (pa.list_(pa.uint16()), pa.list_(pa.uint32()))
LEDGER = dict.fromkeys(("shards", "documents", "content", "pieces"), "a whole number") | {"complete": "true or false"}
LEDGER |= {"state": "an object or null", "provenance": "an object"}


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
        file = self.folder / "ledger.json"
        there = check_fields(ledger, LEDGER | {"recipe": "an object"}, file)["recipe"]
        if different := differences(there, self.recipe):
            raise FileError(
                f"{self.folder} holds an interrupted tokenisation of {there.get('text')}, which is not what is asked for here, {self.recipe['text']} "
                f"(different: {different}). Delete that folder, or choose another out"
            )
        state = ledger["state"] or {}
        check_fields(state, {"documents": "a whole number"} if state else {}, f"state of {file}")
        for key in LEDGER:  # and nothing else: the folder that `remove` deletes is not for a file to name
            setattr(self, key, ledger[key])

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
        with reading(self._shard(i), f"delete {self.folder} and tokenise again"):
            table = pq.read_table(self._shard(i), columns=list(columns))
            table.validate(full=True)
            for name in columns:
                kind = table.schema.field(name).type
                if (kind != COLUMNS[name] if name in COLUMNS else kind not in IDS) or (table[name].null_count and name not in ("subset", "source")):
                    raise ValueError(f"the column {name} is of {kind}, or has gaps")
        return table

    def tables(self) -> Iterator[pa.Table]:
        """length, subset and source of the documents, a shard at a time."""
        documents = content = 0
        for i in range(self.shards):
            table = self._read(i, "length", "subset", "source")
            lengths = table["length"].to_numpy()
            documents, content = documents + len(lengths), content + int(lengths.sum())
            if lengths.min(initial=0) < 0 or lengths.max(initial=0) > self.content or content > self.content or documents > self.documents:
                raise FileError(f"{self._shard(i)} is damaged (it holds more or fewer tokens than were read); delete {self.folder} and tokenise again")
            yield table

    def ids(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """The ids of all documents in a row, a shard at a time."""
        for i in range(self.shards):
            table = self._read(i, "ids", "length")
            if not pc.list_value_length(table["ids"]).cast(pa.int64()).equals(table["length"]):
                raise FileError(f"{self._shard(i)} is damaged (documents have not as many tokens as it says); delete {self.folder} and tokenise again")
            for chunk in table["ids"].chunks:
                yield chunk.flatten().to_numpy()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
