"""summarize_correlation: against numpy.corrcoef and scipy on the full matrix, both sides, with dead neurons and too few partners."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import Columns, correlations, summarize_correlation


def block(n: int = 40, m: int = 25, tokens: int = 600, seed: int = 0):
    """A covariance block about centres that are not the means, and the correlations it must give."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((tokens, 10))
    x = shared @ generator.standard_normal((10, n)) + generator.standard_normal((tokens, n)) + 3
    y = shared @ generator.standard_normal((10, m)) + generator.standard_normal((tokens, m)) - 1
    x[:, 7], y[:, 11] = 2.5, 0.0
    centre_x, centre_y = x.mean(0) + 0.1 * generator.standard_normal(n), y.mean(0) + 0.1
    total = (x - centre_x).T @ (y - centre_y)
    side = lambda v, c: Columns(  # noqa: E731
        torch.tensor(((v - v.mean(0)) ** 2).sum(0) * (np.ptp(v, axis=0) > 0)), torch.tensor(v.mean(0) - c), torch.tensor(generator.uniform(0, 0.1, v.shape[1]))
    )
    with np.errstate(invalid="ignore"):
        exact = np.corrcoef(x.T, y.T)[:n, n:]
    exact[7], exact[:, 11] = np.nan, np.nan
    return torch.tensor(total), tokens, side(x, centre_x), side(y, centre_y), exact


def on(device: str, *values):
    return [
        v.to(device) if isinstance(v, torch.Tensor) else Columns(*(f.to(device) for f in vars(v).values())) if isinstance(v, Columns) else v for v in values
    ]


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
            v = (mine.added_variance[n] * tokens / mine.M2[n]).item()
            w = (theirs.added_variance[best] * tokens / theirs.M2[best]).numpy()
            np.testing.assert_allclose(got.top_stderr[n, : len(best)].cpu(), np.sqrt((v + w + v * w) / tokens), rtol=1e-12)
            np.testing.assert_array_equal(got.histogram[n].cpu(), np.histogram(r[n, alive], np.linspace(-1, 1, 100))[0])
            values = r[n, alive]
            expected = (values.mean(), values.var(), scipy.stats.skew(values), scipy.stats.kurtosis(values, fisher=False))
            np.testing.assert_allclose([got.mean[n].item(), got.var[n].item(), got.skew[n].item(), got.kurt[n].item()], expected, rtol=1e-9, atol=1e-14)


def test_float32_totals(backend):
    total, tokens, x, y, exact = block()
    rows, _ = backend.run(summarize_correlation, *on(backend.device, total.float(), tokens, x, y), top_k=3)
    np.testing.assert_allclose(rows.top[0].cpu(), np.sort(exact[0][~np.isnan(exact[0])])[::-1][:3], atol=1e-6)


def test_raw_r_may_exceed_one_and_is_counted_in_the_last_bin(backend):
    one = Columns(torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    total = torch.tensor([[1.01, -1.02], [0.0, 1.0]])
    rows, _ = backend.run(summarize_correlation, *on(backend.device, total, 10, one, one), top_k=2)
    assert rows.top[0].tolist() == pytest.approx([1.01, -1.02])
    assert rows.histogram[0, [0, 98]].tolist() == [1, 1]
    assert rows.histogram[1, 98].item() == 1


def test_full_matrix():
    total, tokens, x, y, exact = block(seed=3)
    np.testing.assert_allclose(correlations(total, tokens, x, y), exact, atol=1e-12)


def test_contract_is_checked():
    total, tokens, x, y, _ = block()
    with pytest.raises(InputError, match="top_k must be at least 1, not 0"):
        summarize_correlation(total, tokens, x, y, top_k=0)
    with pytest.raises(InputError, match=r"x.M2 must be float64 \[40\], not float64 \[25\]"):
        summarize_correlation(total, tokens, y, y)
    with pytest.raises(InputError, match="at least 2 tokens, not 1"):
        summarize_correlation(total, 1, x, y)
