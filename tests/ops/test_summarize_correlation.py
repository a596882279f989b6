"""summarize_correlation: against numpy.corrcoef, sorting, searchsorted and scipy on the full matrix, both sides, with dead neurons and too few partners."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal import _C
from pyuniversal.errors import InputError
from pyuniversal.ops import Columns, correlations, merge_correlations, summarize_correlation
from pyuniversal.ops.summarize_correlation import HISTOGRAM_EDGES


def block(n: int = 40, m: int = 25, tokens: int = 600, seed: int = 0):
    """A covariance block about centres that are not the means, and the correlations it must give."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((tokens, 10))
    x = shared @ generator.standard_normal((10, n)) + generator.standard_normal((tokens, n)) + 3
    y = shared @ generator.standard_normal((10, m)) + generator.standard_normal((tokens, m)) - 1
    x[:, 7], y[:, 11] = 2.5, 0.0
    centre_x, centre_y = x.mean(0) + 0.1 * generator.standard_normal(n), y.mean(0) + 0.1
    total = (x - centre_x).T @ (y - centre_y)
    noise = lambda n: torch.tensor(generator.uniform(0, 0.1, (2, n)))  # noqa: E731
    side = lambda v, c: Columns(  # noqa: E731
        torch.tensor(((v - v.mean(0)) ** 2).sum(0) * (np.ptp(v, axis=0) > 0)),
        torch.tensor(v.mean(0) - c),
        *noise(v.shape[1]),
    )
    with np.errstate(invalid="ignore"):
        exact = np.corrcoef(x.T, y.T)[:n, n:]
    exact[7], exact[:, 11] = np.nan, np.nan
    return torch.tensor(total), tokens, side(x, centre_x), side(y, centre_y), exact


def on(device: str, *values):
    return [
        v.to(device) if isinstance(v, torch.Tensor) else Columns(*(f.to(device) for f in vars(v).values())) if isinstance(v, Columns) else v for v in values
    ]


@pytest.mark.parametrize("cuts", [(0, 13, 40), (0, 7, 8, 30, 40)], ids=str)
@pytest.mark.parametrize("top_k", [1, 5, 50])
def test_parts_of_the_rows_merge_to_the_whole_of_the_columns(top_k, cuts):
    total, tokens, x, y, _ = block()
    total[20], x.M2[20], x.shift[20] = total[3], x.M2[3], x.shift[3]  # equal r: the lower index comes first
    _, whole = summarize_correlation(total, tokens, x, y, top_k=top_k, backend="reference")
    merged = None
    for start, stop in itertools.pairwise(cuts):
        rows = slice(start, stop)
        _, part = summarize_correlation(total[rows], tokens, x.some(rows), y, top_k=top_k, backend="reference")
        merged = part if merged is None else merge_correlations(merged, part, offset=start, top_k=min(top_k, 40))
    for name in ("top", "top_index", "top_stderr", "bottom", "bottom_index", "histogram"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), err_msg=name)
    for name in ("mean", "var", "skew", "kurt"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("top_k", [1, 5, 50])
def test_against_numpy_and_scipy(backend, top_k):
    total, tokens, x, y, exact = block()
    rows, columns = backend.run(summarize_correlation, *on(backend.device, total, tokens, x, y), top_k=top_k)
    for got, r, (mine, theirs) in ((rows, exact, (x, y)), (columns, exact.T, (y, x))):
        for n in range(r.shape[0]):
            alive = np.flatnonzero(~np.isnan(r[n]))
            order = alive[np.argsort(-r[n, alive])]
            k = min(top_k, r.shape[1])
            best, worst = order[:k], order[::-1][:k]
            assert got.top_index[n, : len(best)].tolist() == best.tolist()
            assert got.bottom_index[n, : len(worst)].tolist() == worst.tolist()
            np.testing.assert_allclose(got.top[n, : len(best)].cpu(), r[n, best], atol=1e-12)
            assert got.top_index[n, len(best) :].tolist() == [-1] * (k - len(best))
            assert torch.isnan(got.top[n, len(best) :]).all()
            if not len(alive):
                assert torch.isnan(got.mean[n])
                assert got.histogram[n].sum() == 0
                continue
            sx, sy = (mine.M2[n] / tokens).item(), (theirs.M2[best] / tokens).numpy()
            vx, vy = mine.added_variance[n].item(), theirs.added_variance[best].numpy()
            apart = sx * vy + sy * vx
            together = sx / sy * theirs.added_fourth[best].numpy() + sy / sx * mine.added_fourth[n].item()
            weight = np.minimum(np.abs(r[n, best]), 1)
            square = ((1 - weight) * apart + weight * together + vx * vy) / (tokens * sx * sy)
            np.testing.assert_allclose(got.top_stderr[n, : len(best)].cpu(), np.sqrt(square), rtol=1e-9)
            np.testing.assert_array_equal(got.histogram[n].cpu(), np.histogram(r[n, alive], np.linspace(-1, 1, 100))[0])
            values = r[n, alive]
            expected = (values.mean(), values.var(), scipy.stats.skew(values), scipy.stats.kurtosis(values, fisher=False))
            np.testing.assert_allclose([got.mean[n].item(), got.var[n].item(), got.skew[n].item(), got.kurt[n].item()], expected, rtol=1e-9, atol=1e-14)


def test_float32_totals(backend):
    total, tokens, x, y, exact = block()
    rows, _ = backend.run(summarize_correlation, *on(backend.device, total.float(), tokens, x, y), top_k=3)
    np.testing.assert_allclose(rows.top[0].cpu(), np.sort(exact[0][~np.isnan(exact[0])])[::-1][:3], atol=1e-6)


def test_raw_r_may_exceed_one_and_is_counted_in_the_last_bin(backend):
    one = Columns(torch.ones(2, dtype=torch.float64), *torch.zeros(3, 2, dtype=torch.float64))
    total = torch.tensor([[1.01, -1.02], [0.0, 1.0]])
    rows, _ = backend.run(summarize_correlation, *on(backend.device, total, 10, one, one), top_k=2)
    assert rows.top[0].tolist() == pytest.approx([1.01, -1.02])
    assert rows.histogram[0, [0, 98]].tolist() == [1, 1]
    assert rows.histogram[1, 98].item() == 1


def test_full_matrix():
    total, tokens, x, y, exact = block(seed=3)
    np.testing.assert_allclose(correlations(total, tokens, x, y), exact, atol=1e-12)


def unit(n: int) -> Columns:
    """A side for which r is the total."""
    return Columns(torch.ones(n, dtype=torch.float64), *torch.zeros(3, n, dtype=torch.float64))


def neurons(n: int, seed: int = 0) -> Columns:
    """Sides whose r is the same on every machine: M2 are squares, since libraries round the roots of others in two ways."""
    generator = np.random.default_rng(seed)
    M2 = (generator.integers(1400, 2400, n) / 64) ** 2
    return Columns(*map(torch.tensor, (M2, generator.uniform(-0.1, 0.1, n), *generator.uniform(0, 0.1, (2, n)))))


def assert_summary(got, r: np.ndarray, k: int) -> None:
    """What `got` keeps of r [neurons, partners] (NaN where there is none) against numpy and scipy; to the bit, but for the moments."""
    valid = ~np.isnan(r)
    edges = HISTOGRAM_EDGES.numpy()
    for name, sign in (("top", 1), ("bottom", -1)):
        order = np.argsort(np.where(valid, -sign * r, np.inf), axis=1, kind="stable")[:, :k]  # of equal ones the first
        found = np.take_along_axis(valid, order, 1)
        np.testing.assert_array_equal(getattr(got, name).cpu(), np.where(found, np.take_along_axis(r, order, 1), np.nan))
        np.testing.assert_array_equal(getattr(got, f"{name}_index").cpu(), np.where(found, order, -1))
    bins = np.clip(np.searchsorted(edges, r, side="left") - 1, 0, 98) + 99 * np.arange(len(r))[:, None]
    np.testing.assert_array_equal(got.histogram.cpu().flatten(), np.bincount(bins[valid], minlength=99 * len(r)))
    # Two passes in extended precision. Of fewer than three values, or of equal ones, there are no moments to speak of.
    numbers = valid.sum(1)
    means = np.where(valid, r, 0).astype(np.longdouble).sum(1) / np.maximum(numbers, 1)
    d = np.where(valid, r - means[:, None], 0)
    powers = [power.sum(1) / np.maximum(numbers, 1) for power in (d * d, d * d * d, d * d * d * d)]
    some = (numbers >= 3) & (powers[0] > 1e-20)
    mean, (var, third, fourth) = means[some].astype(float), (power[some].astype(float) for power in powers)
    got_mean, got_var, got_skew, got_kurt = (getattr(got, name).cpu().numpy()[some] for name in ("mean", "var", "skew", "kurt"))
    assert (np.abs(got_mean - mean) <= 1e-9 * np.sqrt(var)).all()
    np.testing.assert_allclose(got_var, var, rtol=1e-9)
    np.testing.assert_allclose(got_skew, third / var**1.5, atol=1e-9)
    np.testing.assert_allclose(got_kurt, fourth / var**2, rtol=1e-9)
    assert got.mean.isnan().cpu().tolist() == (numbers == 0).tolist()


def assert_both(backend, total: torch.Tensor, x: Columns, y: Columns, k: int, tokens: int = 1000) -> None:
    scale = np.sqrt(x.M2.numpy())[:, None] * np.sqrt(y.M2.numpy())
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (total.double().numpy() - tokens * (x.shift.numpy()[:, None] * y.shift.numpy())) / scale
    r[x.M2.numpy() == 0] = np.nan
    r[:, y.M2.numpy() == 0] = np.nan
    rows, columns = backend.run(summarize_correlation, total.to(backend.device), tokens, *on(backend.device, x, y), top_k=k)
    assert rows.top.shape == (total.shape[0], min(k, total.shape[1]))
    assert columns.top.shape == (total.shape[1], min(k, total.shape[0]))
    assert_summary(rows, r, min(k, total.shape[1]))
    assert_summary(columns, r.T, min(k, total.shape[0]))


# The kernel works in groups of 256 rows, 8 at a time, and stripes of 256 columns, 128 at a time.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 300), (7, 511), (8, 128), (255, 129), (256, 256), (257, 40), (511, 3), (513, 385), (1025, 130)])
def test_ragged_sizes(backend, n, m, dtype):
    total = torch.tensor(np.random.default_rng(n).standard_normal((n, m)) * 200).to(dtype)
    assert_both(backend, total, neurons(n), neurons(m, 1), 20)


def test_of_equal_correlations_the_first_is_better(backend):
    # Covariances are few integers, scales all one: each r occurs dozens of times in its row. One value alone, and two, leave nothing but ties.
    generator = np.random.default_rng(5)
    for low, high in ((0, 20), (3, 4), (-1, 1)):
        total = torch.tensor(generator.integers(low, high, (530, 300))).float() / 50
        assert_both(backend, total, unit(530), unit(300), 50)


def test_zeros_are_equal_whatever_their_sign(backend):
    generator = np.random.default_rng(16)
    total = torch.tensor(generator.choice([0.0, -0.0, 0.5, -0.5], (80, 70), p=[0.45, 0.45, 0.05, 0.05]))
    assert_both(backend, total, unit(80), unit(70), 40)


def test_ties_beside_many_smaller_and_larger_values(backend):
    generator = np.random.default_rng(6)
    total = torch.tensor(generator.uniform(-1, 1, (300, 600)))
    total[generator.random((300, 600)) < 0.7] = 0.25
    assert_both(backend, total, unit(300), unit(600), 120)


@pytest.mark.parametrize("k", [1, 31, 33, 128, 300, 1200, 5000])
def test_any_number_of_partners(backend, k):
    total = torch.tensor(np.random.default_rng(7).standard_normal((1300, 12)) * 200)
    assert_both(backend, total, neurons(1300), neurons(12), k)


def test_rising_and_falling_correlations(backend):
    rising = torch.linspace(-0.9, 0.9, 700, dtype=torch.float64)[:, None] + torch.linspace(-0.1, 0.1, 290, dtype=torch.float64)
    assert_both(backend, rising, unit(700), unit(290), 10)
    assert_both(backend, -rising, unit(700), unit(290), 10)


def test_histogram_on_and_beside_its_edges(backend):
    e = HISTOGRAM_EDGES
    up, down = (torch.nextafter(e, torch.full_like(e, limit)) for limit in (torch.inf, -torch.inf))
    total = torch.cat([e, up, down, torch.tensor([1.01, -1.01, 1e30, -1e30, 0.0, -0.0], dtype=torch.float64)])
    total = total[torch.tensor(np.random.default_rng(8).permutation(len(total)))]
    rows, _ = backend.run(summarize_correlation, total.expand(9, -1).to(backend.device), 10, *on(backend.device, unit(9), unit(len(total))))
    expected = np.bincount(np.clip(np.searchsorted(e.numpy(), total.numpy()) - 1, 0, 98), minlength=99)
    np.testing.assert_array_equal(rows.histogram.cpu(), np.tile(expected, (9, 1)))


def test_neurons_that_never_vary_are_nobodys_partners(backend):
    x, y = neurons(300), neurons(280)
    x.M2[[0, 5, 255, 256, 299]], y.M2[:20], y.M2[[100, 279]] = 0, 0, 0
    total = torch.tensor(np.random.default_rng(9).standard_normal((300, 280)) * 200).float()
    assert_both(backend, total, x, y, 270)
    y.M2[:] = 0
    assert_both(backend, total, x, y, 50)
    rows, columns = backend.run(summarize_correlation, total.to(backend.device), 1000, *on(backend.device, x, y))
    for got in (rows, columns):
        assert (got.top_index == -1).all()
        assert (got.bottom_index == -1).all()
        for name in ("top", "top_stderr", "bottom", "mean", "var", "skew", "kurt"):
            assert getattr(got, name).isnan().all()
        assert got.histogram.sum() == 0


def test_a_total_of_nan_is_skipped_like_a_neuron_that_never_varies(backend):
    total = torch.tensor(np.random.default_rng(10).standard_normal((40, 300)) * 200)
    total[3, 5] = total[0, 0] = total[7, :] = torch.nan
    assert_both(backend, total, neurons(40), neurons(300), 50)


def test_rows_may_be_strided(backend):
    wide = torch.tensor(np.random.default_rng(11).standard_normal((300, 500)) * 200).float()
    assert_both(backend, wide[::2, 17:400], neurons(150), neurons(383), 5)
    assert_both(backend, wide[:1].expand(20, -1), neurons(20), neurons(500), 5)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_moments_of_correlations_far_from_zero(backend, spread):
    # The sums of the powers of r about zero would leave a kurtosis wrong by 1e-5 at the spread 1e-3.
    generator = np.random.default_rng(12)
    noise = spread * generator.standard_normal((300, 300))
    total = 0.3 + noise
    total[:16] += 0.01  # the first rows tell nothing of the others
    assert_both(backend, torch.tensor(total), unit(300), unit(300), 5)
    assert_both(backend, torch.tensor(np.linspace(-0.9, 0.9, 300)[:, None] + noise), unit(300), unit(300), 5)


@pytest.mark.parametrize("backend", [f"cpu {isa}" for isa in _C.instruction_sets()], indirect=True)  # the others have no threads of their own
def test_the_number_of_threads_changes_no_bit(backend):
    total = torch.tensor(np.random.default_rng(13).integers(-300, 300, (1100, 900))).float()
    x, y = neurons(1100), neurons(900)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(backend.run(summarize_correlation, total, 1000, x, y, top_k=40))
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        for got, want in zip(again, results[0], strict=True):
            for name, value in vars(want).items():
                assert torch.equal(getattr(got, name), value), name


def test_totals_without_neighbouring_columns_are_for_the_reference():
    total, tokens, x, y, _ = block()
    transposed = total.T.contiguous().T
    assert summarize_correlation.explain(transposed, tokens, x, y)["cpu"] == "needs a total with neighbouring columns"
    rows, _ = summarize_correlation(transposed, tokens, x, y)
    assert torch.equal(rows.top_index, summarize_correlation(total, tokens, x, y)[0].top_index)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_a_transposed_total_is_read_as_it_lies(backend):
    total = torch.tensor(np.random.default_rng(14).standard_normal((70, 190)) * 200).float()
    assert_both(backend, total.T, neurons(190), neurons(70, 1), 40)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_tiles_of_any_shape_leave_the_same(backend, steps):
    kernel = pytest.importorskip("pyuniversal.kernels.summarize_correlation")
    generator = np.random.default_rng(15)
    r = torch.tensor(generator.normal(0.1, 0.3, (170, 290)).clip(-1.1, 1.1))
    r[5], r[:, 288] = torch.nan, torch.nan
    pilots = [torch.tensor(generator.uniform(-0.1, 0.1, n)) for n in r.shape]
    sides = [torch.stack([torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64), p]) for n, p in zip(r.shape, pilots, strict=True)]
    arguments = [v.to(backend.device) for v in sides]
    both = kernel.summarize(r.to(backend.device), 10, *arguments, tile=kernel.TILE, steps=steps)
    for side, lines, pilot in zip(both, (r, r.T), pilots, strict=True):
        d = (lines - pilot[:, None]).nan_to_num(0.0)
        np.testing.assert_allclose(side.sums.cpu(), torch.stack([(d**power).sum(1) for power in (1, 2, 3, 4)]), atol=1e-11)
        assert side.counts.shape == (len(lines), 104)
        edges = HISTOGRAM_EDGES.numpy().copy()
        edges[[0, -1]] = -2, 2
        for line, counts in zip(lines.numpy(), side.counts.cpu().numpy(), strict=True):
            np.testing.assert_array_equal(counts, np.pad(np.histogram(line[~np.isnan(line)], edges)[0], (0, 5)))
        for way, found in zip((lines, -lines), side.groups.cpu(), strict=True):
            padded = torch.nn.functional.pad(way.nan_to_num(-torch.inf), (0, -way.shape[1] % 32), value=-torch.inf)
            assert torch.equal(found, padded.unflatten(1, (-1, 32)).amax(2))


def outputs(n: int, m: int, k: int) -> list[torch.Tensor]:
    sides = ((n, k), (m, k))
    return [
        t
        for lines, kept in sides
        for t in (
            torch.zeros(2, lines, kept, dtype=torch.float64),
            torch.zeros(2, lines, kept, dtype=torch.int64),
            torch.zeros(lines, 99, dtype=torch.int64),
            torch.zeros(4, lines, dtype=torch.float64),
        )
    ]


TOTAL, X, Y = torch.zeros(4, 3), torch.ones(3, 4, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
OUT = outputs(4, 3, 2)  # best, index, histogram, moments of x, the same of y


def changed(place: int, value: torch.Tensor) -> list[torch.Tensor]:
    return [*OUT[:place], value, *OUT[place + 1 :]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TOTAL.half(), 9, X, Y, HISTOGRAM_EDGES, *OUT, 1), "total must be float32 or float64, got float16"),
        ((TOTAL.T.contiguous().T, 9, X, Y, HISTOGRAM_EDGES, *OUT, 1), r"total must have neighbouring columns .* got the strides \[1, 4\]"),
        ((TOTAL[0], 9, X, Y, HISTOGRAM_EDGES, *OUT, 1), r"total must have the dimensions \[neurons of x, neurons of y\], got the shape \[3\]"),
        ((TOTAL, 9, X.float(), Y, HISTOGRAM_EDGES, *OUT, 1), "x must be float64, got float32"),
        ((TOTAL, 9, X, X, HISTOGRAM_EDGES, *OUT, 1), r"the neurons of y must equal the columns of total \(3\), got 4"),
        ((TOTAL, 9, X[:2], Y, HISTOGRAM_EDGES, *OUT, 1), r"the first dimension of x must equal scale, shift and pilot \(3\), got 2"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES.float(), *OUT, 1), "edges must be float64, got float32"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES[1:], *OUT, 1), r"the number of edges must equal bins \+ 1 \(100\), got 99"),
        ((TOTAL, 9, X, Y, 2 * HISTOGRAM_EDGES, *OUT, 1), r"edges must be spaced evenly from -1 to 1, got -2\.0+ at 0"),
        ((TOTAL, 9, X, Y, torch.full((100,), torch.nan).double(), *OUT, 1), "edges must be spaced evenly from -1 to 1, got -?nan at 0"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(0, OUT[0].float()), 1), "x_best must be float64, got float32"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(1, OUT[1][:, :, :1].contiguous()), 1), r"x_index: dimension 2 must equal that of x_best \(2\), got 1"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(2, OUT[2][:, 1:]), 1), "x_histogram must be contiguous"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(3, OUT[3][0]), 1), r"x_moments must have the dimensions \[4, neurons\], got the shape \[4\]"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(4, OUT[0]), 1), r"y_best: dimension 1 must equal the columns of total \(3\), got 4"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(5, OUT[5].int()), 1), "y_index must be int64, got int32"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(6, OUT[6][:2]), 1), r"y_histogram: dimension 0 must equal the columns of total \(3\), got 2"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *changed(7, OUT[7][:3]), 1), r"y_moments: dimension 0 must equal mean, var, skew, kurt \(4\), got 3"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *outputs(4, 3, 0), 1), r"x_best must have room for at least one r, got the shape \[2, 4, 0\]"),
        ((TOTAL, 9, X, Y, HISTOGRAM_EDGES, *OUT, 0), "threads must be at least 1, got 0"),
        (([[1.0]], 9, X, Y, HISTOGRAM_EDGES, *OUT, 1), "total must be a tensor, got a list"),
    ],
)
def test_the_raw_function_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=f"summarize_correlation: .*{message}"):
        _C.summarize_correlation(*arguments)


def test_contract_is_checked():
    total, tokens, x, y, _ = block()
    with pytest.raises(InputError, match="top_k must be at least 1, not 0"):
        summarize_correlation(total, tokens, x, y, top_k=0)
    with pytest.raises(InputError, match=r"x.M2 must be float64 \[40\], not float64 \[25\]"):
        summarize_correlation(total, tokens, y, y)
    with pytest.raises(InputError, match="at least 2 tokens, not 1"):
        summarize_correlation(total, 1, x, y)
