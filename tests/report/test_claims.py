from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from rich.console import Console
from scipy.stats import mannwhitneyu, norm

from pyuniversal.errors import InputError
from pyuniversal.report import claims, forest, quantities, render_claims
from pyuniversal.report.claims import CLAIMS, DEPTH, judge
from pyuniversal.report.clusters import draw_clusters

FIVE = list(CLAIMS)
SIDES = {"sparsity": -1, "skew": 1, "kurt": 1, "input_bias": -1, "l2_penalty": 1}
EMPTY = pd.DataFrame({"model": [], "layer": [], "neuron": [], "other": [], "rank": [], "partner_layer": []})


def planted(shifts, *, models=5, layers=6, width=400, share=20, seed=0):
    """Universal neurons of every layer, the first `share`, differ from N(0, 1) by the shift of each column."""
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[f"seed-{i}" for i in range(models)], range(layers), range(width)], names=["model", "layer", "neuron"])
    universal = index.get_level_values("neuron") < share
    table = pd.DataFrame({name: generator.normal(size=len(index)) + shift * universal for name, shift in shifts.items()}, index=index)
    return table.assign(universal=universal, mean_corr=0.5)


def partnered(neurons, layer_of=lambda layer, neuron: layer):
    """Best partners of all neurons in all other models, and second ones that must not count."""
    models = list(dict.fromkeys(neurons.index.get_level_values("model")))
    rows = []
    for model, layer, neuron in neurons.index:
        for other in models:
            if other != model:
                rows += [(model, layer, neuron, other, 0, layer_of(layer, neuron)), (model, layer, neuron, other, 1, 0)]
    return pd.DataFrame(rows, columns=EMPTY.columns)


def by_name(found):
    return {claim["name"]: claim for claim in found["claims"]}


@pytest.fixture(scope="module")
def whole():
    """All effects lie on the claimed side, of several sizes; best partners sit in the own layer, those of neuron 7 of each layer in the last."""
    neurons = planted({"sparsity": -1.5, "skew": 0.6, "kurt": 0.25, "input_bias": -0.8, "l2_penalty": 2.0})
    return neurons, partnered(neurons, lambda layer, neuron: 5 if neuron == 7 else layer)


@pytest.fixture(scope="module")
def found(whole):
    return by_name(claims(*whole))


@pytest.mark.parametrize(("name", "shift"), [("sparsity", -1.5), ("skew", 0.6), ("kurt", 0.25), ("input_bias", -0.8), ("l2_penalty", 2.0)])
def test_planted_effects_are_found(found, name, shift):
    claim = found[name]
    truth = 2 * norm.cdf(shift / np.sqrt(2)) - 1  # P(N(shift, 1) > N(0, 1)) in closed form
    assert claim["low"] < truth < claim["high"]
    assert claim["low"] < claim["value"] < claim["high"]
    assert claim["high"] - claim["low"] < 0.2, "600 universal neurons that differ by chance alone"
    assert claim["verdict"] == "holds"
    assert (claim["universal"], claim["others"], claim["models"], claim["layers"]) == (600, 11_400, 5, 30)
    assert (claim["level"], claim["resamples"], claim["seed"], claim["direction"]) == (0.95, 2000, 0, "higher" if shift > 0 else "lower")


def test_the_effect_is_that_of_percentiles_within_layers(whole, found):
    neurons = whole[0].copy()
    ranks = quantities.percentiles(neurons, FIVE)
    universal = neurons["universal"].to_numpy()
    for name in FIVE:
        wanted = 2 * mannwhitneyu(ranks[name][universal], ranks[name][~universal]).statistic / (600 * 11_400) - 1
        assert found[name]["value"] == pytest.approx(wanted, abs=1e-12)
        for model in ranks.index.unique(level="model"):
            own, flags = ranks[name].xs(model), neurons["universal"].xs(model)
            assert found[name]["by_model"][model] == pytest.approx(2 * mannwhitneyu(own[flags], own[~flags]).statistic / (120 * 2280) - 1, abs=1e-12)
    lifted = neurons.copy()
    lifted[FIVE] += 100.0 * neurons.index.get_level_values("layer").to_numpy()[:, None]
    assert by_name(claims(lifted, whole[1]))["skew"] == found["skew"], "what layers differ by does not matter"


def test_the_interval_is_that_of_tables_drawn_anew():
    """Each resample as a table of copies, by scipy, and the 2.5th and 97.5th percentile of their effects."""
    neurons = planted(dict.fromkeys(FIVE, 0.5), models=3, layers=3, width=40, share=6)
    claim = by_name(claims(neurons, EMPTY, resamples=200, seed=4))["skew"]
    ranks, universal = quantities.percentiles(neurons, ["skew"])["skew"].to_numpy(), neurons["universal"].to_numpy()
    cells = neurons.index.droplevel("neuron").unique()
    drawn = []
    for weights in draw_clusters(cells, resamples=200, seed=4):
        copies = np.repeat(np.arange(len(neurons)), np.repeat(weights.astype(int), 40))
        own, rest = ranks[copies][universal[copies]], ranks[copies][~universal[copies]]
        drawn.append(2 * mannwhitneyu(own, rest).statistic / (len(own) * len(rest)) - 1)
    assert [claim["low"], claim["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-12)
    assert claim["resamples"] == 200


def test_layers_that_agree_are_counted(whole):
    neurons = whole[0].copy()
    neurons.loc[("seed-0", 0), "universal"] = np.arange(400) < 4  # too few to count
    in_layer = neurons.index.get_level_values("layer") == 2
    neurons.loc[in_layer & neurons["universal"], "skew"] = -9.0
    claim = by_name(claims(neurons, whole[1]))["skew"]
    assert (claim["layers_counted"], claim["layers_agree"]) == (29, 24)
    assert claim["universal"] == 584


def test_an_effect_against_the_claim_and_one_that_is_none():
    neurons = planted({"sparsity": 1.0, "skew": 0.0, "kurt": 0.05, "input_bias": 0.0, "l2_penalty": -0.5}, share=40, width=800)
    found = by_name(claims(neurons, EMPTY))
    assert found["sparsity"]["verdict"] == found["l2_penalty"]["verdict"] == "does not hold"
    assert found["sparsity"]["reason"] == "the whole interval lies above 0, against the claim"
    assert found["skew"]["verdict"] == found["input_bias"]["verdict"] == "does not hold"
    assert "a negligible effect" in found["skew"]["reason"]
    assert found["depth"]["verdict"] == "undecided"


def test_a_difference_between_models_widens_the_interval():
    alike, apart = planted(dict.fromkeys(FIVE, 0.5)), planted(dict.fromkeys(FIVE, 0.5))
    model = apart.index.get_level_values("model")
    for number, shift in enumerate((-1.5, -0.5, 0.0, 0.5, 1.5)):
        apart.loc[(model == f"seed-{number}") & apart["universal"], "skew"] += shift
    widths = [claim["high"] - claim["low"] for claim in (by_name(claims(table, EMPTY))["skew"] for table in (alike, apart))]
    assert widths[1] > 4 * widths[0]
    assert by_name(claims(apart, EMPTY))["skew"]["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "lower", "higher"),
    [
        (0.2, 0.5, "does not hold", "holds"),
        (-0.5, -0.2, "holds", "does not hold"),
        (0.01, 0.1, "does not hold", "holds"),
        (-0.1, 0.1, "does not hold", "does not hold"),
        (0.0, 0.1, "does not hold", "does not hold"),  # an end on 0: the interval holds 0
        (-0.1, 0.0, "does not hold", "does not hold"),
        (0.0, 0.5, "undecided", "undecided"),
        (-0.5, 0.0, "undecided", "undecided"),
        (-0.1, 0.147, "undecided", "undecided"),  # |delta| < 0.147 is negligible, 0.147 is small
        (-0.147, 0.1, "undecided", "undecided"),
        (-0.1469, 0.1469, "does not hold", "does not hold"),
        (-0.3, 0.6, "undecided", "undecided"),
        (1.0, 1.0, "does not hold", "holds"),
    ],
)
def test_verdicts(low, high, lower, higher):
    assert judge(low, high, "lower")[0] == lower
    assert judge(low, high, "higher")[0] == higher


def test_reasons():
    assert judge(0.2, 0.5, "higher")[1] == "the whole interval lies above 0"
    assert judge(-0.5, -0.2, "lower")[1] == "the whole interval lies below 0"
    assert judge(0.01, 0.1, "higher")[1] == "the whole interval lies above 0, though the effect is negligible"
    assert judge(0.2, 0.5, "lower")[1] == "the whole interval lies above 0, against the claim"
    assert judge(-0.5, -0.2, "higher")[1] == "the whole interval lies below 0, against the claim"
    assert judge(-0.2, 0.5, "lower")[1] == "the interval holds 0 and reaches beyond ±0.147"


def limited(count):
    neurons = planted(dict.fromkeys(FIVE, 3.0))
    keep = np.flatnonzero(neurons["universal"])[:: max(1, 600 // count) if count else 601][:count]
    neurons["universal"] = np.isin(np.arange(len(neurons)), keep)
    return neurons


@pytest.mark.parametrize(
    ("count", "reason"),
    [(0, "no universal neurons: at least 5 are needed"), (1, "1 universal neuron: at least 5 are needed"), (4, "4 universal neurons: at least 5 are needed")],
)
def test_too_few_to_judge(count, reason):
    for claim in claims(limited(count), EMPTY)["claims"]:
        assert (claim["verdict"], claim["reason"], claim["low"], claim["high"], claim["universal"]) == ("undecided", reason, None, None, count)
        assert (claim["value"] is None) == (count == 0 or claim["name"] == "depth")


def test_five_in_five_models_are_enough():
    found = by_name(claims(limited(5), EMPTY))
    assert found["skew"]["verdict"] == "holds"
    assert found["sparsity"]["verdict"] == "does not hold"
    assert (found["skew"]["layers_counted"], found["skew"]["layers_agree"]) == (0, 0)


def test_universal_neurons_of_one_layer_cannot_be_resampled():
    neurons = planted(dict.fromkeys(FIVE, 3.0))
    neurons["universal"] &= (neurons.index.get_level_values("model") == "seed-2") & (neurons.index.get_level_values("layer") == 3)
    claim = by_name(claims(neurons, EMPTY))["skew"]
    assert (claim["verdict"], claim["reason"]) == ("undecided", "all universal neurons lie in one layer of one model: there is nothing to resample")
    assert claim["universal"] == 20
    assert claim["value"] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("models", "words"),
    [(1, "; universal neurons of 1 model do not show how models differ"), (2, "; universal neurons of 2 models do not show how models differ"), (3, "")],
)
def test_few_models_are_named(models, words):
    claim = by_name(claims(planted(dict.fromkeys(FIVE, 2.0), models=models), EMPTY))["skew"]
    assert claim["verdict"] == "holds"
    assert claim["reason"] == f"the whole interval lies above 0{words}"


def test_one_model_alone(single):
    found = claims(single, EMPTY)
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    assert {claim["reason"] for claim in found["claims"]} == {"one model alone has no partners, hence no universal neurons"}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("model", "count"), [("stanford-gpt2-small-a", 1533), ("pythia-160m", 465)])
def test_published_tables_hold_no_other_neurons(paper, model, count):
    """What was published are the universal neurons alone; the rest of their layers, which the claims are about, was not."""
    neurons = paper.xs(model, level="model", drop_level=False)
    for claim in claims(neurons[neurons["universal"]], EMPTY)["claims"]:
        assert (claim["verdict"], claim["universal"], claim["value"]) == ("undecided", count, None)
        if claim["name"] != "depth":
            assert claim["reason"] == "the table holds no other neurons to compare universal ones with"


def test_what_is_not_a_number_counts_for_nobody(whole):
    neurons = whole[0].copy()
    neurons.loc[("seed-1", 2, slice(0, 10)), "kurt"] = np.nan  # 11 universal ones
    neurons.loc[("seed-1", 2, slice(300, 302)), "kurt"] = np.nan
    found = by_name(claims(neurons, EMPTY))
    assert (found["kurt"]["universal"], found["kurt"]["others"]) == (589, 11_397)
    assert (found["skew"]["universal"], found["skew"]["others"]) == (600, 11_400)


def test_depth_of_universal_neurons_and_of_all(found):
    claim = found["depth"]
    assert claim["claim"] == DEPTH
    # Of 20 universal neurons of a layer 19 have their partner at home and one in layer 5: distances 5, 4, 3, 2, 1, 0 fifths, a twentieth of each. By chance the
    # partner is in each of layers 0 to 4 for 19 in 120 and in layer 5 for 25 in 120.
    layers = np.arange(6)
    chance = np.array([19, 19, 19, 19, 19, 25]) / 120
    wanted = 1 - (5 - layers).mean() / 20 / (np.abs(layers[:, None] - layers) @ chance).mean()
    assert claim["value"] == pytest.approx(wanted, abs=1e-12)
    assert set(claim["by_model"].values()) == {claim["value"]}
    assert claim["low"] < claim["value"] < claim["high"]
    assert claim["verdict"] == "holds"
    assert (claim["layers_counted"], claim["layers_agree"]) == (30, 30)
    chance = np.array([399, 399, 399, 399, 399, 405]) / 2400
    everyone = 1 - (5 - layers).mean() / 400 / (np.abs(layers[:, None] - layers) @ chance).mean()
    assert claim["all_neurons"]["value"] == pytest.approx(everyone, abs=1e-12)
    assert claim["all_neurons"]["low"] < everyone < claim["all_neurons"]["high"]


def test_partners_anywhere_are_no_claim():
    neurons = planted(dict.fromkeys(FIVE, 0.0), share=60)
    random = np.random.default_rng(0)
    claim = by_name(claims(neurons, partnered(neurons, lambda *_: random.integers(6))))["depth"]
    assert claim["verdict"] == "does not hold"
    assert -0.05 < claim["low"] < claim["high"] < 0.05


def test_layers_that_were_not_run_count_for_depth(whole):
    neurons, _ = whole
    some = neurons[neurons.index.get_level_values("layer").isin([0, 5])]
    best = partnered(some, lambda layer, neuron: 5 - layer if neuron < 5 else layer)
    plain = by_name(claims(some, best, n_layers=dict.fromkeys(("seed-0", "seed-1", "seed-2", "seed-3", "seed-4"), 12)))["depth"]
    assert plain["value"] == pytest.approx(1 - (5 / 20) / 0.5), "a quarter of distances of 5/11, by chance a half of them"
    assert by_name(claims(some, best))["depth"]["value"] == pytest.approx(plain["value"])
    uneven = by_name(claims(some, best, n_layers={"seed-0": 6, "seed-1": 12, "seed-2": 12, "seed-3": 12, "seed-4": 12}))["depth"]
    assert uneven["value"] < plain["value"], "layer 5 is the last of one model and the middle of the others: not the same depth"
    with pytest.raises(InputError, match="n_layers has no 'seed-1', a model of the table; it has seed-0"):
        claims(some, best, n_layers={"seed-0": 6})


def test_a_single_layer_has_no_depth(whole):
    neurons, _ = whole
    one = neurons[neurons.index.get_level_values("layer") == 3]
    found = by_name(claims(one, partnered(one)))
    assert (found["depth"]["verdict"], found["depth"]["value"]) == ("undecided", None)
    assert found["depth"]["reason"] == "all best partners lie in one layer, or none is known: there is no depth to compare"
    assert found["l2_penalty"]["verdict"] == "holds"


def test_the_order_of_rows_and_kinds_of_columns_do_not_matter(whole, found):
    neurons, matches = whole
    categories = [f"seed-{i}" for i in (3, 1, 0, 2, 4)]
    coded = matches.astype({"model": pd.CategoricalDtype(categories), "other": pd.CategoricalDtype(categories), "layer": "int16", "partner_layer": "int16"})
    assert by_name(claims(neurons, coded.sample(frac=1, random_state=0))) == found
    shuffled = by_name(claims(neurons.sample(frac=1, random_state=0), matches))
    for name, claim in found.items():
        assert shuffled[name]["value"] == pytest.approx(claim["value"], abs=1e-12)
        assert shuffled[name]["low"] == pytest.approx(claim["low"], abs=0.02)


def test_the_seed_fixes_the_interval(whole, found):
    assert claims(*whole)["claims"] == list(found.values())
    other = by_name(claims(*whole, seed=1, resamples=500))
    assert other["skew"]["low"] != found["skew"]["low"]
    assert other["skew"]["low"] == pytest.approx(found["skew"]["low"], abs=0.02)
    assert (other["skew"]["seed"], other["skew"]["resamples"]) == (1, 500)


def test_nothing_to_judge_is_refused(whole):
    with pytest.raises(InputError, match="claims need neurons and at least one resample, not 12000 and 0"):
        claims(*whole, resamples=0)
    with pytest.raises(InputError, match="not 0 and 2000"):
        claims(whole[0].iloc[:0], whole[1])


def test_json_holds_everything(whole):
    values = claims(*whole)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert [claim["name"] for claim in values["claims"]] == [*FIVE, "depth"]
    assert {claim["name"]: claim["direction"] for claim in values["claims"]} == {n: "higher" if s > 0 else "lower" for n, s in SIDES.items()} | {
        "depth": "higher"
    }
    assert (values["level"], values["negligible"], values["resamples"], values["seed"]) == (0.95, 0.147, 2000, 0)


def shown(values):
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render_claims(values))
    return console.export_text()


def test_terminal(whole, single):
    values = claims(*whole)
    lines = shown(values).splitlines()
    for claim in values["claims"]:
        (line,) = (line for line in lines if f" {claim['name']} " in line)
        for words in (f"{claim['value']:+.2f}", f"{claim['low']:+.2f} to {claim['high']:+.2f}", "600", f"{claim['layers_agree']} of 30", claim["verdict"]):
            assert words in line
    everyone = values["claims"][-1]["all_neurons"]
    assert f"over all neurons {everyone['value']:+.2f}, " in " ".join(lines)
    alone = shown(claims(single, EMPTY))
    assert "one model alone has no partners" in alone
    assert "None" not in alone
    assert "nan" not in alone


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_forest_draws_the_numbers(whole):
    values = claims(*whole)
    figure = forest(values)
    (axis,) = figure.axes
    bars = [path.vertices for line in axis.collections if hasattr(line, "get_segments") for path in line.get_paths()]
    assert [bar[:, 0].tolist() for bar in bars] == [[claim["low"], claim["high"]] for claim in values["claims"]]
    assert [bar[0, 1] for bar in bars] == [0, 1, 2, 3, 4, 5]
    points = [points.get_offsets().data for points in axis.collections if not hasattr(points, "get_segments")]
    single = [row[0].tolist() for row in points if len(row) == 1]
    everyone = values["claims"][-1]["all_neurons"]["value"]
    assert sorted(single) == sorted([[everyone, 4.74], *([claim["value"], place] for place, claim in enumerate(values["claims"]))])
    assert [row[:, 0].tolist() for row in points if len(row) == 5] == [list(claim["by_model"].values()) for claim in values["claims"]]
    words = texts(figure)
    assert words.count("holds") == 6
    for claim in values["claims"]:
        shown = [f"{claim['value']:+.2f}", f"{claim['low']:+.2f} to {claim['high']:+.2f}"]
        assert all(text.replace("-", "−") in words for text in shown)
    assert any("600 universal and 11,400 other neurons of 5 models" in text for text in words)
    (band,) = axis.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.147, 0.294))


def test_forest_of_nothing(single):
    figure = forest(claims(single, EMPTY))
    figure.canvas.draw()
    assert texts(figure).count("undecided") == 6
    assert not any("None" in text or "nan" in text for text in texts(figure))
