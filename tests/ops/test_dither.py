"""The dither: uniform, independent between neurons, models and tokens, and fixed for ever."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal.ops._dither import dither, lowbias32, neuron_keys, token_keys


def mix(h: int) -> int:
    """lowbias32 on Python's unbounded integers."""
    h ^= h >> 16
    h = h * 0x7FEB352D % 2**32
    h ^= h >> 15
    h = h * 0x846CA68B % 2**32
    return h ^ h >> 16


def test_against_unbounded_integers():
    seed, source, neurons = 12345, 3, 7
    tokens = [0, 1, 511, 2**31 - 1, 2**31, 2**32 - 1, 2**40 + 5]
    key_n = [mix((mix(n + source * 2**22) + mix(2 * seed + 1)) % 2**32) for n in range(neurons)]
    key_t = [mix((mix(t % 2**32) + mix(2 * seed)) % 2**32) for t in tokens]
    expected = [[(mix(t ^ n) >> 8) / 2**24 for n in key_n] for t in key_t]
    assert dither(token_keys(seed, torch.tensor(tokens)), neuron_keys(seed, source, neurons)).tolist() == expected


def test_keys_of_neurons_never_collide():
    keys = torch.cat([neuron_keys(7, source, 300_000) for source in range(4)])
    assert len(keys.unique()) == 1_200_000
    assert len(lowbias32(torch.arange(-500_000, 500_000, dtype=torch.int32)).unique()) == 1_000_000


@pytest.mark.parametrize("tokens", [2**14, 2**16])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("second", [0, 1], ids=["within a model", "between models"])
def test_pairs_of_neurons_are_uncorrelated(tokens, seed, second):
    time = token_keys(seed, torch.arange(tokens))
    x = dither(time, neuron_keys(seed, 0, 512)) - 0.5
    y = x if second == 0 else dither(time, neuron_keys(seed, second, 512)) - 0.5
    r = (x.T @ y) / (x.norm(dim=0)[:, None] * y.norm(dim=0))
    z = (r if second else r[~torch.eye(512, dtype=torch.bool)]) * tokens**0.5
    assert 0.98 < z.square().mean().sqrt() < 1.02
    assert z.abs().max() < 6


def test_uniform_over_tokens_and_over_neurons():
    u = dither(token_keys(0, torch.arange(4096)), neuron_keys(0, 0, 512)).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for axis, n in ((0, 4096), (1, 512)):
        z = (u.mean(axis) - 0.5) * np.sqrt(12 * n)
        assert scipy.stats.kstest(z, "norm").pvalue > 1e-3


def test_successive_tokens_are_uncorrelated():
    u = dither(token_keys(0, torch.arange(2**16)), neuron_keys(0, 0, 256)).double() - 0.5
    for lag in (1, 2, 127, 128):
        z = (u[lag:] * u[:-lag]).mean(0) * 12 * (2**16) ** 0.5
        assert 0.8 < z.std() < 1.2, lag


def test_too_many_sources_or_columns():
    with pytest.raises(ValueError, match=r"source 1024 with 3 columns: at most 1,024 sources"):
        neuron_keys(0, 1024, 3)
