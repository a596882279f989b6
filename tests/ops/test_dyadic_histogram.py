"""dyadic_histogram_: against integers of any length, value by value; and the law that order and parts change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyuniversal import _C
from pyuniversal.errors import BackendError, InputError
from pyuniversal.ops import dyadic_histogram_
from pyuniversal.ops.dyadic_histogram import HIGHEST_EXPONENT, LOWEST_EXPONENT, power_of_two, widen_

TYPES = [torch.float32, torch.float16, torch.bfloat16]


def empty(neurons: int, bins: int = 256, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(neurons, bins, dtype=torch.int64, device=device), torch.full((neurons,), -126, dtype=torch.int32, device=device)


def in_widths(value: float, k: int) -> int:
    """floor(value / 2^k), in integers of any length."""
    numerator, denominator = value.as_integer_ratio()  # a power of two
    shift = k + denominator.bit_length() - 1
    return numerator >> shift if shift >= 0 else numerator << -shift


def expected(x: torch.Tensor, bins: int, lowest: int = -126) -> tuple[np.ndarray, np.ndarray]:
    """Counts and exponents from the definition."""
    counts, exponents = np.zeros((x.shape[1], bins), np.int64), np.zeros(x.shape[1], np.int32)
    for n, column in enumerate(x.T.tolist()):
        values = [v for v in column if math.isfinite(v)]
        k = lowest
        while values and not (-bins // 2 <= in_widths(min(values), k) and in_widths(max(values), k) < bins // 2):
            k += 1
        exponents[n] = k
        for v in values:
            counts[n, in_widths(v, k) + bins // 2] += 1
    return counts, exponents


def assert_exact(backend, x: torch.Tensor, bins: int, *, lowest: int = -126) -> None:
    want, k = expected(x, bins, lowest)
    for parts in (1, 3):
        counts, exponent = empty(x.shape[1], bins, backend.device)
        exponent.fill_(lowest)
        for part in x.tensor_split(parts):
            backend.run(dyadic_histogram_, counts, exponent, part.to(backend.device))
        np.testing.assert_array_equal(exponent.cpu(), k)
        np.testing.assert_array_equal(counts.cpu(), want)


# 128 tokens of 16 neurons are counted at a time, those of 256 neurons before the next ones.
@pytest.mark.parametrize("dtype", [*TYPES, torch.float64], ids=str)
@pytest.mark.parametrize(("tokens", "neurons"), [(1, 1), (127, 15), (128, 16), (129, 17), (300, 33), (5, 290)])
def test_against_integers(backend, dtype, tokens, neurons):
    # Scales from 1e-6 to 1e4: each neuron has an exponent of its own; rows rise, so that bins widen on the way.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, neurons, generator=generator) * torch.logspace(-6, 4, neurons) * torch.linspace(0.01, 1, tokens)[:, None]
    assert_exact(backend, x.to(dtype), 256)


@pytest.mark.parametrize("bins", [4, 6, 10, 256, 1000, 65_536])
def test_values_on_the_bounds_and_beside_them(backend, bins):
    # Every bound of the bins of several widths, and the next floats below and above: the neurons differ in the largest value, which is the last to fit or the
    # first that does not.
    bounds = torch.cat([torch.arange(-4, 5) * 2.0**k for k in (-3, 0, 5)])
    near = torch.cat([bounds, torch.nextafter(bounds, torch.tensor(torch.inf)), torch.nextafter(bounds, torch.tensor(-torch.inf))])
    reach = torch.tensor(bins // 2 * 2.0**3)
    largest = torch.stack([reach, torch.nextafter(reach, torch.tensor(0.0)), -reach, torch.nextafter(-reach, torch.tensor(-torch.inf)), reach / 2])
    x = torch.cat([near[:, None].repeat(1, 5).clamp(-reach / 4, reach / 4), largest[None, :]])
    assert expected(x, bins)[1].tolist() == [4, 3, 3, 4, 3]
    assert_exact(backend, x, bins)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bins", [4, 256])
def test_any_bits(backend, dtype, bins):
    # All of float32's range, subnormals, both zeros, infinities and NaNs; and neurons that hold none of the large values, so that the exponents differ.
    bits = torch.from_numpy(np.random.default_rng(0).integers(-(2**31), 2**31, (400, 20)).astype(np.int32))
    x = bits.view(torch.float32).clone()
    x[:, 5:] = torch.where(x[:, 5:].abs() < torch.logspace(-44, 30, 15), x[:, 5:], torch.copysign(torch.tensor(0.0), x[:, 5:]))
    assert_exact(backend, x.to(dtype), bins)


def test_a_value_far_below_the_width_of_a_bin_is_on_its_side_of_zero(backend):
    # The quotient by 2^k underflows to zero.
    x = torch.tensor([[3e38, 3e38], [-1e-45, 1e-45], [-1e-38, 1e-38], [-0.0, 0.0], [-1.0, 1.0]])
    counts, exponent = empty(2, 8, backend.device)
    backend.run(dyadic_histogram_, counts, exponent, x.to(backend.device))
    assert exponent.tolist() == [126, 126]
    assert counts.tolist() == [[0, 0, 0, 3, 1, 0, 0, 1], [0, 0, 0, 0, 4, 0, 0, 1]]


def test_nothing_and_zeros_have_the_lowest_exponent(backend):
    counts, exponent = empty(3, 256, backend.device)
    backend.run(dyadic_histogram_, counts, exponent, torch.zeros(0, 3, device=backend.device))
    assert not counts.any()
    backend.run(dyadic_histogram_, counts, exponent, torch.tensor([[0.0, -0.0, 0.0], [0.0, 0.0, 2.0**-119]], device=backend.device))
    assert exponent.tolist() == [-126, -126, -125]  # 128 x 2^-126 is the first that does not fit
    assert counts.nonzero().tolist() == [[0, 128], [1, 128], [2, 128], [2, 192]]
    assert counts.sum(1).tolist() == [2, 2, 2]
    backend.run(dyadic_histogram_, torch.zeros(0, 4, dtype=torch.int64, device=backend.device), exponent[:0], torch.zeros(7, 0, device=backend.device))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_is_counted_nowhere_and_widens_nothing(backend, bad):
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(1))
    clean_counts, clean_exponent = empty(20, 64, backend.device)
    backend.run(dyadic_histogram_, clean_counts, clean_exponent, torch.cat([x[:77], x[78:]]).to(backend.device))
    x[77, 3:18] = bad
    counts, exponent = empty(20, 64, backend.device)
    backend.run(dyadic_histogram_, counts, exponent, x.to(backend.device))
    assert (counts.sum(1) == 200).tolist() == [not 3 <= n < 18 for n in range(20)]
    assert torch.equal(counts[3:18], clean_counts[3:18])
    assert torch.equal(exponent[3:18], clean_exponent[3:18])
    counts, exponent = empty(1, 64, backend.device)
    backend.run(dyadic_histogram_, counts, exponent, torch.full((5, 1), bad, device=backend.device))
    assert (counts.sum().item(), exponent.item()) == (0, -126)


def test_float64_beyond_float32(backend):
    x = torch.tensor([[1.7e308, -5e-324, 1e200], [-1.0, 1e-300, -1e199], [2.0**-126, -1e-300, 0.0]], dtype=torch.float64)
    for bins in (4, 6, 256):
        assert_exact(backend, x, bins)
    counts, exponent = empty(1, 4, backend.device)
    backend.run(dyadic_histogram_, counts, exponent, x[:, :1].to(backend.device))
    assert exponent.item() == HIGHEST_EXPONENT


@pytest.mark.parametrize("k", [HIGHEST_EXPONENT, 150, 149, 128, 127, 126, 125])
def test_float32_goes_on_where_float64_has_widened_the_bins(backend, k):
    x = torch.tensor([[3e38, -3e38], [2.0**127, -(2.0**127)], [1e-45, -1e-45], [torch.nan, torch.inf], [0.0, -0.0]])
    assert_exact(backend, x, 4, lowest=k)


def test_no_order_and_no_parts_change_a_bit(backend):
    x = torch.randn(700, 21, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 21)
    x[350] *= 40
    results = []
    for order in (torch.arange(700), torch.arange(700).flip(0), torch.randperm(700, generator=torch.Generator().manual_seed(3)), x.abs().sum(1).argsort()):
        for cuts in ([], [1, 2, 690], [350]):
            counts, exponent = empty(21, 32, backend.device)
            for part in x[order].tensor_split(cuts):
                backend.run(dyadic_histogram_, counts, exponent, part.to(backend.device))
            results.append((counts, exponent))
    for counts, exponent in results:
        assert torch.equal(counts, results[0][0])
        assert torch.equal(exponent, results[0][1])
    assert (results[0][0].sum(1) == 700).all()


def test_few_neurons_at_a_time(backend, monkeypatch):
    # As in test_histogram; and more tokens than one program finds the extremes of.
    monkeypatch.setattr(pytest.importorskip("pyuniversal.kernels.histogram"), "COUNTERS", 1)
    x = torch.randn(300, 140, generator=torch.Generator().manual_seed(6)) * torch.logspace(-3, 3, 140)
    x[299] *= 30
    assert_exact(backend, x, 64)


def test_strided_rows(backend):
    whole = torch.randn(128, 40, generator=torch.Generator().manual_seed(4))
    x = whole[::2, 8:29]
    assert_exact(backend, x, 256)
    assert_exact(backend, whole[:1, :17].expand(70, 17), 256)


def test_widening_joins_neighbours():
    counts = torch.tensor([[1, 2, 3, 4, 5, 6]] * 4)
    exponent = torch.tensor([0, -3, 7, 0], dtype=torch.int32)
    widen_(counts, exponent, torch.tensor([0, -2, 9, 1000], dtype=torch.int32))
    # Bins begin at -3, -2, -1, 0, 1, 2: of twice the width they begin at -4 and -2, and at 0 and 2.
    assert counts.tolist() == [[1, 2, 3, 4, 5, 6], [0, 1, 5, 9, 6, 0], [0, 0, 6, 15, 0, 0], [0, 0, 6, 15, 0, 0]]
    assert exponent.tolist() == [0, -2, 9, 1000]


def test_powers_of_two_are_exact():
    k = range(-1023, 1024)
    assert power_of_two(torch.tensor(list(k), dtype=torch.int32)).tolist() == [math.ldexp(1.0, i) for i in k]


@pytest.mark.backend("cpu")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_threads_change_no_bit(dtype):
    x = (torch.randn(300, 16 * 5 + 3, generator=torch.Generator().manual_seed(5)) * torch.logspace(-3, 3, 83)).to(dtype)
    want = empty(83)
    _C.dyadic_histogram_(*want, x, 1)
    for threads in (2, 3, 7, 100):
        again = empty(83)
        _C.dyadic_histogram_(*again, x, threads)
        assert torch.equal(again[0], want[0])
        assert torch.equal(again[1], want[1])


def test_contract_is_checked():
    x = torch.ones(4, 3)
    counts, exponent = empty(3)
    with pytest.raises(InputError, match=r"dyadic_histogram_: x must be floating \[tokens, neurons\], not int64 \[4, 3\]"):
        dyadic_histogram_(counts, exponent, x.long())
    with pytest.raises(InputError, match=r"counts must be contiguous int64 \[3, bins\], not int64 \[2, 256\]"):
        dyadic_histogram_(counts[:2], exponent, x)
    for bins in (255, 2, 65_538):
        with pytest.raises(InputError, match=rf"the bins must be even, 4 to 65,536, not {bins}"):
            dyadic_histogram_(torch.zeros(3, bins, dtype=torch.int64), exponent, x)
    with pytest.raises(InputError, match=r"exponent must be contiguous int32 \[3\], not int64 \[3\]"):
        dyadic_histogram_(counts, exponent.long(), x)
    with pytest.raises(InputError, match="exponent is on meta, x on cpu"):
        dyadic_histogram_(counts, exponent.to("meta"), x)
    for wrong in (LOWEST_EXPONENT - 1, HIGHEST_EXPONENT + 1):
        exponent[1] = wrong
        with pytest.raises(InputError, match=rf"exponents must be within -126 and 1023, not {wrong} \(neuron 1\)"):
            dyadic_histogram_(counts, exponent, x)
    assert not counts.any()
    with pytest.raises(BackendError, match="the backend cpu cannot run here: does not take float64"):
        dyadic_histogram_(*empty(3), x.double(), backend="cpu")


X, (COUNTS, EXPONENT) = torch.ones(4, 3), empty(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((COUNTS.int(), EXPONENT, X, 1), r"dyadic_histogram_: counts must be int64, got int32"),
        ((COUNTS[:, 2:], EXPONENT, X, 1), r"dyadic_histogram_: counts must be contiguous, got the strides \[256, 1\] for the shape \[3, 254\]"),
        ((COUNTS[:, :255].contiguous(), EXPONENT, X, 1), r"dyadic_histogram_: the bins must be even, 4 to 65,536, got 255"),
        ((COUNTS[:, :2].contiguous(), EXPONENT, X, 1), r"dyadic_histogram_: the bins must be even, 4 to 65,536, got 2"),
        ((COUNTS[:, :1].repeat(1, 65_538), EXPONENT, X, 1), r"dyadic_histogram_: the bins must be even, 4 to 65,536, got 65538"),
        ((COUNTS, EXPONENT.long(), X, 1), r"dyadic_histogram_: exponent must be int32, got int64"),
        ((COUNTS, EXPONENT[:2], X, 1), r"dyadic_histogram_: the length of exponent must equal the neurons of counts \(3\), got 2"),
        ((COUNTS, EXPONENT - 1, X, 1), r"dyadic_histogram_: exponents must be within -126 and 1023, got -127 at 0"),
        ((COUNTS, EXPONENT + torch.tensor([0, 1150, 0]).int(), X, 1), r"dyadic_histogram_: exponents must be within -126 and 1023, got 1024 at 1"),
        ((COUNTS, EXPONENT, X[:, :2], 1), r"dyadic_histogram_: the columns of x must equal the neurons of counts \(3\), got 2"),
        ((COUNTS, EXPONENT, X.double(), 1), r"dyadic_histogram_: x must be float32 or float16 or bfloat16, got float64"),
        ((COUNTS, EXPONENT, X, 0), r"dyadic_histogram_: threads must be at least 1, got 0"),
    ],
)
def test_the_raw_function_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.dyadic_histogram_(*arguments)
    assert not COUNTS.any()
