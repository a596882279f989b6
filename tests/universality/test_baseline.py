"""The rotation baseline: Haar is Haar, the study's rows are unit vectors, and rotating the covariance is rotating the activations."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal import InputError, Totals
from pyuniversal.streaming.afterwards import rotated_together
from pyuniversal.totals import SourceInfo, pack
from pyuniversal.universality import baseline, combine, matches, rotation


def draws(kind: str, width: int, count: int) -> torch.Tensor:
    return torch.stack([rotation(kind, width, seed=0, source=1, layer=2, draw=d) for d in range(count)])


def test_haar_is_orthogonal_and_uniform():
    r = draws("haar", 6, 4000)
    torch.testing.assert_close(r @ r.transpose(1, 2), torch.eye(6, dtype=torch.float64).expand(4000, 6, 6), rtol=0, atol=1e-12)
    # Every entry of a uniform rotation has mean 0 and (entry^2) ~ Beta(1/2, 5/2); QR without the signs of R's diagonal fails this on the diagonal.
    for i, j in ((0, 0), (5, 5), (2, 3)):
        assert abs(r[:, i, j].mean()) < 4 / (6 * 4000) ** 0.5
        assert scipy.stats.kstest(r[:, i, j].numpy() ** 2, scipy.stats.beta(0.5, 2.5).cdf).pvalue > 1e-3
    assert (torch.linalg.det(r) > 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_gaussian_rows_are_unit_vectors_and_not_orthogonal():
    r = draws("gaussian", 64, 20)
    torch.testing.assert_close(r.norm(dim=2), torch.ones(20, 64, dtype=torch.float64))
    gram = (r @ r.transpose(1, 2))[:, ~torch.eye(64, dtype=torch.bool)]
    assert gram.std() == pytest.approx(1 / 64**0.5, rel=0.02)


def test_draws_are_their_own():
    one = rotation("haar", 8, seed=0, source=1, layer=2, draw=3)
    assert torch.equal(one, rotation("haar", 8, seed=0, source=1, layer=2, draw=3))
    for other in ({"seed": 1}, {"source": 0}, {"layer": 0}, {"draw": 0}):
        assert not torch.allclose(one, rotation("haar", 8, **({"seed": 0, "source": 1, "layer": 2, "draw": 3} | other)))


@pytest.fixture(scope="module")
def run() -> tuple[list[np.ndarray], Totals]:
    """Two sources of 2 and 3 layers that share some signal, and whose neurons 3 and 6 never vary; centred away from their means."""
    generator = np.random.default_rng(0)
    shared = generator.standard_normal((500, 6))
    sides = [shared @ generator.standard_normal((6, n)) + generator.standard_normal((500, n)) for n in (8, 15)]
    sides[0][:, 3], sides[1][:, 6] = 1.5, 0.0
    sources = [SourceInfo("x", "mlp.post", (1, 4), 4, "hx"), SourceInfo("y", "mlp.post", (0, 2, 3), 5, "hy")]
    centre = [torch.tensor(s.mean(0) + 0.2).float() for s in sides]
    totals = Totals(sources, identity={}, n_chunks=1, centre=centre, precision="float64")
    packed = []
    for i, side in enumerate(sides):
        x = torch.tensor(side)
        totals.site[i].update(x, (500, 500, 500))
        packed.append(pack(x, centre[i], torch.arange(500), source=i, seed=0, precision="float64"))
    for i, layer, j in totals.product_keys():
        block = packed[i].columns(layer * sources[i].width, (layer + 1) * sources[i].width)
        totals.add((i, layer, j), 0, (block, block if i == j else packed[j]))
    return sides, totals


def best_rotated(x: np.ndarray, y: np.ndarray, layers: tuple[int, ...], width: int, *, source: int, kind: str, draw: int) -> np.ndarray:
    """Rotate the activations themselves and correlate."""
    rotated = [y[:, k * width : (k + 1) * width] @ rotation(kind, width, seed=3, source=source, layer=l, draw=draw).numpy().T for k, l in enumerate(layers)]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(x.T, np.concatenate(rotated, 1).T)[: x.shape[1], x.shape[1] :]
    best = r.max(1)
    best[x.std(0) == 0] = np.nan
    return best


@pytest.mark.parametrize("kind", ["haar", "gaussian"])
def test_against_rotated_activations(run, kind):
    (x, y), totals = run
    found = baseline(totals, kind=kind, draws=3, seed=3)
    for draw in range(3):
        np.testing.assert_allclose(found[0, 1][draw], best_rotated(x, y, (0, 2, 3), 5, source=1, kind=kind, draw=draw), rtol=1e-9)
        np.testing.assert_allclose(found[1, 0][draw], best_rotated(y, x, (1, 4), 4, source=0, kind=kind, draw=draw), rtol=1e-9)


@pytest.mark.parametrize("rows", [2, 3, 4096])
def test_room_changes_only_how_often_products_are_read(run, rows, monkeypatch):
    """All layers at once, two, or one by one, whatever parts the products are taken in."""
    sides, totals = run
    together = []

    def spy(layers, width, **options):
        together.append(rotated_together(layers, width, **options))
        return together[-1]

    module = importlib.import_module("pyuniversal.universality.baseline")  # the function has its name
    monkeypatch.setattr("pyuniversal.streaming.afterwards.ROTATED_ROWS", rows)
    monkeypatch.setattr(module, "ROTATED_ROWS", rows)
    monkeypatch.setattr(module, "rotated_together", spy)
    one = baseline(totals, draws=2, seed=3)
    two = baseline(totals, draws=2, seed=3, room_bytes=2 * (2 * 5 + rows) * 5 * 8)
    everything = baseline(totals, draws=2, seed=3, room_bytes=1e9)
    assert together == [1, 1, 2, 2, 2, 3]
    for pair in ((0, 1), (1, 0)):
        for found in (two, everything):
            torch.testing.assert_close(found[pair], one[pair], rtol=0, atol=0, equal_nan=True)
    for draw in range(2):
        np.testing.assert_allclose(one[0, 1][draw], best_rotated(*sides, (0, 2, 3), 5, source=1, kind="haar", draw=draw), rtol=1e-9)
        np.testing.assert_allclose(one[1, 0][draw], best_rotated(*sides[::-1], (1, 4), 4, source=0, kind="haar", draw=draw), rtol=1e-9)


def test_table_of_two_models(run):
    (x, y), totals = run
    table = combine(totals, matches(totals, top_k=3), baseline(totals, draws=4, seed=3))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(x.T, y.T)[:8, 8:]
    best = np.delete(np.delete(r, 6, 1), 3, 0).max(1)
    mine = table.xs("x")
    assert mine.index.tolist() == [(layer, n) for layer in (1, 4) for n in range(4)]
    np.testing.assert_allclose(np.delete(mine["mean_corr"].to_numpy(), 3), best, rtol=1e-9)
    chance = np.stack([best_rotated(x, y, (0, 2, 3), 5, source=1, kind="haar", draw=d) for d in range(4)])
    np.testing.assert_allclose(mine["mean_baseline"], chance.mean(0), rtol=1e-9)
    np.testing.assert_allclose(mine["baseline_spread"], chance.std(0, ddof=1), rtol=1e-8)
    np.testing.assert_allclose(mine["excess_corr"], mine["mean_corr"] - mine["mean_baseline"])
    assert mine["constant"].tolist() == [n == 3 for n in range(8)]
    assert mine["mutual"].iloc[3] == 0


def test_rounding_noise_beyond_one_stays_out_of_the_table(run):
    _, totals = run
    raw = {pair: score + torch.tensor([[0.0], [2.0]]) for pair, score in baseline(totals, draws=2, seed=3).items()}
    table = combine(totals, matches(totals, top_k=3), raw).xs("x")
    first = baseline(totals, draws=2, seed=3)[0, 1][0].numpy()
    np.testing.assert_allclose(table["mean_baseline"], (first + 1) / 2, rtol=1e-12)


def test_bad_options(run):
    with pytest.raises(InputError, match="unknown baseline 'permutation'; choose one of haar, gaussian"):
        baseline(run[1], kind="permutation")
    with pytest.raises(InputError, match="at least one draw, not 0"):
        baseline(run[1], draws=0)
