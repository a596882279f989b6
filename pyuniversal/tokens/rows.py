"""How documents become rows: pure arithmetic on lengths, and one routine that pours a stream of ids into rows.

In both packings the tokens of the rows, read in order and without each row's BOS, are the tokens of the documents in order. So a packing is no more than the
lengths of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKINGS = ("documents", "joined")
Ints = NDArray[np.int32]


class Layout(NamedTuple):
    """lengths: tokens of each row, BOS included; documents: of each row's first token after BOS; starts: that token's index in its document. All [rows]."""

    lengths: Ints
    documents: Ints
    starts: Ints


def layout(document_lengths: NDArray[np.int64], row_tokens: int, packing: str) -> Layout:
    """The rows that documents of these lengths fill.

    documents: every document starts a row, and goes on in further rows of row_tokens - 1 of its tokens.
    joined: the documents follow one another without a separator, rows of row_tokens - 1 tokens, the tail that fills no row is dropped. So the token data of
    Gurnee et al. 2024 was made, but for seams of its tokenisation; documents are tokenised one by one here, and no token spans two.
    """
    width = row_tokens - 1  # tokens of the text in a full row
    if packing == "joined":
        ends = np.cumsum(document_lengths)
        firsts = np.arange(int(document_lengths.sum()) // width, dtype=np.int64) * width  # [rows]
        documents = np.searchsorted(ends, firsts, side="right")
        return Layout(np.full(len(firsts), row_tokens, np.int32), documents.astype(np.int32), (firsts - (ends - document_lengths)[documents]).astype(np.int32))
    pieces = -(-document_lengths // width)  # [documents]
    documents = np.repeat(np.arange(len(pieces)), pieces)  # [rows]
    starts = (np.arange(len(documents)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * width
    lengths = 1 + np.minimum(width, document_lengths[documents] - starts)
    return Layout(lengths.astype(np.int32), documents.astype(np.int32), starts.astype(np.int32))


def cut(rows: Layout, max_tokens: int | None) -> Layout:
    """The longest run of whole rows, from the first on, that holds at most `max_tokens` tokens, BOS included."""
    if max_tokens is None:
        return rows
    kept = int(np.searchsorted(np.cumsum(rows.lengths, dtype=np.int64), max_tokens, side="right"))
    return Layout(*(part[:kept] for part in rows))


def enough(content: int, pieces: int, row_tokens: int, packing: str, max_tokens: int) -> bool:
    """Whether documents of `content` tokens in all, filling `pieces` rows of their own, reach the cut, so that no more need be read."""
    if packing == "joined":
        return content // (row_tokens - 1) >= max_tokens // row_tokens
    return content + pieces >= max_tokens


def pour(stream: Iterable[NDArray[np.unsignedinteger]], rows: Layout, row_tokens: int, bos: int, dtype: np.dtype, *, at_once: int = 4096) -> Iterator[NDArray]:
    """Blocks of whole rows [at most `at_once`, row_tokens], right-padded with `bos`, filled in order from the stream of ids; what is left over is not used."""
    chunks = iter(stream)
    waiting: list[NDArray] = []
    held = 0
    for first in range(0, len(rows.lengths), at_once):
        contents = rows.lengths[first : first + at_once] - 1
        need = int(contents.sum())
        while held < need:
            waiting.append(next(chunks))
            held += len(waiting[-1])
        ids = np.concatenate(waiting)
        block = np.full((len(contents), row_tokens), bos, dtype)
        block[:, 1:][np.arange(row_tokens - 1) < contents[:, None]] = ids[:need]
        waiting, held = [ids[need:]], held - need
        yield block
