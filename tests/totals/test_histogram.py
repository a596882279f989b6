"""DyadicHistogram: the same bits whatever the order, the batches and the merges; bounds of its bins; files."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyuniversal import DyadicHistogram, FileError, Histogram, InputError
from pyuniversal.totals import histogram

# Very different scales, bounds of bins, both zeros: what decides the exponent may be in any part.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -1.5, 8.0, -8.0, 7.9, 1e-3, -1e-3, 250.0, -256.0, 256.0, 1e-30, -1e30, 3e38, float("nan"), float("inf")])


def of(rows: torch.Tensor, bins: int = 16) -> DyadicHistogram:
    total = DyadicHistogram(rows.shape[1], bins=bins)
    total.update(rows)
    return total


def assert_equal(a: DyadicHistogram, b: DyadicHistogram) -> None:
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.exponent, b.exponent)


@given(values=st.lists(st.tuples(VALUES, VALUES), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=4), order=st.randoms(use_true_random=False))
def test_order_parts_and_merges_change_no_bit(values, cuts, order):
    x = torch.tensor(values).view(-1, 2)
    whole = of(x)
    assert whole.counts.sum(1).tolist() == x.isfinite().sum(0).tolist()
    shuffled = list(range(len(x)))
    order.shuffle(shuffled)
    parts = [of(part) for part in x[shuffled].tensor_split(sorted(min(c, len(x)) for c in cuts))]
    order.shuffle(parts)
    # As a chain, and as a tree.
    chain = DyadicHistogram(2, bins=16)
    for part in parts:
        before = part.counts.clone(), part.exponent.clone()
        chain.merge(part)
        assert torch.equal(part.counts, before[0])
        assert torch.equal(part.exponent, before[1])
    assert_equal(chain, whole)
    while len(parts) > 1:
        last = parts.pop()
        parts[len(parts) // 2].merge(last)
    assert_equal(parts[0], whole)
    parts[0].update(x)
    whole.merge(whole)
    assert_equal(parts[0], whole)


def test_edges_hold_what_is_counted():
    x = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1.0, 37.0, 1e9])
    total = of(x, 64)
    for n in range(4):
        edges = total.edges(n)
        assert edges.dtype == torch.float64
        counts, _ = np.histogram(x[:, n].double(), edges)  # its last bin is closed, but no value lies on the last edge
        np.testing.assert_array_equal(total.counts[n], counts)
        largest = x[:, n].abs().max()
        assert edges[-1] / 2 <= largest <= edges[-1]
        assert edges[0] == -edges[-1]


def test_edges_of_the_extreme_exponents():
    total = DyadicHistogram(2, bins=4)
    assert total.edges(0).tolist() == [-(2.0**-125), -(2.0**-126), 0.0, 2.0**-126, 2.0**-125]
    total.update(torch.tensor([[1.7e308, 8e307]], dtype=torch.float64))
    assert total.edges(0).tolist() == [-torch.inf, -(2.0**1023), 0.0, 2.0**1023, torch.inf]
    assert total.edges(1).tolist() == [-(2.0**1023), -(2.0**1022), 0.0, 2.0**1022, 2.0**1023]


def test_file(tmp_path):
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    total = of(x, 8)
    total.save(tmp_path / "a.safetensors")
    loaded = DyadicHistogram.load(tmp_path / "a.safetensors")
    assert_equal(loaded, total)
    loaded.update(1000 * x)
    assert_equal(loaded, of(torch.cat([x, 1000 * x]), 8))
    with pytest.raises(FileError, match="holds a dyadic histogram, not a histogram"):
        Histogram.load(tmp_path / "a.safetensors")


def test_strangers_are_refused():
    total = DyadicHistogram(3)
    with pytest.raises(InputError, match=r"cannot merge a histogram of \[neurons, bins\] = \[3, 128\] into one of \[3, 256\]"):
        total.merge(DyadicHistogram(3, bins=128))
    with pytest.raises(InputError, match=r"counts must be contiguous int64 \[4, bins\], not int64 \[3, 256\]"):
        total.update(torch.zeros(5, 4))
    with pytest.raises(InputError, match="the bins must be even, 4 to 65,536, not 5"):
        DyadicHistogram(3, bins=5).update(torch.zeros(5, 3))


def test_the_example_is_true():
    assert doctest.testmod(histogram, extraglobs={"torch": torch}) == (0, 5)


def test_edges_that_do_not_increase_are_refused_before_anything_is_counted():
    with pytest.raises(InputError, match="the edges of a histogram must increase"):
        Histogram(2, edges=torch.tensor([0.0, 1.0, 1.0]))
