"""histogram_: numpy.searchsorted, value by value, on the edges themselves and beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import PAPER_EDGES, histogram_


def expected(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts = np.zeros((x.shape[1], len(edges) + 1), np.int64)
    for n in range(x.shape[1]):
        np.add.at(counts[n], np.searchsorted(edges, x[:, n], side="left"), 1)
    return counts


def test_paper_edges():
    np.testing.assert_allclose(PAPER_EDGES, np.linspace(-10, 15, 256), atol=1e-6)
    # Published: the edge at zero is the 102nd, and 1.6e-7 in the float32 of torch.linspace.
    assert int(np.argmax(PAPER_EDGES.numpy() >= 0)) == 102
    assert PAPER_EDGES[102].item() == pytest.approx(1.6e-7, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_searchsorted(backend, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1500, 11, generator=generator) * torch.logspace(-3, 1.2, 11)).to(dtype)
    x[:256, 0] = PAPER_EDGES.to(dtype)
    x[256:512, 0] = torch.nextafter(PAPER_EDGES, torch.tensor(torch.inf)).to(dtype)
    x[512:768, 0] = torch.nextafter(PAPER_EDGES, torch.tensor(-torch.inf)).to(dtype)
    x[0, 1], x[1, 1], x[2, 1], x[3, 1] = -torch.inf, torch.inf, -10.0, 15.0
    counts = torch.ones(11, 257, dtype=torch.int64, device=backend.device)
    backend.run(histogram_, counts, x.to(backend.device), PAPER_EDGES.to(backend.device))
    np.testing.assert_array_equal(counts.cpu() - 1, expected(x.double().numpy(), PAPER_EDGES.double().numpy()))


@pytest.mark.parametrize("edges", [PAPER_EDGES, torch.linspace(-1, 1, 20) ** 3], ids=["paper", "uneven"])
@pytest.mark.parametrize(("tokens", "neurons"), [(127, 15), (128, 16), (129, 257), (3, 530)])
def test_all_tokens_and_neurons(backend, tokens, neurons, edges):
    # 128 tokens of 16 neurons are counted at a time, those of 256 neurons before the next ones.
    x = torch.randn(2 * tokens, neurons + 3, generator=torch.Generator().manual_seed(1))[::2, 2:-1]
    counts = torch.zeros(neurons, len(edges) + 1, dtype=torch.int64, device=backend.device)
    backend.run(histogram_, counts, x.to(backend.device), edges.to(backend.device))
    np.testing.assert_array_equal(counts.cpu(), expected(x.double().numpy(), edges.double().numpy()))


def test_few_neurons_at_a_time(backend, monkeypatch):
    # On a GPU as many neurons are counted at a time as its cache has counters for: here 128, so that there are three turns, the last of 44.
    monkeypatch.setattr(pytest.importorskip("pyuniversal.kernels.histogram"), "COUNTERS", 1)
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(2))
    counts = torch.zeros(300, 257, dtype=torch.int64, device=backend.device)
    for _ in range(2):
        backend.run(histogram_, counts, x.to(backend.device), PAPER_EDGES.to(backend.device))
    np.testing.assert_array_equal(counts.cpu(), 2 * expected(x.double().numpy(), PAPER_EDGES.double().numpy()))


def test_uneven_edges(backend):
    edges = torch.tensor([-3.0, -2.9999, 0.0, 0.5, 100.0])
    x = torch.tensor([[-3.0, 0.0], [-2.99995, 0.25], [0.5, 100.0], [99.0, 100.1]])
    counts = torch.zeros(2, 6, dtype=torch.int64, device=backend.device)
    backend.run(histogram_, counts, x.to(backend.device), edges.to(backend.device))
    assert counts.tolist() == [[1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_beside_every_edge(backend, dtype):
    # The kernel finds bins of uniform edges by arithmetic, and trusts it only so far from an edge: values at all distances, from the next float to half a bin,
    # some of them alone among values in the middle of bins. And edges that are nearly uniform, up to 0.2 or 0.8 of a bin.
    swaying = torch.linspace(-3, 3, 150) + torch.tensor([[0.2], [0.8]]) * (torch.linspace(0, 6, 150) * torch.pi).sin() * 6 / 149
    steps = torch.tensor([1.0, 2, 10, 100, 1e3, 1e4, 1e5]) * 2.0**-20
    for edges in (PAPER_EDGES, torch.linspace(-0.7, 1.3, 33), torch.linspace(1e4, 1e4 + 1, 100), torch.linspace(-1e30, 1e30, 7), *swaying):
        width = edges[1] - edges[0]
        beside = torch.cat([edges + sign * step * width for step in steps for sign in (-1, 1)])
        beside = torch.cat([edges, torch.nextafter(edges, torch.tensor(torch.inf)), torch.nextafter(edges, torch.tensor(-torch.inf)), beside])
        middle = ((edges[0] + width / 2)[None].expand(len(beside), 1)).clone()
        middle[:: 64 + 5] = beside[:: 64 + 5, None]
        x = torch.cat([beside[:, None].repeat(1, 16), middle.repeat(1, 3)], dim=1).nan_to_num().to(dtype)
        counts = torch.zeros(19, len(edges) + 1, dtype=torch.int64, device=backend.device)
        backend.run(histogram_, counts, x.to(backend.device), edges.to(backend.device))
        np.testing.assert_array_equal(counts.cpu(), expected(x.double().numpy(), edges.double().numpy()))


def test_zeros_and_any_bits(backend):
    bits = torch.from_numpy(np.random.default_rng(0).integers(-(2**31), 2**31, (500, 18)).astype(np.int32)).view(torch.float32)
    x = torch.cat([bits, torch.zeros(100, 18), -torch.zeros(100, 18)])  # an edge of the paper's lies 1.6e-7 above 0
    counts = torch.zeros(18, 257, dtype=torch.int64, device=backend.device)
    backend.run(histogram_, counts, x.to(backend.device), PAPER_EDGES.to(backend.device))
    np.testing.assert_array_equal(counts.cpu(), expected(x.double().numpy(), PAPER_EDGES.double().numpy()))


def test_contract_is_checked():
    with pytest.raises(InputError, match="edges must increase"):
        histogram_(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 2), torch.tensor([1.0, 1.0]))
    with pytest.raises(InputError, match=r"counts must be contiguous int64 \[2, 257\], not int64 \[2, 256\]"):
        histogram_(torch.zeros(2, 256, dtype=torch.int64), torch.zeros(4, 2), PAPER_EDGES)
