"""Which row stands in for which: rows exchanged with rows of other documents, of equal length where there are any.

A pairing is a permutation of the rows of a piece of the corpus, so every row is seen as often on either side. Exchanging whole rows keeps a neuron's marginal
distribution and what position alone explains; what two neurons share of the text is gone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..tokens import Tokens

Ints = NDArray[np.int64]
FEWEST_ROWS = 4  # of the longest in a piece, so that three draws can differ


def spans(tokens: Tokens, rows: Ints) -> Ints:
    """First and last document of each row: int64 [rows, 2]; they differ where documents are joined. Documents without tokens may be counted in."""
    following = np.append(tokens.documents[1:], tokens.n_documents).astype(np.int64)  # of the row after
    begun = np.append(tokens.starts[1:] > 0, False)  # in this row
    return np.stack([tokens.documents.astype(np.int64), following - ~begun], axis=1)[rows]


def cut(lengths: Ints, *, chunk_tokens: int, rng: np.random.Generator) -> list[Ints]:
    """Rows in pieces of similar length and about `chunk_tokens` tokens, more only where four of the longest rows hold more; equal lengths in random order.

    Returns:
        Indices into `lengths`, each once.
    """
    order = np.lexsort((rng.random(len(lengths)), lengths))
    reached = np.cumsum(lengths[order], dtype=np.int64)
    pieces = -(-int(reached[-1]) // max(chunk_tokens, FEWEST_ROWS * int(lengths.max())))
    ends = np.searchsorted(reached, np.arange(1, pieces) * (reached[-1] / pieces), side="right")
    return np.split(order, ends)


def pair_rows(lengths: Ints, documents: Ints, *, draws: int, rng: np.random.Generator) -> Ints:
    """Random partners for the rows of a piece, `draws` times.

    A partner never shares a document with its row, and a row is nobody's partner twice in a draw. It has the row's length if another document has a row of that
    length; a row for which there is none takes the nearest length it can, at the cost of one other row at most. Where a row has several partners of its
    length, later draws give it others. A row is left alone only where one document holds more than half of the piece.

    Args:
        lengths: tokens of each row, [rows].
        documents: first and last document of each row, [rows, 2].
        draws: how many pairings.
        rng: of all choices.

    Returns:
        int64 [draws, rows]: index of the partner, -1 where there is none.
    """
    found = np.empty((draws, len(lengths)), dtype=np.int64)
    for draw in range(draws):
        partner = np.empty(len(lengths), dtype=np.int64)
        partner[np.lexsort((rng.random(len(lengths)), lengths))] = np.lexsort((rng.random(len(lengths)), lengths))
        _part(partner, lengths, documents, rng)
        _vary(partner, found[:draw], lengths, documents, rng)
        found[draw] = np.where(_share(documents, documents[partner]), -1, partner)
    return found


def _share(a: Ints, b: Ints) -> NDArray[np.bool_]:
    """Whether rows have a document in common, from their first and last, [..., 2]."""
    return (a[..., 0] <= b[..., 1]) & (b[..., 0] <= a[..., 1])


def _part(partner: Ints, lengths: Ints, documents: Ints, rng: np.random.Generator) -> None:
    """Exchange the partners of two rows until no row has one of its own document, first among rows of one length, then at the least difference; in place.

    If no document holds more than half of n rows, an exchange is always there: with d rows of document D paired among themselves, n - 2 |D| + d >= d pairs have
    no part in D.
    """
    for equal in (True, False):
        for i in rng.permutation(np.flatnonzero(_share(documents, documents[partner]))).tolist():
            if _share(documents[i], documents[partner[i]]):
                fine = _apart(partner, i, documents)
                if equal:
                    fine &= lengths == lengths[i]
                _exchange(partner, i, fine, lengths, rng)


def _vary(partner: Ints, earlier: Ints, lengths: Ints, documents: Ints, rng: np.random.Generator) -> None:
    """Exchange partners that a row had in an earlier draw, [draws, rows], where no row's length suffers; `partner`, [rows], in place."""
    for i in np.flatnonzero((earlier == partner).any(0)).tolist():
        if (earlier[:, i] == partner[i]).any():
            new = ~(earlier[:, i, None] == partner).any(0) & ~(earlier == partner[i]).any(0)
            theirs, mine = lengths[partner], lengths[partner[i]]
            fits = (np.abs(lengths[i] - theirs) <= np.abs(lengths[i] - mine)) & (np.abs(lengths - mine) <= np.abs(lengths - theirs))
            _exchange(partner, i, new & fits & _apart(partner, i, documents), lengths, rng)


def _apart(partner: Ints, i: int, documents: Ints) -> NDArray[np.bool_]:
    """Whether row i and each row would have partners of other documents if they exchanged them: [rows]."""
    return ~_share(documents[i], documents[partner]) & ~_share(documents, documents[partner[i]])


def _worse(partner: Ints, i: int, lengths: Ints) -> Ints:
    """Tokens that do not fit more than before, if row i exchanged partners with each row: [rows]."""
    theirs, mine = lengths[partner], lengths[partner[i]]
    return np.abs(lengths[i] - theirs) + np.abs(lengths - mine) - np.abs(lengths - theirs) - np.abs(lengths[i] - mine)


def _exchange(partner: Ints, i: int, fine: NDArray[np.bool_], lengths: Ints, rng: np.random.Generator) -> None:
    """Give row i the partner of one of the rows that are `fine`, and it that of i: a random one of those that cost the fewest tokens; nothing if none is."""
    if not fine.any():
        return
    worse = np.where(fine, _worse(partner, i, lengths), np.iinfo(np.int64).max)
    j = rng.choice(np.flatnonzero(worse == worse.min()))
    partner[[i, j]] = partner[[j, i]]
