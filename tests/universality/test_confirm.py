"""Confirmation: the jackknife by hand and by direct recomputation, tables, intervals that cover, and correlations pooled over two kinds of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal import InputError, correlate
from pyuniversal.streaming import document_batches
from pyuniversal.totals import Confirmation, SourceInfo
from pyuniversal.universality import CONFIRMED_COLUMNS, Replicates, confirmed, interval, jackknife_se, r_pooled, replicates


def of_means(values: list[float], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean of batches whose own means are `values`: over all, without each, and the sizes."""
    v, m = torch.tensor(values, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    total, n = (v * m).sum(), m.sum()
    return total / n, (total - v * m) / (n - m), m


def test_jackknife_by_hand():
    whole, without, sizes = of_means([0, 3, 6], [1, 2, 3])
    # The mean is 4, and 24 / 5, 18 / 4 and 6 / 3 without each: squares of 31, 22 and -53 thirtieths, times 2 / 3.
    known = {False: ((31**2 + 22**2 + 53**2) / 900 * 2 / 3) ** 0.5}
    # Pseudo-values 0, 3, 6 (a mean's are the batches' own), h = 6, 3, 2: (16 / 5 + 1 / 2 + 4 / 1) / 3.
    known[True] = (77 / 30) ** 0.5
    for by_tokens, se in known.items():
        assert float(jackknife_se(whole, without, sizes, by_tokens=by_tokens)) == pytest.approx(se, rel=1e-14)
        # A batch without tokens says nothing.
        more = jackknife_se(whole, torch.cat([without, whole[None]]), torch.cat([sizes, torch.zeros(1)]), by_tokens=by_tokens)
        assert float(more) == pytest.approx(se, rel=1e-14)
        # Equal sizes: the standard error of the mean of 1, 2, 3 and 6, whose variance with ddof 1 is 14 / 3.
        even = of_means([1, 2, 3, 6], [5, 5, 5, 5])
        assert float(jackknife_se(*even, by_tokens=by_tokens)) == pytest.approx((14 / 3) ** 0.5 / 2, rel=1e-14)


def test_jackknife_of_equal_batches_is_the_textbook_one():
    generator = np.random.default_rng(0)
    whole, without = generator.normal(size=7), generator.normal(size=(9, 7))  # of anything, not only of means
    textbook = np.sqrt(8 / 9 * ((without - without.mean(0)) ** 2).sum(0))
    for by_tokens in (False, True):
        found = jackknife_se(torch.tensor(whole), torch.tensor(without), torch.full((9,), 123.0, dtype=torch.float64), by_tokens=by_tokens)
        np.testing.assert_allclose(found, textbook, rtol=1e-12)


def test_jackknife_by_tokens_is_that_of_the_paper(run):
    _, batch, _ = run
    whole = direct(run, 2, 0, batch >= 0)
    without = np.stack([direct(run, 2, 0, batch != b) for b in range(BATCHES)])
    sizes = np.bincount(batch)
    # As the paper writes it: g theta - sum (1 - m_j / n) theta_j, and so on.
    n, g = sizes.sum(), len(sizes)
    estimate = g * whole - sum((1 - m / n) * t for m, t in zip(sizes, without, strict=True))
    terms = [(n / m * whole - (n / m - 1) * t - estimate) ** 2 / (n / m - 1) for m, t in zip(sizes, without, strict=True)]
    found = jackknife_se(torch.tensor(whole), torch.tensor(without), torch.tensor(sizes).double(), by_tokens=True)
    np.testing.assert_allclose(found, np.sqrt(sum(terms) / g), rtol=1e-11)


def test_fewer_than_two_batches_have_no_error():
    whole, without, sizes = of_means([1, 2], [5, 0])
    assert torch.isnan(jackknife_se(whole, without, sizes))
    assert torch.isnan(torch.stack(interval(torch.tensor([0.5]), torch.tensor([torch.nan]), 1))).all()


def test_interval_is_students_on_fishers_scale():
    r, se = torch.tensor([0.0, 0.6, -0.9, 1.0], dtype=torch.float64), torch.tensor([0.1, 0.05, 0.02, 0.0], dtype=torch.float64)
    low, high = interval(r, se, 12, level=0.9)
    t = scipy.stats.t.ppf(0.95, 11)
    for n in range(3):
        z, margin = np.arctanh(float(r[n])), t * float(se[n]) / (1 - float(r[n]) ** 2)
        assert (float(low[n]), float(high[n])) == pytest.approx((np.tanh(z - margin), np.tanh(z + margin)), rel=1e-12)
    assert (float(low[3]), float(high[3])) == (1.0, 1.0)


NEURONS, BATCHES = 9, 6


@pytest.fixture(scope="module")
def run() -> tuple[list[np.ndarray], np.ndarray, Confirmation]:
    """Three sources of 9 neurons that share some signal, in 6 uneven batches; neuron 4 of the second never varies, neuron 6 of it only in batch 2."""
    generator = np.random.default_rng(0)
    batch = generator.permutation(np.repeat(np.arange(BATCHES), [30, 50, 40, 80, 60, 45]))
    shared = generator.standard_t(5, (len(batch), 5)) + generator.normal(size=(BATCHES, 5))[batch]
    sides = [shared @ generator.normal(size=(5, NEURONS)) + generator.normal(size=(len(batch), NEURONS)) for _ in range(3)]
    sides[1][:, 4], sides[1][batch != 2, 6] = 0.1, 0.3
    sources = [SourceInfo(name, "mlp.post", layers, 9 // len(layers), name) for name, layers in (("x", (0, 2, 5)), ("y", (1,)), ("z", (0, 1, 2)))]
    partners = {(i, j): torch.tensor(generator.integers(0, NEURONS, (NEURONS, 2))) for i in range(3) for j in range(3) if i != j}
    partners[0, 1][:3, 0] = torch.tensor([4, 6, -1])
    partners[0, 2][:, 0] = (partners[0, 2][:, 0] + 1) % NEURONS
    centre = [torch.tensor(side.mean(0) + 0.2) for side in sides]
    state = Confirmation(sources, partners=partners, centre=centre, batches=BATCHES, identity={})
    for b in range(BATCHES):
        own = [torch.tensor(side[batch == b]) for side in sides]
        for i, x in enumerate(own):
            state.moments[i].update(b, x)
        for (i, j), pair in state.pairs.items():
            pair.update(b, own[i], own[j])
        state.finish(b, None)
    return sides, batch, state


def direct(run, i: int, j: int, rows: np.ndarray) -> np.ndarray:
    """r by numpy of the neurons of i with their first partner in j over some tokens; NaN where one of the two never varies."""
    sides, _, state = run
    found = np.full(NEURONS, np.nan)
    for n, p in enumerate(state.pairs[i, j].partner[:, 0].tolist()):
        x, y = sides[i][rows, n], sides[j][rows, p]
        if p >= 0 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[n] = np.corrcoef(x, y)[0, 1]
    return found


def delete_one(without: np.ndarray) -> np.ndarray:
    """The textbook's standard error, of replicates [batches, neurons]."""
    return np.sqrt((BATCHES - 1) / BATCHES * ((without - without.mean(0)) ** 2).sum(0))


def test_pairs_against_direct_recomputation(run):
    _, batch, state = run
    table, _ = confirmed(state, baselines(3))
    assert table.columns.tolist() == ["model", "layer", "neuron", "other", "r_confirmed", "r_se"]
    for i, j in state.pairs:
        whole = direct(run, i, j, batch >= 0)
        without = np.stack([direct(run, i, j, batch != b) for b in range(BATCHES)])
        rows = table[(table["model"] == "xyz"[i]) & (table["other"] == "xyz"[j])]
        there = state.pairs[i, j].partner[:, 0].numpy() >= 0
        np.testing.assert_allclose(rows["r_confirmed"], whole[there], rtol=1e-11)
        np.testing.assert_allclose(rows["r_se"], delete_one(without)[there], rtol=1e-9)
    rows = table[(table["model"] == "x") & (table["other"] == "y")]
    assert rows["layer"].tolist() == [0, 0, 2, 2, 2, 5, 5, 5]  # neuron 2 of layer 0 has no partner
    assert rows["neuron"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    # Its partner never varies; varies in one batch alone, so that r has a value and no error; all others have both.
    assert np.isnan(rows["r_confirmed"]).tolist() == [True] + [False] * 7
    assert np.isnan(rows["r_se"]).tolist() == [True, True] + [False] * 6


def baselines(draws: int) -> dict[tuple[int, int], torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {(i, j): 0.1 + torch.rand(draws, NEURONS, generator=generator).double() for i in range(3) for j in range(3) if i != j}


def test_neurons_over_the_other_models(run):
    _, batch, state = run
    chance = baselines(3)
    _, table = confirmed(state, chance)
    assert table.columns.tolist() == list(CONFIRMED_COLUMNS)
    assert table.index.names == ["model", "layer", "neuron"]
    assert table.loc["x"].index.tolist() == [(layer, n) for layer in (0, 2, 5) for n in range(3)]
    for i in range(3):
        others = [j for j in range(3) if j != i]
        whole = np.stack([direct(run, i, j, batch >= 0) for j in others])
        without = np.stack([[direct(run, i, j, batch != b) for j in others] for b in range(BATCHES)])  # [batches, pairs, neurons]
        own = table.loc["xyz"[i]]
        for name, over in (("max", np.max), ("mean", np.mean), ("min", np.min)):
            np.testing.assert_allclose(own[f"{name}_corr_confirmed"], over(whole, axis=0), rtol=1e-11)
            np.testing.assert_allclose(own[f"{name}_corr_se"], delete_one(over(without, axis=1)), rtol=1e-9)
        drawn = np.stack([chance[i, j].numpy().clip(-1, 1) for j in others])  # [pairs, draws, neurons]
        np.testing.assert_allclose(own["excess_confirmed"], whole.mean(0) - drawn.mean((0, 1)), rtol=1e-11)
        spread = np.array([scipy.stats.sem(drawn[:, :, n].mean(0)) for n in range(NEURONS)])
        np.testing.assert_allclose(own["excess_se"], np.sqrt(own["mean_corr_se"] ** 2 + spread**2), rtol=1e-11)
    # One draw says nothing of its own spread.
    _, one = confirmed(state, baselines(1))
    assert one["excess_se"].isna().all()
    assert one["excess_confirmed"].notna().sum() == table["excess_confirmed"].notna().sum() > 15


def test_pairs_on_the_same_documents_err_together():
    # Both partners are one neuron: the mean of the two errs as much as one, not 1 / sqrt(2) of it.
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 400, 1))
    y += x
    sources = [SourceInfo(name, "mlp.post", (0,), 1, name) for name in "abc"]
    partners = {pair: torch.zeros(1, 1, dtype=torch.int64) for pair in ((0, 1), (0, 2))}
    state = Confirmation(sources, partners=partners, centre=[torch.zeros(1)] * 3, batches=8, identity={})
    for b in range(8):
        a, c = torch.tensor(x[b * 50 : b * 50 + 50]), torch.tensor(y[b * 50 : b * 50 + 50])
        for i, side in enumerate((a, c, c)):
            state.moments[i].update(b, side)
        for pair in state.pairs.values():
            pair.update(b, a, c)
        state.finish(b, None)
    pairs, neurons = confirmed(state, {pair: torch.zeros(2, 1) for pair in partners})
    assert neurons.loc[("a", 0, 0), "mean_corr_se"] == pytest.approx(pairs["r_se"].iloc[0], rel=1e-12)
    assert neurons.loc["b"].isna().all(axis=None)


def test_unfinished_and_single(run):
    state = Confirmation(run[2].sources[:1], partners={}, centre=[torch.zeros(9)], batches=2, identity={})
    with pytest.raises(InputError, match="2 of 2 batches of documents are not confirmed yet: repeat the command"):
        confirmed(state, {})
    state.finish(0, None)
    state.finish(1, None)
    pairs, neurons = confirmed(state, {})
    assert pairs.columns.tolist() == ["model", "layer", "neuron", "other", "r_confirmed", "r_se"]
    assert len(pairs) == 0
    assert neurons.shape == (9, len(CONFIRMED_COLUMNS))
    assert neurons.isna().all(axis=None)


def documents(count: int, pairs: int, *, topic: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of varied length and pairs of GELU neurons of Laplace factors: their lengths, and sums over each of 1, x, y, x^2, y^2 and xy.

    A document has one of six topics, which switches some neurons on for the whole of it (or one of a pair alone), and levels of its own.
    """
    generator = np.random.default_rng(seed)
    topics = generator.choice(6, size=count, p=[0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
    lengths = np.clip(80 * np.exp(generator.normal(0, 0.8, count)), 4, 800).astype(int)
    shared, threshold = generator.uniform(0.2, 0.97, pairs), generator.uniform(0, 2.5, pairs)
    on = generator.random((6, pairs)) < 0.3
    on_y = on & (generator.random((6, pairs)) < 0.7)
    levels = 0.25 * topic * generator.normal(size=(count, 8)) @ _directions(generator, 8, pairs)
    loadings = shared * _directions(generator, 12, pairs)
    sums = np.empty((count, 6, pairs))
    for document, length in enumerate(lengths):
        factors = generator.laplace(scale=0.5**0.5, size=(length, 12)) @ loadings + levels[document] - threshold
        own = np.sqrt(1 - shared**2) * generator.standard_normal((2, length, pairs))
        x, y = (
            torch.nn.functional.gelu(torch.from_numpy(factors + noise + topic * switch[topics[document]])).numpy()
            for noise, switch in zip(own, (on, on_y), strict=True)
        )
        sums[document] = np.full(pairs, length), x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)
    return lengths, sums


def _directions(generator: np.random.Generator, factors: int, pairs: int) -> np.ndarray:
    directions = generator.standard_normal((factors, pairs))
    return directions / np.linalg.norm(directions, axis=0)


def state_of(sums: np.ndarray) -> Confirmation:
    """Of sums [batches, 6, pairs]: neuron n of the one source with neuron n of the other."""
    s = torch.from_numpy(sums)
    sources = [SourceInfo(name, "mlp.post", (0,), s.shape[2], name) for name in "xy"]
    partners = {(0, 1): torch.arange(s.shape[2])[:, None]}
    state = Confirmation(sources, partners=partners, centre=[torch.zeros(s.shape[2])] * 2, batches=len(s), identity={})
    for i in (0, 1):
        n, total, square = s[:, 0], s[:, 1 + i], s[:, 3 + i]
        state.moments[i].state = torch.stack([n, total / n, square - total**2 / n], 1)
    state.pairs[0, 1].sums[..., 0] = s[:, 5]
    return state


# The third is what a handful of documents and strong topics leave of an interval: told in `interval`, and here lest it change unseen.
@pytest.mark.parametrize(
    ("count", "topic", "least", "most", "by_tokens_most"), [(120, 0.5, 0.92, 0.98, 0.75), (400, 1.0, 0.92, 0.98, 0.6), (60, 2.0, 0.86, 0.93, 0.35)]
)
def test_intervals_cover_the_truth_where_documents_have_topics(count, topic, least, most, by_tokens_most):
    # A population of documents, of which the truth is known to the bit, and samples of it, which are independent: drawn with replacement.
    lengths, sums = documents(1200, 200, topic=topic, seed=1)
    n, x, y, xx, yy, xy = sums.sum(0)
    truth = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    assert truth.min() < 0.4
    assert truth.max() > 0.85
    covered, by_tokens, by_tokens_plain = [], [], []
    for draw in range(40):
        picked = np.random.default_rng([9, draw]).integers(0, len(lengths), count)
        batch = document_batches(SimpleNamespace(documents=np.arange(count), lengths=lengths[picked] + 1), np.arange(count), seed=draw)
        per_batch = np.zeros((32, *sums.shape[1:]))
        np.add.at(per_batch, batch, sums[picked])
        found = replicates(state_of(per_batch), 0, 1)
        low, high = interval(found.whole, found.se(torch.from_numpy(per_batch[:, 0, 0])), 32)
        covered.append((low.numpy() <= truth) & (truth <= high.numpy()))
        r, tokens = found.whole.numpy(), per_batch[:, 0, 0].sum()
        by_tokens.append(np.abs(np.arctanh(r) - np.arctanh(truth)) <= 1.96 / np.sqrt(tokens - 3))
        by_tokens_plain.append(np.abs(r - truth) <= 1.96 * (1 - r**2) / np.sqrt(tokens))
    assert least <= np.mean(covered) <= most
    assert np.mean(by_tokens) < by_tokens_most
    assert np.mean(by_tokens_plain) < by_tokens_most


def tail(tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.standard_t(5, (tokens, 12))
    x = shared + 0.7 * generator.normal(size=(tokens, 12)) + 0.3
    y = shared[:, ::-1] @ (np.eye(12) + 0.4 * generator.normal(size=(12, 12))) + generator.normal(size=(tokens, 12))
    x[:, 5] = 1.5
    return x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)


@pytest.mark.parametrize("precision", ["float64", "int8"])
def test_pooled_correlations(precision):
    parts = [tail(3000, 0), tail(1500, 1)]
    dense = correlate(*(torch.tensor(v).float() for v in parts[0]), precision=precision, top_k=4)
    product, partner = dense.product, dense.partner
    assert partner[5].tolist() == [-1] * 4
    partner[3, 2] = -1
    centre = product.centre
    moments = [[torch.tensor(np.stack([np.full(12, len(v)), v.mean(0), v.var(0) * len(v)])) for v in part] for part in parts]
    x, y = (v - c.double().numpy() for v, c in zip(parts[1], centre, strict=True))
    there = partner.clamp(min=0)
    sums = torch.tensor(x.T @ y).gather(1, there)
    found = r_pooled(
        product.total.gather(1, there), dense.stderr, sums, partner, centre=centre, dense=(moments[0][0], moments[0][1]), rest=(moments[1][0], moments[1][1])
    )
    everything = [np.concatenate(side) for side in zip(*parts, strict=True)]
    for n in range(12):
        mine = [p for p in partner[n].tolist() if p >= 0]
        r = {p: np.corrcoef(everything[0][:, n], everything[1][:, p])[0, 1] for p in mine}
        if precision == "float64":
            assert found.partner[n, : len(mine)].tolist() == sorted(mine, key=lambda p: -r[p])
            np.testing.assert_allclose(found.r[n, : len(mine)], sorted(r.values(), reverse=True), rtol=1e-10)
        assert (found.partner[n, len(mine) :] == -1).all()
        assert torch.isnan(found.r[n, len(mine) :]).all()
        assert torch.isnan(found.stderr[n, len(mine) :]).all()
        for place, p in enumerate(found.partner[n, : len(mine)].tolist()):
            first = dense.stderr[n, partner[n].tolist().index(p)]
            if precision == "int8":
                assert abs(found.r[n, place] - r[p]) < 5 * found.stderr[n, place]
                assert found.stderr[n, place] > 0
            spread = np.prod([parts[0][s][:, c].std() * 3000**0.5 / (everything[s][:, c].std() * 4500**0.5) for s, c in ((0, n), (1, p))])
            assert float(found.stderr[n, place]) == pytest.approx(float(first) * spread, rel=1e-6)
    assert (found.partner != partner).any()


def test_replicates_of_several_candidates(run):
    sides, _, state = run
    second = replicates(state, 2, 1, candidate=1)
    assert isinstance(second, Replicates)
    for n, p in enumerate(state.pairs[2, 1].partner[:, 1].tolist()):
        if p not in (4, 6):
            assert float(second.whole[n]) == pytest.approx(np.corrcoef(sides[2][:, n], sides[1][:, p])[0, 1], rel=1e-11)
