"""A folder of tokens on disk: what is in it, how it is checked, how it is read.

tokens.npy          uint16 or uint32 [rows, row_tokens]: BOS, then tokens of one document; right-padded with BOS
rows.parquet        document, start (index in its document of the row's first token after BOS), length (BOS included), all int32
documents.parquet   a row a document, in corpus order: subset, and whatever else is known
tokens.json         format, version, hash, tokenizer_hash, bos, newline, d_vocab, row_tokens, packing, rows, tokens, documents, source
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import FileError, InputError
from ..files import check_fields, read_json, reading
from .rows import PACKINGS, Ints, Layout

FORMAT, VERSION = "pyuniversal tokens", 1
MANIFEST, IDS, ROWS, DOCUMENTS, PARTIAL = "tokens.json", "tokens.npy", "rows.parquet", "documents.parquet", ".partial"
KEYS = ("hash", "tokenizer_hash", "bos", "newline", "d_vocab", "row_tokens", "packing", "rows", "tokens", "documents", "source")
KINDS = dict.fromkeys(("hash", "tokenizer_hash", "packing"), "text") | {"newline": "a whole number or null", "source": "an object"}
KINDS |= dict.fromkeys(("bos", "d_vocab", "row_tokens", "rows", "tokens", "documents"), "a whole number")
AGAIN = "tokenise the text again into another folder"
AT_ONCE = 16384  # rows that are looked at together where all are


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    r"""Rows of token ids, memory-mapped, in corpus order; made by `tokenize` or `load_tokens`.

    A row is [BOS] + tokens of one document. With packing "joined" it may run over into further documents; `documents` and `starts` then speak of its first
    token. An id equal to `bos` can occur inside a row where the text itself spells that special token.

    Attributes:
        path: the folder.
        hash: 64 hex digits over everything below that a result can depend on: ids of real tokens, lengths, documents, starts, tokenizer, row_tokens, packing.
        tokenizer_hash: see `tokenizer_hash`.
        row_tokens: the most tokens a row can have, BOS included.
        packing: "documents" or "joined".
        bos: id at the start of every row and in the padding.
        newline: id of the single token "\n"; None where the tokenizer has none.
        d_vocab: ids are below this.
        ids: uint16 or uint32 [rows, row_tokens], right-padded with `bos`.
        lengths: int32 [rows], real tokens, BOS included.
        documents: int32 [rows], which document the row is of.
        starts: int32 [rows], index in its document of the row's first token after BOS.
        document_table: DataFrame indexed by document: `subset` (str or None) and whatever else is known (source, licence). A document without tokens
            is in it and has no row.
        source: where the text came from, and the options it was tokenised with.
    """

    path: Path
    hash: str
    tokenizer_hash: str
    row_tokens: int
    packing: str
    bos: int
    newline: int | None
    d_vocab: int
    ids: NDArray[np.unsignedinteger]
    lengths: Ints
    documents: Ints
    starts: Ints
    document_table: pd.DataFrame
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, BOS of every row included."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def n_documents(self) -> int:
        """Number of documents, those without tokens included."""
        return len(self.document_table)

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"Tokens({str(self.path)!r}: {self.n_tokens:,} tokens in {self.n_rows:,} rows of {self.n_documents:,} documents, hash {self.hash[:12]})"

    def rows(self, index: ArrayLike | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows asked for, as a model takes them.

        Args:
            index: integers [n], booleans [rows] or a slice.

        Returns:
            ids, int64 [n, tokens of the longest of them], right-padded with `bos`; lengths, int64 [n].

        Raises:
            FileError: a row holds an id that the tokenizer does not have; names the row.
        """
        chosen = index if isinstance(index, list | slice) else np.asarray(index)  # numpy knows an empty list as an index, not as an array
        at = np.atleast_1d(np.arange(self.n_rows)[chosen])  # [n]
        lengths = self.lengths[at].astype(np.int64)
        ids = self.ids[:, : lengths.max(initial=0)][at].astype(np.int64)
        _check_ids(ids, at, self.d_vocab, self.path)
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def held_out(self, seed: int, fraction: float = 0.1) -> NDArray[np.bool_]:
        """Which documents are held out: bool [n_documents].

        A seeded hash (splitmix64) of the document's number alone decides, so that more text of the same corpus changes nothing about the documents before it.

        Raises:
            InputError: `fraction` is not in [0, 1].
        """
        if not 0 <= fraction <= 1:
            raise InputError(f"fraction is {fraction}; a share of the documents is between 0 and 1")
        key = _splitmix64(np.array([seed % 2**64], np.uint64))
        return (_splitmix64(_splitmix64(np.arange(self.n_documents, dtype=np.uint64)) ^ key) >> np.uint64(11)) * 2.0**-53 < fraction


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood 2014; arithmetic modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _check_ids(ids: NDArray, rows: NDArray, d_vocab: int, path: Path) -> None:
    if ids.size and ids.max() >= d_vocab:
        i, j = np.argwhere(ids >= d_vocab)[0]
        raise FileError(f"row {rows[i]} of {path / IDS} holds the id {ids[i, j]} at position {j}, but the tokenizer has {d_vocab} tokens; {AGAIN}")


def content_hash(ids: NDArray, rows: Layout, *, tokenizer_hash: str, row_tokens: int, packing: str) -> str:
    """Hash of what the tokens say: padding and the width of an integer on disk do not enter. 64 hex digits."""
    digest = hashlib.sha256(json.dumps([FORMAT, VERSION, tokenizer_hash, row_tokens, packing, len(rows.lengths)]).encode())
    for part in rows:
        digest.update(part.astype("<i4").tobytes())
    for first in range(0, len(rows.lengths), AT_ONCE):
        real = np.arange(row_tokens) < rows.lengths[first : first + AT_ONCE, None]  # [rows, row_tokens]
        digest.update(ids[first : first + AT_ONCE][real].astype("<u4").tobytes())
    return digest.hexdigest()


def load_tokens(path: str | os.PathLike[str], *, verify: bool = False) -> Tokens:
    """Open a folder of tokens; nothing of tokens.npy is read but its header.

    Args:
        path: the folder, as `tokenize` or `pyuniversal tokens` wrote it.
        verify: read all tokens and compare their hash with the manifest's.

    Raises:
        FileError: the folder is absent, unfinished, damaged or of another version; names the file.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        if (path / PARTIAL).is_dir():
            raise FileError(f"{path} holds an interrupted tokenisation; run the same tokenisation into it again, it goes on where it stopped")
        raise FileError(f"{path} is no folder of tokens: there is no {path / MANIFEST}. Make one with tokenize(..., out=...) or `pyuniversal tokens`")
    manifest = _read_manifest(path / MANIFEST)
    ids = _read_ids(path / IDS, (manifest["rows"], manifest["row_tokens"]))
    table = _read_documents(path / DOCUMENTS, manifest["documents"])
    rows = _read_rows(path / ROWS, manifest)
    options = {key: manifest[key] for key in ("hash", "tokenizer_hash", "row_tokens", "packing", "bos", "newline", "d_vocab", "source")}
    tokens = Tokens(path=path, ids=ids, **rows._asdict(), document_table=table, **options)
    if verify:
        _verify(tokens)
    return tokens


def _read_manifest(file: Path) -> dict[str, Any]:
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileError(f"{file} is not the manifest of a folder of tokens; {AGAIN}")
    if manifest.get("version") != VERSION:
        raise FileError(f"{file} is of version {manifest.get('version')}, this pyuniversal reads version {VERSION}; {AGAIN}")
    missing = [key for key in KEYS if key not in manifest]
    if missing or manifest["packing"] not in PACKINGS:
        raise FileError(f"{file} is damaged ({'no ' + ', '.join(missing) if missing else 'unknown packing'}); {AGAIN}")
    check_fields(manifest, KINDS, file)
    if manifest["row_tokens"] < 2 or not max(manifest["bos"], manifest["newline"] or 0) < manifest["d_vocab"] <= 2**32:
        raise FileError(f"{file} is damaged (bos and newline are no ids below d_vocab, or rows have no room for a token); {AGAIN}")
    return manifest


def _read_ids(file: Path, shape: tuple[int, int]) -> NDArray[np.unsignedinteger]:
    with reading(file, AGAIN):
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(ids, np.ndarray):  # an archive of arrays
        raise FileError(f"{file} is damaged (it holds no array); {AGAIN}")
    if ids.shape != shape or ids.dtype not in (np.dtype("<u2"), np.dtype("<u4")):
        raise FileError(f"{file} holds {ids.dtype} {list(ids.shape)}, its manifest says {list(shape)}; {AGAIN}")
    return ids


def _read_table(file: Path, what: str, count: int, columns: set[str]) -> pa.Table:
    """The whole table; its size and columns are looked at first, for a few bytes can say that there are billions of rows."""
    with reading(file, AGAIN), pq.ParquetFile(file) as parquet:
        rows, names = parquet.metadata.num_rows, parquet.schema_arrow.names
        if rows != count or columns - set(names) or len(set(names)) != len(names):
            needed = ", ".join(sorted(columns))
            raise FileError(f"{file} holds {rows} {what} {', '.join(names)}, its manifest says {count} with {needed}; {AGAIN}")
        table = parquet.read()
        table.validate(full=True)  # strings that are none, and lengths that lie
        if table.num_rows != count:
            raise FileError(f"{file} is damaged (it says {count} rows and holds {table.num_rows}); {AGAIN}")
    return table


def _read_documents(file: Path, count: int) -> pd.DataFrame:
    table = _read_table(file, "documents with", count, {"subset"})
    with reading(file, AGAIN):
        table = table.set_column(table.column_names.index("subset"), "subset", table["subset"].cast(pa.string()))
        # strings as Python objects, so that what is unknown is None in every version of pandas
        columns = zip(table.column_names, table.columns, strict=True)
        values = {name: pd.Series(c.to_pylist(), dtype=object) if pa.types.is_string(c.type) else c.to_pandas() for name, c in columns}
        return pd.DataFrame(values, index=pd.RangeIndex(count, name="document"))


def _read_rows(file: Path, manifest: dict[str, Any]) -> Layout:
    table = _read_table(file, "rows of", manifest["rows"], {"document", "start", "length"})
    with reading(file, AGAIN):
        if any(table[name].null_count for name in ("length", "document", "start")):
            raise FileError(f"{file} is damaged (a row without length, document or start); {AGAIN}")
        lengths, documents, starts = (table[name].cast(pa.int32()).to_numpy() for name in ("length", "document", "start"))
    sound = (lengths >= 2).all() and (lengths <= manifest["row_tokens"]).all() and (starts >= 0).all() and (np.diff(documents) >= 0).all()
    if not sound or documents.min(initial=0) < 0 or documents.max(initial=-1) >= manifest["documents"] or lengths.sum(dtype=np.int64) != manifest["tokens"]:
        raise FileError(f"{file} does not fit its manifest (lengths, documents or starts out of range, or {manifest['tokens']} tokens expected); {AGAIN}")
    return Layout(lengths, documents, starts)


def _verify(tokens: Tokens) -> None:
    for first in range(0, tokens.n_rows, AT_ONCE):
        block = tokens.ids[first : first + AT_ONCE]
        _check_ids(block, np.arange(first, first + len(block)), tokens.d_vocab, tokens.path)
        if (block[:, 0] != tokens.bos).any():
            raise FileError(f"row {first + int((block[:, 0] != tokens.bos).argmax())} of {tokens.path / IDS} does not begin with BOS ({tokens.bos}); {AGAIN}")
    rows = Layout(tokens.lengths, tokens.documents, tokens.starts)
    found = content_hash(tokens.ids, rows, tokenizer_hash=tokens.tokenizer_hash, row_tokens=tokens.row_tokens, packing=tokens.packing)
    if found != tokens.hash:
        raise FileError(f"{tokens.path} was changed after it was written: its tokens have the hash {found[:12]}, its manifest says {tokens.hash[:12]}; {AGAIN}")
