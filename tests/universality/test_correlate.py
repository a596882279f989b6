"""correlate: the library in one function, against numpy.corrcoef."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyuniversal
from pyuniversal import ActivationError, InputError, correlate


def pair(tokens: int = 40_000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy-tailed activations; columns 0-19 of y are noisy copies of columns 19-0 of x; x 30 and y 40 never vary."""
    generator = np.random.default_rng(seed)
    x = torch.tensor(generator.standard_t(5, (tokens, 60))).float()
    y = torch.tensor(generator.standard_t(5, (tokens, 50))).float()
    y[:, :20] += torch.arange(1, 21) / 5 * x[:, :20].flip(1)
    x, y = torch.nn.functional.gelu(x), torch.nn.functional.gelu(y)
    x[:, 30], y[:, 40] = 1.0, -0.1
    return x, y


def exact(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    a, b = x.double().numpy(), y.double().numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = a.T @ b / np.linalg.norm(a, axis=0)[:, None] / np.linalg.norm(b, axis=0)
    r[30], r[:, 40] = np.nan, np.nan
    return r


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-13), ("float32", 2e-6), ("bf16", 1e-3)])
def test_all_pairs(precision, tolerance):
    x, y = pair()
    got = correlate(x, y, precision=precision)
    np.testing.assert_allclose(got.full(), exact(x, y), atol=tolerance)
    assert got.partner[:20, 0].tolist() == list(range(19, -1, -1))
    assert got.transposed.partner[:20, 0].tolist() == list(range(19, -1, -1))
    assert (got.stderr[got.partner >= 0] == 0).all()
    assert torch.isnan(got.r[30]).all()
    assert (got.partner[30] == -1).all()
    assert 40 not in got.partner
    assert got.r.shape == (60, 50)
    torch.testing.assert_close(got.transposed.full(), got.full().T, equal_nan=True)
    assert got.tokens == 40_000


def test_int8_errs_as_much_as_it_says():
    x, y = pair()
    r = exact(x, y)
    z = []
    for seed in range(6):
        got = correlate(x, y, precision="int8", seed=seed)
        alive = ~torch.isnan(got.r)
        truth = torch.tensor(r).gather(1, got.partner.clamp(min=0))
        z.append(((got.r - truth) / got.stderr)[alive])
    z = torch.cat(z)
    assert 0.95 < z.std() < 1.05
    assert z.mean().abs() < 0.05
    assert got.stderr[0, 0] > 0


def firing(tokens: int, neurons: int, nu: float, rarest: float, seed: int) -> list[torch.Tensor]:
    """Two models' GELU neurons on eight common Student-t factors: each fires on a share of the tokens, from a half down to `rarest`."""
    generator = np.random.default_rng(seed)
    factors = generator.standard_t(nu, (tokens, 8))
    directions = generator.standard_normal((8, neurons))
    directions /= np.linalg.norm(directions, axis=0)
    sides = []
    for _ in range(2):
        shared = generator.uniform(0.3, 0.99, neurons)
        pre = shared * (factors @ directions) + np.sqrt(1 - shared**2) * generator.standard_t(nu, (tokens, neurons))
        pre /= pre.std(0)
        threshold = np.diagonal(np.quantile(pre, 1 - np.geomspace(0.5, rarest, neurons), axis=0))
        sides.append(torch.nn.functional.gelu(torch.tensor(3 * (pre - threshold))).float())
    return sides


@pytest.mark.parametrize("rarest", [0.3, 0.01, 0.001])
@pytest.mark.parametrize("nu", [3, 5])
def test_the_stated_error_holds_for_heavy_tails_and_rare_neurons(nu, rarest):
    # Best pairs fire together, where the rounding is coarsest: taking the two sides as independent would understate their error by a third.
    everything, best, slopes = [], [], []
    for seed in range(4):
        x, y = firing(16_384, 256, nu, rarest, seed)
        got = correlate(x, y, precision="int8", seed=seed, top_k=256)
        truth = torch.tensor(np.corrcoef(x.double().T, y.double().T)[:256, 256:]).gather(1, got.partner)  # [neurons, 256], of the same pairs
        raw = got.summary.top
        z = (raw - truth) / got.stderr
        everything.append(z.flatten())
        best.append(z[truth == truth.amax(1, keepdim=True)])
        slopes.append(((raw * truth).sum() / (truth * truth).sum()).item())
    everything, best = torch.cat(everything), torch.cat(best)
    assert 0.9 < everything.std() < 1.1
    assert 0.9 < best.std() < 1.1
    assert everything.mean().abs() < 0.02
    assert best.mean().abs() < 0.2  # pairs with a neuron in common err together: the mean of 256 has a standard error of 0.1
    assert np.mean(slopes) == pytest.approx(1, abs=1e-3)


def test_top_k_is_the_head_of_the_whole():
    x, y = pair(2000)
    whole = correlate(x, y, precision="float64")
    head = correlate(x, y, precision="float64", top_k=3)
    assert torch.equal(head.partner, whole.partner[:, :3])


def test_one_token_count_for_all_precisions_and_seeds_matter_to_int8_alone():
    x, y = pair(500)
    assert torch.equal(correlate(x, y, seed=0).full().nan_to_num(), correlate(x, y, seed=1).full().nan_to_num())
    assert not torch.equal(correlate(x, y, precision="int8", seed=0).full().nan_to_num(), correlate(x, y, precision="int8", seed=1).full().nan_to_num())


def test_constant_columns_of_any_dtype_are_nan():
    for value in (0.1, 1e6 + 0.1, -0.17):
        x = torch.randn(777, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x[:, 1] = value
        for precision in ("float64", "int8"):
            assert torch.isnan(correlate(x, x, precision=precision).full()).tolist() == [[False, True], [True, True]]


def test_parameters_are_taken_without_their_gradient():
    x = torch.randn(100, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert correlate(x, x).partner[:, 0].tolist() == [0, 1, 2]


def test_bad_input():
    x, y = pair(100)
    with pytest.raises(InputError, match="x has 100 rows and y has 99: both must hold the activations of the same tokens"):
        correlate(x, y[:99])
    with pytest.raises(InputError, match=r"y must be a floating matrix \[tokens, neurons\], not torch.int64 of shape"):
        correlate(x, y.long())
    with pytest.raises(InputError, match="at least two tokens"):
        correlate(x[:1], y[:1])
    with pytest.raises(InputError, match="unknown precision 'fp8'; choose one of int8, bf16, float32, float64"):
        correlate(x, y, precision="fp8")
    y[17, 3] = float("nan")
    with pytest.raises(ActivationError, match="y is nan at token 17, neuron 3; 1 neurons are affected"):
        correlate(x, y)
    assert issubclass(ActivationError, ValueError)
    assert issubclass(InputError, pyuniversal.PyUniversalError)
