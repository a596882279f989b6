"""Writing a finished folder of tokens; see folder.py for what is in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..files import atomic, replace, write_json
from ..tokenizer_identity import tokenizer_hash
from .folder import DOCUMENTS, FORMAT, IDS, MANIFEST, ROWS, VERSION, content_hash
from .rows import Layout, pour


def id_dtype(tokenizer: Any) -> np.dtype:
    """The narrower of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if _d_vocab(tokenizer) <= 1 << 16 else "<u4")


def _d_vocab(tokenizer: Any) -> int:
    """len(tokenizer), or more where a vocabulary with gaps has larger ids."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def newline_id(tokenizer: Any) -> int | None:
    r"""The id of the single token "\n"; None where the tokenizer makes something else of it."""
    ids = tokenizer.encode("\n", add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.decode(ids) == "\n" else None


def write_folder(
    folder: Path,
    stream: Iterable[NDArray],
    rows: Layout,
    documents: pa.Table,
    *,
    tokenizer: Any,
    bos: int,
    row_tokens: int,
    packing: str,
    source: dict[str, Any],
    scratch: Path,
) -> None:
    """Write a folder of tokens; the manifest comes last and makes it one.

    Args:
        folder: where.
        stream: ids of the rows in order, without their BOS, in arrays of any length.
        rows: the layout.
        documents: the document table.
        tokenizer: whose ids these are.
        bos: id at the start of rows.
        row_tokens: width of tokens.npy.
        packing: its name.
        source: for the manifest.
        scratch: folder on the same disk for files that are not finished.
    """
    dtype = id_dtype(tokenizer)
    with atomic(scratch / IDS) as file, open(file, "wb") as out:  # written and not mapped: a full disk is an error then, not a crash
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(rows.lengths), row_tokens)}
        np.lib.format.write_array_header_1_0(out, header)
        for block in pour(stream, rows, row_tokens, bos, dtype):
            out.write(block.tobytes())
    with atomic(scratch / ROWS) as file:
        pq.write_table(pa.table({"document": rows.documents, "start": rows.starts, "length": rows.lengths}), file)
    with atomic(scratch / DOCUMENTS) as file:
        pq.write_table(documents, file)
    identity = tokenizer_hash(tokenizer)
    ids = np.load(scratch / IDS, mmap_mode="r", allow_pickle=False)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "hash": content_hash(ids, rows, tokenizer_hash=identity, row_tokens=row_tokens, packing=packing),
        "tokenizer_hash": identity,
        "bos": bos,
        "newline": newline_id(tokenizer),
        "d_vocab": _d_vocab(tokenizer),
        "row_tokens": row_tokens,
        "packing": packing,
        "rows": len(rows.lengths),
        "tokens": int(rows.lengths.sum(dtype=np.int64)),
        "documents": documents.num_rows,
        "source": source,
    }
    del ids  # Windows renames no file that is mapped
    for name in (IDS, ROWS, DOCUMENTS):
        replace(scratch / name, folder / name)
    write_json(folder / MANIFEST, manifest)
