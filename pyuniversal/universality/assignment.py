"""One-to-one assignment of the neurons of two models on the sparse graph of the partners that were kept."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.sparse import csr_array, hstack, identity
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor


class Kept(Protocol):
    """Partners of every neuron, [neurons, k]: r and which neuron, -1 where there are fewer than k."""

    @property
    def top(self) -> Tensor: ...  # noqa: D102
    @property
    def top_index(self) -> Tensor: ...  # noqa: D102


# What staying alone costs, as much as a pair with r = 0; a pair costs r less. Above 1, since the solver takes no cost of 0.
ALONE = 2.0


def assign(ahead: Kept, back: Kept) -> np.ndarray:
    """Partner of each neuron, int64 [rows], -1 where it stays alone: the pairs that share no neuron with the largest sum of r, all of them positive.

    The graph holds every pair that is among the top k of either side; scipy's LAPJVsp solves it.
    """
    rows, columns, r = _edges(ahead, back)
    n, m = ahead.top.shape[0], back.top.shape[0]
    if not len(r):
        return np.full(n, -1)
    pairs = csr_array((ALONE - r, (rows, columns)), shape=(n, m))
    # Each row has a private way out, so that a full matching of the rows exists.
    _, chosen = min_weight_full_bipartite_matching(hstack([pairs, ALONE * identity(n, format="csr")], format="csr"))
    return np.where(chosen < m, chosen, -1)


def _edges(ahead: Kept, back: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and r (clamped to [-1, 1]) of all pairs kept in either direction, each once."""
    parts = []
    for side, flip in ((ahead, False), (back, True)):
        index, r = side.top_index.cpu().numpy(), side.top.cpu().numpy()  # [neurons, k]
        own = np.broadcast_to(np.arange(index.shape[0])[:, None], index.shape)
        keep = index >= 0
        here, there = own[keep], index[keep]
        parts.append((there, here, r[keep]) if flip else (here, there, r[keep]))
    rows, columns, r = (np.concatenate(field) for field in zip(*parts, strict=True))
    _, first = np.unique(rows * (int(columns.max(initial=0)) + 1) + columns, return_index=True)
    rows, columns, r = rows[first], columns[first], np.clip(r[first], -1, 1)
    return rows[r > 0], columns[r > 0], r[r > 0]
