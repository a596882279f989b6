"""The document re-pairing null: who is sampled, what is pooled, and that it says what an independent simulation says."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
from synthetic import Synthetic

from pyuniversal import InputError, ModelSite, NotEnoughMemoryError, Totals, load_model, observe, tokenize
from pyuniversal.streaming import Chance, best_by_chance
from pyuniversal.streaming.chunks import choose_rows
from pyuniversal.totals import SourceInfo
from pyuniversal.universality import NULL_COLUMNS, empty_nulls, firing_deciles, matches, null_p99, nulls
from pyuniversal.universality.nulls import fitting_parts, pool, sample

QUIET = {"progress": False}


def test_deciles_by_hand():
    firing = np.array([0.5, 0.1, 0.1, np.nan, 0.2, 0.9, 0.8, 0.7, 0.6, 0.3, 0.4, 0.9, 0.1])
    groups = np.array([0] * 11 + [7] * 2)
    # ten that vary in group 0, one a decile, the first of two equals before the second; two in group 7
    assert firing_deciles(firing, groups).tolist() == [6, 1, 2, 0, 3, 10, 9, 8, 7, 4, 5, 10, 5]
    many = firing_deciles(np.random.default_rng(0).random(200), np.zeros(200))
    assert np.bincount(many).tolist() == [0, *[20] * 10]


def made(*, width: int = 100, layers: tuple[int, ...] = (0, 3), constant: tuple[int, ...] = (4, 150)) -> Totals:
    """Two sources; neuron n of source a fires on n + 1 of 1,000 tokens in its first layer, on 999 - n in its second; some are constant."""
    sources = [SourceInfo(name, "mlp.post", layers, width, name) for name in "ab"]
    totals = Totals(
        sources, identity={"seed": 0, "max_tokens": None, "tokens": "t"}, n_chunks=1, centre=[torch.zeros(len(layers) * width)] * 2, precision="float64"
    )
    counts = torch.cat([torch.arange(width) + 1, 999 - torch.arange(width)])  # [columns]
    for i in range(2):
        x = (torch.arange(1000)[:, None] < counts) * 2.0 - 1.0
        x[:, list(constant)] = 3.0
        totals.site[i].update(x, (1000, 1000, 1000))
        totals.pre[i].update(x)
    return totals


def test_samples_are_of_every_stratum_nested_and_never_constant():
    totals = made(constant=())
    small, large = (sample(totals, 0, per_stratum=k, seed=1) for k in (2, 5))
    assert np.bincount(small // 10).tolist() == [2] * 20, "a decile is ten columns in a row"
    assert np.bincount(large // 10).tolist() == [5] * 20
    assert set(small.tolist()) < set(large.tolist())
    assert small.tolist() == sorted(sample(totals, 0, per_stratum=2, seed=1).tolist())
    for other in (sample(totals, 0, per_stratum=2, seed=2), sample(totals, 1, per_stratum=2, seed=1)):
        assert small.tolist() != other.tolist()
    assert sample(made(), 0, per_stratum=40, seed=1).tolist() == [c for c in range(200) if c not in (4, 150)]


def test_pooled_numbers_are_numpys():
    totals = made(constant=())
    chosen = [sample(totals, i, per_stratum=6, seed=0) for i in range(2)]
    r = torch.from_numpy(np.random.default_rng(3).random((3, 120)) * 1.05)  # some beyond 1: clamped
    r[1, 7] = torch.nan
    table = pool(totals, chosen, {(0, 1): Chance(r, r, r.long(), (990, 1000, 1001))})
    assert tuple(table.columns) == NULL_COLUMNS
    assert len(table) == 20
    assert set(table["model"]) == {"a"}
    assert set(table["other"]) == {"b"}
    assert table["layer"].tolist() == [0] * 10 + [3] * 10
    assert table["decile"].tolist() == [*range(1, 11)] * 2
    assert (table["tokens"] == 997).all()
    assert (table["draws"] == 3).all()
    # the second decile of layer 0 holds columns 10 to 19, that of layer 3 (frequent first) columns 180 to 189
    assert table.loc[1, ["firing_low", "firing_high"]].tolist() == [0.011, 0.020]
    assert table.loc[11, ["firing_low", "firing_high"]].tolist() == [0.910, 0.919]
    for row, (low, high) in ((0, (0, 10)), (1, (10, 20)), (11, (180, 190))):
        own = r[:, (chosen[0] >= low) & (chosen[0] < high)].clamp(max=1).numpy().ravel()
        own = own[~np.isnan(own)]
        assert table.loc[row, "neurons"] == 6
        expected = [own.mean(), np.median(own), np.percentile(own, 90), np.percentile(own, 99), own.max()]
        assert table.loc[row, ["mean", "p50", "p90", "p99", "max"]].tolist() == pytest.approx(expected, abs=1e-12)
    p99 = null_p99(totals, table, 0)
    assert p99[:10].tolist() == [table.loc[0, "p99"]] * 10
    assert p99[180:190].tolist() == [table.loc[11, "p99"]] * 10
    assert np.isnan(null_p99(totals, table, 1)).all()
    gone = made(constant=(3,))
    assert np.flatnonzero(np.isnan(null_p99(gone, table, 0))).tolist() == [3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [tiny.gpt2(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, folders):
    return tokenize(tiny.sentences(200), load_model(folders[0]).tokenizer, out=tmp_path_factory.mktemp("tokens"), row_tokens=32, progress=False)


def test_identical_models_are_universal_and_share_nothing_by_chance(folders, tokens):
    model = load_model(folders[0])
    model.module.transformer.wpe.weight.data.zero_()  # what position explains would stay
    pair = [ModelSite(model, name=name) for name in ("one", "two")]
    totals = observe(pair, tokens, **QUIET)
    best = matches(totals, top_k=1)["r"]
    assert best.min() > 0.98
    table = nulls(pair, tokens, totals, **QUIET)
    assert set(table["model"]) == {"one", "two"}
    assert (table["neurons"] == 4).all(), "40 neurons a layer, all of them"
    assert table["p50"].median() < 0.2
    assert table["p99"].max() < 0.6


def test_tokens_are_the_first_of_the_run(folders, tokens):
    pair = [ModelSite(load_model(f)) for f in folders]
    whole = observe(pair, tokens, **QUIET)
    short = observe(pair, tokens, max_tokens=900, **QUIET)
    a, b = nulls(pair, tokens, whole, null_tokens=900, **QUIET), nulls(pair, tokens, short, **QUIET)
    assert 400 < a["tokens"].max() < 900
    assert (a["tokens"] == b["tokens"].max()).all()
    assert nulls(pair, tokens, whole, **QUIET)["tokens"].max() > 2000
    pd.testing.assert_frame_equal(a, nulls(pair, tokens, whole, null_tokens=900, **QUIET))


def test_the_sample_is_halved_to_fit_the_budget(folders, tokens, caplog):
    pair = [ModelSite(load_model(f)) for f in folders]
    totals = observe(pair, tokens, max_tokens=900, **QUIET)
    # 2 models x 3 layers x 10 deciles x 1 neuron x 120 columns x 3 draws x 4 bytes
    one = 2 * 3 * 10 * 120 * 3 * 4
    with caplog.at_level(logging.INFO):
        table = nulls(pair, tokens, totals, budget_bytes=2 * one, **QUIET)
    assert (table["neurons"] == 2).all()
    assert "2 neurons of each layer and decile instead of 40" in caplog.text
    assert (nulls(pair, tokens, totals, budget_bytes=2 * one, precision="float64", **QUIET)["neurons"] == 1).all()
    with pytest.raises(NotEnoughMemoryError, match="one neuron of each layer and decile, more than its budget"):
        nulls(pair, tokens, totals, budget_bytes=one - 1, **QUIET)


def test_the_room_changes_the_parts_and_not_the_table(folders, tokens, caplog):
    pair = [ModelSite(load_model(f)) for f in folders]
    totals = observe(pair, tokens, max_tokens=900, **QUIET)
    whole = nulls(pair, tokens, totals, **QUIET)
    # 120 neurons of each of 2 models, 4 a decile, all of them sampled: in three parts 48 at most, x 120 columns x 3 draws x 4 bytes
    room = 2 * 48 * 120 * 3 * 4
    with caplog.at_level(logging.INFO):
        pd.testing.assert_frame_equal(nulls(pair, tokens, totals, room_bytes=room, **QUIET), whole)
    assert "null: the models run 3 times, so that its products stay within 0.1 MB" in caplog.text
    with pytest.raises(NotEnoughMemoryError, match=r"need 0\.0 MB of memory even in 32 parts, and 0\.0 MB are left for them; raise --memory"):
        nulls(pair, tokens, totals, room_bytes=2 * 16 * 120 * 3 * 4 - 1, **QUIET)


def test_parts_by_hand():
    # 100 and 40 chosen among 1,000 and 2,000 columns of the other: 112 x 2000 + 48 x 1000 in one part, 64 and 32 in two, 48 and 16 in three
    options = {"columns": [1000, 2000], "cell": 12}
    for parts, cells in ((1, 112 * 2000 + 48 * 1000), (2, 64 * 2000 + 32 * 1000), (3, 48 * 2000 + 16 * 1000)):
        assert fitting_parts([100, 40], room_bytes=12 * cells, **options) == parts
        assert fitting_parts([100, 40], room_bytes=12 * cells - 1, **options) > parts
    with pytest.raises(NotEnoughMemoryError, match=r"need 0\.6 MB of memory even in 32 parts, and 0\.5 MB are left"):
        fitting_parts([100, 40], room_bytes=5e5, **options)


def test_no_partner_no_null(folders, tokens, tmp_path, caplog):
    single = [ModelSite(load_model(folders[0]))]
    pd.testing.assert_frame_equal(nulls(single, tokens, observe(single, tokens, max_tokens=900, **QUIET), **QUIET), empty_nulls())
    pair = [ModelSite(load_model(f)) for f in folders]
    alone = tokenize([" ".join(tiny.sentences(20))], single[0].model.tokenizer, out=tmp_path / "alone", row_tokens=32, progress=False)
    totals = observe(pair, alone, **QUIET)
    table = nulls(pair, alone, totals, **QUIET)
    assert "no row can be paired with a row of another document" in caplog.text
    pd.testing.assert_frame_equal(table, empty_nulls())
    assert np.isnan(null_p99(totals, table, 0)).all()
    assert tuple(table.columns) == NULL_COLUMNS
    table.to_parquet(tmp_path / "nulls.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "nulls.parquet"), table)


def test_strangers_are_refused(folders, tokens, tmp_path):
    pair = [ModelSite(load_model(f)) for f in folders]
    totals = observe(pair, tokens, max_tokens=900, **QUIET)
    with pytest.raises(InputError, match="the totals are of a, b: hand in the very models"):
        nulls(pair[::-1], tokens, totals, **QUIET)
    other = tokenize(tiny.sentences(20, seed=1), pair[0].model.tokenizer, out=tmp_path, row_tokens=32, progress=False)
    with pytest.raises(InputError, match="the totals are of another text than"):
        nulls(pair, other, totals, **QUIET)
    for name in ("null_tokens", "draws", "per_stratum"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
            nulls(pair, tokens, totals, **{name: 0}, **QUIET)


WIDTH = 300
RARE = np.geomspace(0.004, 0.5, WIDTH)  # share of tokens on which neuron n fires


def fire(noise: np.ndarray, *_) -> np.ndarray:
    return noise + scipy.stats.norm.ppf(RARE)


def test_chance_is_that_of_independent_neurons_and_larger_for_rare_ones(tokens):
    pair = [Synthetic(name, WIDTH, fire, salt=salt) for salt, name in enumerate("xy")]
    totals = observe(pair, tokens, **QUIET)
    np.testing.assert_allclose(totals.pre[0].firing(), RARE, atol=5 * np.sqrt(0.25 / totals.pre[0].count()))
    chosen = [sample(totals, i, per_stratum=40, seed=0) for i in range(2)]
    assert [len(c) for c in chosen] == [WIDTH] * 2
    found = best_by_chance(pair, tokens, choose_rows(tokens, max_tokens=None, seed=0), chosen, totals.centre, precision="float32", **QUIET)
    table = pool(totals, chosen, found)
    rng = np.random.default_rng(1)
    simulated = []
    for _ in range(6):
        x, y = (np.maximum(fire(rng.standard_normal((found[0, 1].tokens[0], WIDTH))), 0) for _ in range(2))
        simulated.append(np.corrcoef(x.T, y.T)[:WIDTH, WIDTH:].max(1))
    simulated = np.stack(simulated)
    groups = np.arange(WIDTH) // (WIDTH // 10)
    decile = firing_deciles(totals.pre[0].firing().numpy(), np.zeros(WIDTH)) - 1
    for d in range(10):
        assert scipy.stats.ks_2samp(found[0, 1].r[:, decile == d].numpy().ravel(), simulated[:, groups == d].ravel()).pvalue > 1e-3
    own = table[table["model"] == "x"].set_index("decile")
    assert own.loc[1, "p50"] > 1.5 * own.loc[10, "p50"]
    assert own.loc[1, "p99"] > 2 * own.loc[10, "p99"]
