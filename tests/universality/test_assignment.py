"""The one-to-one assignment against scipy's dense solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from pyuniversal import correlate
from pyuniversal.universality.assignment import assign


def correlation(n: int, m: int, top_k: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(300, 6, generator=generator)
    x, y = (shared @ torch.randn(6, k, generator=generator) + 0.5 * torch.randn(300, k, generator=generator) for k in (n, m))
    return correlate(x, y, precision="float64", top_k=top_k)


def test_whole_graph_is_the_dense_assignment():
    for n, m in ((30, 30), (20, 35), (35, 20)):
        c = correlation(n, m, 50)
        chosen = assign(c.summary, c.other)
        r = c.full().numpy()
        # Nobody is forced into a pair with r < 0: such a pair is worth as much as none.
        rows, columns = linear_sum_assignment(r.clip(min=0), maximize=True)
        best = {i: j for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if r[i, j] > 0}
        assert {int(i): int(j) for i, j in enumerate(chosen) if j >= 0} == best


def test_the_sum_counts_and_not_the_number_of_pairs():
    """r(a, x) = 0.9 alone beats r(a, y) + r(b, x) = 0.2."""
    top, index = torch.tensor([[0.9, 0.1], [0.1, -0.5]], dtype=torch.float64), torch.tensor([[0, 1], [0, 1]])
    side = replace(correlation(2, 2, 2).summary, top=top, top_index=index)
    assert assign(side, side).tolist() == [0, -1]


def test_sparse_graph_shares_no_neuron_and_uses_kept_pairs_alone():
    c = correlation(40, 40, 3)
    chosen = assign(c.summary, c.other)
    taken = chosen[chosen >= 0]
    assert len(np.unique(taken)) == len(taken) > 20
    for i, j in enumerate(chosen):
        assert j < 0 or j in c.summary.top_index[i] or i in c.other.top_index[j]


def test_constant_neurons_stay_alone():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 2.0
    c = correlate(x, x.flip(1), precision="float64")
    assert assign(c.summary, c.other).tolist() == [2, -1, 0]
    c = correlate(torch.ones(10, 2), torch.ones(10, 2))
    assert assign(c.summary, c.other).tolist() == [-1, -1]
