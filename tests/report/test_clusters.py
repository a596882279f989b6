from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, norm

from pyuniversal.report.clusters import distances, dominance, draw_clusters


def cells_of(layers):
    return pd.MultiIndex.from_tuples([(model, layer) for model, count in layers.items() for layer in range(count)], names=["model", "layer"])


def cliff(values, universal):
    given = ~np.isnan(values)
    own, rest = values[given & universal], values[given & ~universal]
    return 2 * mannwhitneyu(own, rest).statistic / (len(own) * len(rest)) - 1


@pytest.fixture
def table():
    """Four layers of unequal size, heavy ties, gaps; layer 2 has no universal neuron, layer 3 no other."""
    generator = np.random.default_rng(3)
    layer = np.repeat([0, 1, 2, 3], [40, 70, 25, 6])
    values = generator.normal(size=len(layer)).round(1)
    values[[1, 45, 100]] = np.nan
    universal = (generator.random(len(layer)) < 0.3) & (layer != 2) | (layer == 3)
    universal[[1, 100]] = True, False
    shuffled = generator.permutation(len(layer))
    return values[shuffled], universal[shuffled], layer[shuffled]


def test_delta_is_mann_whitney_with_ties(table):
    values, universal, layer = table
    assert len(np.unique(values[~np.isnan(values)])) < 60, "without ties they would not be tested"
    pairs = dominance(values, universal, layer, 4)
    assert pairs.delta(np.ones((1, 4)))[0] == pytest.approx(cliff(values, universal), abs=1e-14)
    assert pairs.universal.tolist() == [(universal & ~np.isnan(values) & (layer == i)).sum() for i in range(4)]
    assert pairs.others.sum() == (~universal & ~np.isnan(values)).sum()
    assert pairs.by_layer()[:2] == pytest.approx([cliff(values[layer == i], universal[layer == i]) for i in (0, 1)], abs=1e-14)
    assert np.isnan(pairs.by_layer()[2:]).all()


def test_a_weight_is_so_many_copies_of_a_layer(table):
    values, universal, layer = table
    weights = np.array([[2, 0, 1, 3], [1, 1, 0, 0], [0, 3, 2, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    found = dominance(values, universal, layer, 4).delta(weights.astype(float))
    for row, delta in zip(weights[:3], found[:3], strict=True):
        copies = np.repeat(np.arange(len(layer)), row[layer])
        assert delta == pytest.approx(cliff(values[copies], universal[copies]), abs=1e-14)
    assert np.isnan(found[3:]).all(), "without universal neurons, or without others, there is no effect"


def test_resamples_have_the_moments_of_models_then_layers():
    layers = {"a": 3, "b": 6, "c": 2}
    cells, n = cells_of(layers), 40_000
    weights = draw_clusters(cells, resamples=n, seed=1)
    assert weights.mean(0) == pytest.approx(np.ones(11), abs=0.03)
    models = cells.get_level_values("model")
    times = np.stack([weights[:, models == model].sum(1) / count for model, count in layers.items()], axis=1)
    assert (times == times.round()).all(), "a model that is drawn brings as many layers as it has"
    assert (times.sum(1) == 3).all()
    # T ~ Binomial(M, 1/M) draws of a model, then Multinomial(T L, 1/L) of its layers: the law of total covariance.
    wanted = np.full((11, 11), -1 / 3)
    for i, j in itertools.product(range(11), repeat=2):
        if models[i] == models[j]:
            wanted[i, j] = 1 - 1 / 3 - 1 / layers[models[i]] + (i == j)
    assert np.cov(weights.T) == pytest.approx(wanted, abs=0.06)  # six standard errors


def test_one_model_alone_draws_its_layers():
    weights = draw_clusters(cells_of({"a": 5}), resamples=1000, seed=0)
    assert (weights.sum(1) == 5).all()
    assert weights.max() > 2


def test_the_seed_fixes_the_draw():
    cells = cells_of({"a": 5, "b": 4})
    first, same, other = (draw_clusters(cells, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert (first == same).all()
    assert (first != other).any()


N_LAYERS = {"a": 12, "b": 12, "c": 5}
RUN = {"a": (0, 4, 11), "b": (0, 4, 11), "c": (0, 1, 2, 3, 4)}  # layers that were run


@pytest.fixture
def partners():
    """(model, layer, other, partner_layer) of 600 neurons with each of two partners."""
    generator = np.random.default_rng(5)
    pairs = list(itertools.permutations(RUN, 2))
    chosen = [pairs[i] for i in generator.integers(len(pairs), size=600)]
    return [
        (model, generator.choice(RUN[model], p=None if len(RUN[model]) == 3 else [0.4, 0.3, 0.1, 0.1, 0.1]), other, generator.choice(RUN[other]))
        for model, other in chosen
    ]


def counted(rows):
    return pd.DataFrame(rows, columns=["model", "layer", "other", "partner_layer"]).value_counts().rename("neurons").reset_index()


def enumerated(rows, copies):
    """The definition, neuron by neuron; `copies` of each layer's neurons, whose chance stays that of the run."""
    observed = expected = 0.0
    for model, layer, other, partner in rows:
        depth, times = layer / (N_LAYERS[model] - 1), copies[model, layer]
        observed += times * abs(depth - partner / (N_LAYERS[other] - 1))
        chance = [abs(depth - row[3] / (N_LAYERS[other] - 1)) for row in rows if (row[0], row[2]) == (model, other)]
        expected += times * sum(chance) / len(chance)
    return 1 - observed / expected


def test_depth_by_enumeration(partners):
    cells = pd.MultiIndex.from_tuples([(model, layer) for model, layers in RUN.items() for layer in layers], names=["model", "layer"])
    sums = distances(counted(partners), cells, N_LAYERS)
    for weights in (np.ones(11), np.arange(11.0)):
        copies = dict(zip(cells, weights, strict=True))
        assert sums.likeness(weights[None])[0] == pytest.approx(enumerated(partners, copies), abs=1e-12)
    alone = {cell: float(cell == ("c", 3)) for cell in cells}
    assert sums.by_layer()[list(cells).index(("c", 3))] == pytest.approx(enumerated(partners, alone), abs=1e-12)


@pytest.mark.parametrize(
    ("pairs", "likeness"),
    [
        ([(0, 0), (1, 1), (2, 2), (3, 3)], 1.0),
        (list(itertools.product(range(4), repeat=2)), 0.0),
        ([(0, 3), (1, 2), (2, 1), (3, 0)], -0.6),  # distances 3, 1, 1, 3 thirds: 2/3 in the mean; by chance 20 thirds in 16 pairs: 5/12
    ],
    ids=["same layer", "independent", "mirrored"],
)
def test_depth_of_known_partners(pairs, likeness):
    depth = counted([("a", layer, "b", partner) for layer, partner in pairs])
    sums = distances(depth, cells_of({"a": 4, "b": 4}), {"a": 4, "b": 4})
    assert sums.likeness(np.ones((1, 8)))[0] == pytest.approx(likeness, abs=1e-12)


def test_a_model_of_one_layer_has_no_depth():
    depth = counted([("a", 0, "b", 1), ("b", 1, "a", 0), ("b", 0, "c", 1), ("b", 1, "c", 0)])
    sums = distances(depth, cells_of({"a": 1, "b": 2, "c": 2}), {"a": 1, "b": 2, "c": 2})
    assert sums.observed.tolist() == [0, 1, 1, 0, 0]  # mirrored pairs of b and c
    assert sums.expected.tolist() == [0, 0.5, 0.5, 0, 0]
    assert np.isnan(sums.likeness(np.array([[1.0, 0, 0, 1, 1]])))[0]


def naive(values, universal, resamples, seed):
    """The interval that takes neurons for independent draws."""
    generator = np.random.default_rng(seed)
    own, rest = values[universal], np.sort(values[~universal])
    wins = (np.searchsorted(rest, own, "left") + np.searchsorted(rest, own, "right")) / len(rest) - 1  # [universal]
    drawn = generator.choice(wins, (resamples, len(wins))).mean(1)
    return np.quantile(drawn, [0.025, 0.975])


def studies(count, *, models, layers, between_models, between_layers, shift=0.6, width=100, seed=0):
    """Intervals of simulated studies: 5 of `width` neurons of a layer are universal and higher by a shift that differs by model and by layer."""
    generator = np.random.default_rng(seed)
    cells = cells_of({str(model): layers for model in range(models)})
    weights = draw_clusters(cells, resamples=1000, seed=1)
    layer = np.repeat(np.arange(len(cells)), width)
    universal = np.tile(np.arange(width) < 5, len(cells))
    clustered, ignoring = [], []
    for _ in range(count):
        own = shift + between_models * generator.normal(size=(models, 1)) + between_layers * generator.normal(size=(models, layers))
        values = generator.normal(size=len(layer)) + universal * np.repeat(own.ravel(), width)
        clustered.append(np.quantile(dominance(values, universal, layer, len(cells)).delta(weights), [0.025, 0.975]))
        ignoring.append(naive(values, universal, 1000, 2))
    # A universal value is N(shift, 1 + both variances), another N(0, 1): P(universal > other) in closed form.
    truth = 2 * norm.cdf(shift / np.sqrt(2 + between_models**2 + between_layers**2)) - 1
    return np.array(clustered), np.array(ignoring), truth


def coverage(intervals, truth):
    return ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()


def test_the_interval_covers_where_one_without_clusters_does_not():
    clustered, ignoring, truth = studies(150, models=5, layers=12, between_models=0.3, between_layers=0.8)
    assert 0.9 <= coverage(clustered, truth) <= 0.99, "95 % is promised; three standard errors of 150 studies are 5 %"
    assert coverage(ignoring, truth) < 0.75
    assert np.diff(clustered).mean() > 2 * np.diff(ignoring).mean()


def test_the_interval_covers_over_layers_of_one_model():
    clustered, _, truth = studies(400, models=1, layers=12, between_models=0.0, between_layers=0.8)
    assert 0.88 <= coverage(clustered, truth) <= 0.98


def test_without_clusters_the_interval_is_hardly_wider():
    clustered, ignoring, truth = studies(150, models=5, layers=12, between_models=0.0, between_layers=0.0)
    assert coverage(clustered, truth) >= 0.93
    assert 1.0 < np.diff(clustered).mean() / np.diff(ignoring).mean() < 1.6  # drawing twice counts the spread within models twice: a factor of sqrt 2 at most
