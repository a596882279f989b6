"""The arithmetic of packing against a loop over tokens."""

from __future__ import annotations

import numpy as np
import pytest

from pyuniversal.tokens.rows import cut, enough, layout, pour


def rows_by_hand(documents, row_tokens, packing, bos):
    """Rows of (document of the first token, its index there, ids), token by token."""
    width, rows = row_tokens - 1, []
    if packing == "documents":
        for d, ids in enumerate(documents):
            rows += [(d, start, [bos, *ids[start : start + width]]) for start in range(0, len(ids), width)]
        return rows
    stream = [(d, i, t) for d, ids in enumerate(documents) for i, t in enumerate(ids)]
    while len(stream) >= width:
        rows.append((stream[0][0], stream[0][1], [bos, *(t for _, _, t in stream[:width])]))
        del stream[:width]
    return rows


def corpus(seed):
    """Documents of 0 to 40 ids, and the chunks that they arrive in."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(1, 900, n).tolist() for n in draw.choice([0, 1, 6, 7, 8, 14, 21, 40], 60)]
    flat = np.concatenate([np.array(d, np.uint16) for d in documents])
    return documents, np.split(flat, np.sort(draw.integers(0, len(flat), 9)))


@pytest.mark.parametrize("packing", ["documents", "joined"])
@pytest.mark.parametrize("row_tokens", [2, 8, 33])
@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_rows_are_those_of_a_loop_over_tokens(packing, row_tokens, at_once):
    documents, chunks = corpus(row_tokens)
    want = rows_by_hand(documents, row_tokens, packing, bos=999)
    rows = layout(np.array([len(d) for d in documents]), row_tokens, packing)
    assert rows.documents.tolist() == [d for d, _, _ in want]
    assert rows.starts.tolist() == [start for _, start, _ in want]
    assert rows.lengths.tolist() == [len(ids) for _, _, ids in want]
    poured = np.concatenate(list(pour(chunks, rows, row_tokens, 999, np.dtype(np.uint16), at_once=at_once)))
    assert poured.tolist() == [ids + [999] * (row_tokens - len(ids)) for _, _, ids in want]


def test_joined_by_hand():
    # a b c | d | | e f g h  in rows of BOS and three: BOS a b c, BOS d e f; g h fill no row
    rows = layout(np.array([3, 1, 0, 4]), 4, "joined")
    assert rows.documents.tolist() == [0, 1]
    assert rows.starts.tolist() == [0, 0]
    assert next(pour([np.array([11, 12, 13, 21]), np.array([41, 42, 43, 44])], rows, 4, 9, np.dtype(np.int64))).tolist() == [[9, 11, 12, 13], [9, 21, 41, 42]]
    assert layout(np.array([2, 5]), 4, "joined").starts.tolist() == [0, 1]  # the second row begins at the second token of the second document


@pytest.mark.parametrize(("max_tokens", "kept"), [(None, 5), (0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (10, 3), (14, 4), (15, 4), (16, 5), (99, 5)])
def test_cut_keeps_whole_rows(max_tokens, kept):
    rows = layout(np.array([7, 3, 1]), 4, "documents")  # rows of 4, 4, 2, 4, 2 tokens
    assert rows.lengths.tolist() == [4, 4, 2, 4, 2]
    assert len(cut(rows, max_tokens).lengths) == kept
    assert cut(rows, max_tokens).documents.tolist() == [0, 0, 0, 1, 2][:kept]


@pytest.mark.parametrize("packing", ["documents", "joined"])
def test_enough_means_that_more_documents_change_nothing(packing):
    documents, _ = corpus(3)
    lengths = np.array([len(d) for d in documents])
    for max_tokens in range(8, 600, 37):
        whole = cut(layout(lengths, 8, packing), max_tokens)
        first = next(n for n in range(len(lengths) + 1) if enough(int(lengths[:n].sum()), int((-(-lengths[:n] // 7)).sum()), 8, packing, max_tokens))
        part = cut(layout(lengths[:first], 8, packing), max_tokens)
        assert [x.tolist() for x in part] == [x.tolist() for x in whole]
        # and no more is read than is needed: with one document less there is room for another token, or, joined, for another row
        less = layout(lengths[: first - 1], 8, packing)
        assert less.lengths.sum() + (8 if packing == "joined" else 1) <= max_tokens
