"""moments_: against scipy on the very numbers, bit for bit on small integers, and the laws of merging."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyuniversal.errors import BackendError, InputError
from pyuniversal.ops import merge_moments_, moments_
from pyuniversal.ops.moments import FIELDS, empty


def heavy(tokens: int, neurons: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.nn.functional.gelu(torch.tensor(generator.standard_t(4, (tokens, neurons)))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 127, 129, 3000])
def test_against_scipy(backend, dtype, tokens):
    x = heavy(tokens, 37, dtype=dtype).to(backend.device)
    state = empty(3, 37, backend.device)
    ends = (tokens // 3, tokens // 2, tokens)
    backend.run(moments_, state, x, ends)
    exact = x.double().cpu().numpy()
    for s, end in enumerate(ends):
        got = dict(zip(FIELDS, state[s].cpu().numpy(), strict=True))
        part = exact[:end]
        assert (got["count"] == end).all()
        assert (got["positive"] == (part > 0).sum(0)).all()
        if not end:
            assert (got["minimum"] == np.inf).all()
            continue
        np.testing.assert_array_equal(got["minimum"], part.min(0))
        np.testing.assert_array_equal(got["maximum"], part.max(0))
        np.testing.assert_allclose(got["mean"], part.mean(0), rtol=1e-12, atol=1e-14)
        for k, name in ((2, "M2"), (3, "M3"), (4, "M4")):
            scale = (np.abs(part - part.mean(0)) ** k).sum(0)
            np.testing.assert_array_less(np.abs(got[name] - scipy.stats.moment(part, k, axis=0) * end), 1e-11 * scale + 1e-300)


def test_small_integers_bit_for_bit(backend):
    # Eight tokens of each of these sum to a multiple of eight: every mean, and so every field, is an exact small integer.
    pattern = torch.tensor([[-4, 4, 0, 3], [4, 4, 0, -3], [-4, 4, 8, 3], [4, 4, 8, -3]] * 2, dtype=torch.float32)
    x = pattern.repeat(40, 5).to(backend.device)  # [320, 20]
    state = empty(1, 20, backend.device)
    backend.run(moments_, state, x, [320])
    one = torch.tensor(
        [
            [320.0, 0, 16 * 320, 0, 256 * 320, 160, -4, 4],
            [320, 4, 0, 0, 0, 320, 4, 4],
            [320, 4, 16 * 320, 0, 256 * 320, 160, 0, 8],
            [320, 0, 9 * 320, 0, 81 * 320, 160, -3, 3],
        ]
    )
    assert torch.equal(state[0].cpu(), one.T.repeat(1, 5).double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_shows_in_its_own_column_alone(backend, bad):
    x = heavy(400, 9)
    x[333, 4] = bad
    state = empty(1, 9, backend.device)
    backend.run(moments_, state, x.to(backend.device), [400])
    assert (~torch.isfinite(state[0, 2])).cpu().tolist() == [n == 4 for n in range(9)]
    assert torch.isfinite(state[0, 1]).cpu().tolist() == [n != 4 for n in range(9)]


def test_large_offset_keeps_its_precision(backend):
    # Raw power sums would lose all of the variance here: mean^2 / var = 1e8.
    x = (torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) + 10_000).to(backend.device)
    state = empty(1, 3, backend.device)
    backend.run(moments_, state, x, [5000])
    np.testing.assert_allclose(state[0, 2].cpu() / 5000, x.double().cpu().numpy().var(0), rtol=1e-10)
    np.testing.assert_allclose(state[0, 4].cpu() / 5000 / (state[0, 2].cpu() / 5000) ** 2, scipy.stats.kurtosis(x.double().cpu(), fisher=False), rtol=1e-9)


@given(cuts=st.lists(st.integers(0, 300), min_size=1, max_size=4), seed=st.integers(0, 5))
def test_merge_is_the_whole_in_any_order(cuts, seed):
    x = heavy(300, 5, seed)
    bounds = sorted({0, 300, *cuts})
    parts = []
    for a, b in itertools.pairwise(bounds):
        state = empty(1, 5)
        moments_(state, x[a:b], [b - a])
        parts.append(state)
    exact = x.double().numpy()
    for order in (parts, parts[::-1]):
        total = empty(1, 5)
        for part in order:
            merge_moments_(total, part)
        merge_moments_(total, empty(1, 5))
        np.testing.assert_allclose(total[0, 1], exact.mean(0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(total[0, 3] / 300, scipy.stats.moment(exact, 3), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(total[0, 4] / 300, scipy.stats.moment(exact, 4), rtol=1e-10)
        assert total[0, 5].tolist() == (exact > 0).sum(0).tolist()
        assert total[0, 7].tolist() == exact.max(0).tolist()


def test_strided_rows(backend):
    whole = heavy(64, 40).to(backend.device)
    a, b = empty(1, 12, backend.device), empty(1, 12, backend.device)
    backend.run(moments_, a, whole[:, 8:20], [64])
    moments_(b, whole[:, 8:20].contiguous(), [64], backend="reference")
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_contract_is_checked():
    x = heavy(10, 4)
    with pytest.raises(InputError, match=r"moments_: x must be floating \[tokens, neurons\], not int64"):
        moments_(empty(1, 4), torch.ones(3, 4, dtype=torch.int64), [3])
    with pytest.raises(InputError, match=r"state must be contiguous float64 \[1, 8, 4\], not float64 \[1, 8, 5\]"):
        moments_(empty(1, 5), x, [10])
    with pytest.raises(InputError, match=r"ends \[7, 3\] must increase and stay within the 10 tokens"):
        moments_(empty(2, 4), x, [7, 3])
    with pytest.raises(InputError, match="stay within the 10 tokens"):
        moments_(empty(1, 4), x, [11])
    with pytest.raises(BackendError, match=r"the backend cpu cannot run here: does not take float64"):
        moments_(empty(1, 4), x.double(), [10], backend="cpu")
    with pytest.raises(BackendError, match=r"no such backend; there are cuda, cpu, triton, reference"):
        moments_(empty(1, 4), x, [10], backend="cpx")


EXACT = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * scipy.stats.norm.cdf(x),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * scipy.special.expit(x),
}


@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_an_activation(backend, activation, dtype):
    # One neuron a value, so that minimum and maximum are the function itself; then many tokens.
    line = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-100.0, -88.0, 0.0, 88.0, 100.0])]).to(dtype)
    state = empty(1, len(line), backend.device)
    backend.run(moments_, state, line[None].to(backend.device), [1], activation=activation)
    exact = EXACT[activation](line.double().numpy())
    assert (np.abs(state[0, 7].cpu().numpy() - exact) <= 1e-6 * np.maximum(1, np.abs(line.double().numpy()))).all()
    x = heavy(900, 20, dtype=dtype) * 3 - 1
    state = empty(2, 20, backend.device)
    backend.run(moments_, state, x.to(backend.device), [400, 900], activation=activation)
    exact = EXACT[activation](x.double().numpy())
    for s, end in enumerate((400, 900)):
        np.testing.assert_allclose(state[s, 1].cpu(), exact[:end].mean(0), atol=2e-7)
        np.testing.assert_allclose(state[s, 4].cpu() / end, scipy.stats.moment(exact[:end], 4), rtol=2e-6)


def test_of_an_activation_keeps_nonfinite(backend):
    x = torch.ones(300, 3, device=backend.device)
    x[7, 1] = float("nan")
    for activation in EXACT:
        state = empty(1, 3, backend.device)
        backend.run(moments_, state, x, [300], activation=activation)
        assert torch.isfinite(state[0, 2]).tolist() == [True, False, True]
    with pytest.raises(InputError, match="unknown activation 'tanh'; choose None or one of relu, gelu, gelu_new, silu"):
        moments_(empty(1, 3, backend.device), x, [300], activation="tanh")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ragged_parts_of_wider_rows(backend, dtype):
    # More tokens than a kernel takes at once, neurons that fill no vector, rows that begin anywhere, sets that end anywhere; twice into the same state.
    whole = heavy(2500, 90, dtype=dtype).to(backend.device)
    whole[:40] += 30  # what comes first says little of the rest
    for x, ends in ((whole[3:, 7:80], (0, 111, 111, 2497)), (whole[:300, 20:84], (290, 292, 300)), (whole[:9, :1], (1, 8))):
        state = empty(len(ends), x.shape[1], backend.device)
        for _ in range(2):
            backend.run(moments_, state, x, ends)
        exact = x.double().cpu().numpy()
        for end, got in zip(ends, state.cpu().numpy(), strict=True):
            if not end:
                assert np.array_equal(got, empty(1, x.shape[1])[0])
                continue
            part = exact[:end]
            d = part - part.mean(0)
            assert np.array_equal(got[[0, 5, 6, 7]], [np.full(len(d.T), 2 * end), 2 * (part > 0).sum(0), part.min(0), part.max(0)])
            np.testing.assert_allclose(got[1], part.mean(0), rtol=1e-12, atol=1e-14)
            for k in (2, 3, 4):
                np.testing.assert_array_less(np.abs(got[k] - 2 * (d**k).sum(0)), 1e-11 * (np.abs(d) ** k).sum(0) + 1e-300)


def test_integers_of_many_parts_bit_for_bit(backend):
    # Every eight tokens have the same mean, so parts merge exactly wherever they end at a multiple of eight.
    x = torch.tensor([[-4.0, 4, 0, 3], [4, 4, 0, -3], [-4, 4, 8, 3], [4, 4, 8, -3]] * 2).repeat(640, 1).to(backend.device)  # [5120, 4]
    state = empty(3, 4, backend.device)
    backend.run(moments_, state, x, [8, 2056, 5120])
    for s, n in enumerate((8, 2056, 5120)):
        first, third = [[n, mean, 16 * n, 0, 256 * n, n / 2, low, low + 8] for mean, low in ((0, -4), (4, 0))]
        expected = [first, [n, 4, 0, 0, 0, n, 4, 4], third, [n, 0, 9 * n, 0, 81 * n, n / 2, -3, 3]]
        assert torch.equal(state[s].cpu(), torch.tensor(expected, dtype=torch.float64).T)


def test_no_tokens_change_nothing(backend):
    state = empty(2, 5, backend.device)
    x = heavy(30, 5).to(backend.device)
    backend.run(moments_, state, x[:0], [0, 0])
    assert torch.equal(state, empty(2, 5, backend.device))
    backend.run(moments_, state, x, [20, 30])
    before = state.clone()
    backend.run(moments_, state, x, [0, 0])
    assert torch.equal(state, before)


def test_extremes_of_what_is_not_finite(backend):
    x = heavy(300, 5).to(backend.device)
    x[0, 1], x[299, 2], x[150, 3], x[7, 3] = torch.nan, torch.nan, torch.inf, -torch.inf
    state = empty(1, 5, backend.device)
    for part in (x[:200], x[200:]):
        backend.run(moments_, state, part, [part.shape[0]])
    low, high = state[0, 6].tolist(), state[0, 7].tolist()
    assert [low[3], high[3]] == [-torch.inf, torch.inf]
    assert [np.isnan([low[n], high[n]]).tolist() for n in range(5)] == [[n in (1, 2)] * 2 for n in range(5)]


def test_values_as_large_as_float32_has(backend):
    x = torch.tensor([[3e38, -3e38, 1.0], [3e38, 3e38, 3.0]], device=backend.device).repeat(40, 1)
    state = empty(1, 3, backend.device)
    backend.run(moments_, state, x, [80])
    value = x[0, 0].double().item()
    np.testing.assert_allclose(state[0, 1].cpu(), [value, 0, 2], atol=1e-12)
    np.testing.assert_allclose(state[0, 2].cpu(), [0, 80 * value**2, 80], rtol=1e-14)
    np.testing.assert_allclose(state[0, 4].cpu(), [0, 80 * value**4, 80], rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neurons", [1040, 1031])
def test_as_many_neurons_as_no_tile_has(backend, dtype, neurons):
    x = heavy(139, neurons, dtype=dtype).to(backend.device)
    state = empty(2, neurons, backend.device)
    backend.run(moments_, state, x, (5, 139))
    exact = x.double().cpu().numpy()
    for s, end in enumerate((5, 139)):
        part = exact[:end]
        d = part - part.mean(0)
        got = state[s].cpu().numpy()
        np.testing.assert_array_equal(got[5:], [(part > 0).sum(0), part.min(0), part.max(0)])
        for k in (2, 3, 4):
            np.testing.assert_array_less(np.abs(got[k] - (d**k).sum(0)), 1e-11 * (np.abs(d) ** k).sum(0) + 1e-300)


def test_first_tokens_far_from_the_rest(backend):
    """Sums are taken about a centre that the first tokens give: far off, it costs a digit, not the answer."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(1000, 15)).astype(np.float32)
    x[:8, :5] += 1e6  # among N(0, 1)
    x[:8, 5:10] = np.float32(1e6)
    x[8:, 10:] += 1e6
    exact = x.astype(np.float64)
    state = empty(1, 15, backend.device)
    backend.run(moments_, state, torch.from_numpy(x).to(backend.device), [1000])
    d, got = exact - exact.mean(0), state[0].cpu().numpy()
    np.testing.assert_allclose(got[1], exact.mean(0), rtol=1e-12)
    for k in (2, 3, 4):
        np.testing.assert_array_less(np.abs(got[k] - (d**k).sum(0)), 1e-11 * (np.abs(d) ** k).sum(0))


def test_a_single_step_of_float32(backend):
    x = torch.full((100, 1), 1e6, device=backend.device)
    x[99] += 0.0625  # the next float
    state = empty(1, 1, backend.device)
    backend.run(moments_, state, x, [100])
    np.testing.assert_allclose(state[0, 1:5, 0].cpu(), [1e6 + 0.000625, 0.0625**2 * 0.99, 0.0625**3 * 0.9702, 0.0625**4 * 0.960597], rtol=1e-9)


@pytest.mark.parametrize("tokens", [1, 3, 7, 9, 10, 335, 1001, 1003])
def test_constants_have_no_spread(backend, tokens):
    """Even where their sum overflows, or a mean by float32 would be another number."""
    largest = torch.finfo(torch.float32).max
    drawn = torch.randn(58, generator=torch.Generator().manual_seed(0))
    values = torch.cat([torch.tensor([largest, -largest, 1e-40, 0.1, -0.17, 1e4 / 3]), drawn]).to(backend.device)
    state = empty(1, 64, backend.device)
    backend.run(moments_, state, values.repeat(tokens, 1), [tokens])
    assert torch.equal(state[0, 1], values.double())
    assert torch.equal(state[0, 2:5].cpu(), torch.zeros(3, 64, dtype=torch.float64))
