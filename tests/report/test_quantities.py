from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from pyuniversal.report import quantities

SMALL = [222, 244, 101, 110, 71, 72, 56, 112, 101, 142, 125, 177]
PYTHIA = [64, 14, 19, 5, 27, 34, 43, 39, 67, 50, 50, 53]


@pytest.mark.parametrize(("model", "counts"), [("stanford-gpt2-small-a", SMALL), ("pythia-160m", PYTHIA)])
def test_published_counts_by_layer(paper, model, counts):
    found = quantities.layer_counts(paper).loc[model]
    assert found["universal"].tolist() == counts
    assert found["neurons"].tolist() == [3072] * 12
    assert found["share"].tolist() == pytest.approx([100 * count / 3072 for count in counts], abs=1e-12)


def test_layer_counts_keep_the_order_of_models_and_real_layer_numbers(make):
    table = make({"z": 2, "a": 9}, universal={"a": 31})
    table = table[table.index.get_level_values("layer").isin([0, 1, 8])]
    found = quantities.layer_counts(table)
    assert found.index.tolist() == [("z", 0), ("z", 1), ("a", 0), ("a", 1), ("a", 8)]
    assert found["universal"].tolist() == [0, 0, 30, 1, 0]


def test_percentiles_are_scipys(make):
    table = make({"a": 2, "b": 3}, d_mlp=40)
    table.loc[("a", 1, 3), "skew"] = np.nan
    found = quantities.percentiles(table, ["skew", "kurt"])
    for column in ("skew", "kurt"):
        for (model, layer, neuron), value in table[column].items():
            own_layer = table.loc[(model, layer), column]
            wanted = percentileofscore(own_layer, value, kind="rank", nan_policy="omit") if not np.isnan(value) else np.nan
            assert found.loc[(model, layer, neuron), column] == pytest.approx(wanted, nan_ok=True, abs=1e-10)
    assert table["kurt"].groupby(level=["model", "layer"]).nunique().max() < 40, "without ties the kind of percentile would not be tested"


def matches_of(rows):
    """(model, layer, neuron, other, rank, partner_layer), in the dtypes of a run's table."""
    table = pd.DataFrame(rows, columns=["model", "layer", "neuron", "other", "rank", "partner_layer"])
    return table.astype({"model": "str", "other": "str", "layer": "int16", "neuron": "int32", "rank": "int16", "partner_layer": "int16"})


def test_universal_partners_are_the_best_partners_of_universal_neurons(make):
    table = make({"a": 2, "b": 2}, universal={"a": 31})
    ahead = [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 1), (0, 2, 0, 0), (1, 0, 0, 1), (1, 1, 0, 0)]  # layer, neuron, rank, partner_layer
    matches = matches_of([("a", layer, neuron, "b", rank, partner) for layer, neuron, rank, partner in ahead] + [("b", 0, 0, "a", 0, 0)])
    found = quantities.universal_partners(table, matches)
    counts = found.set_index(["model", "other", "layer", "partner_layer"])["neurons"].to_dict()
    assert counts == {("a", "b", 0, 1): 2, ("a", "b", 0, 0): 1, ("a", "b", 1, 1): 1}


DEPTH = pd.DataFrame(
    [("a", "b", 0, 0, 3), ("a", "b", 0, 1, 1), ("a", "b", 1, 1, 4), ("b", "a", 0, 0, 2), ("b", "a", 0, 1, 2), ("b", "a", 1, 0, 4)],
    columns=["model", "other", "layer", "partner_layer", "neurons"],
)
DEEPER = pd.DataFrame(
    [("a", "c", 0, 0, 1), ("a", "c", 1, 2, 7), ("c", "a", 0, 0, 5), ("c", "a", 1, 1, 6), ("c", "a", 2, 0, 7)],
    columns=["model", "other", "layer", "partner_layer", "neurons"],
)


def test_partner_layers_sum_ordered_pairs():
    (table,) = quantities.partner_layers(DEPTH)
    assert table.to_numpy().tolist() == [[5, 3], [4, 4]]
    assert table.attrs["pairs"] == [("a", "b"), ("b", "a")]
    assert quantities.row_shares(table).to_numpy().tolist() == [[62.5, 37.5], [50.0, 50.0]]


def test_models_of_another_depth_are_not_summed():
    equal, deeper, shallower = quantities.partner_layers(pd.concat([DEPTH, DEEPER]))
    assert equal.to_numpy().tolist() == [[5, 3], [4, 4]]
    assert deeper.to_numpy().tolist() == [[1, 0, 0], [0, 0, 7]]  # layer 1 of c is nobody's partner, but a layer
    assert shallower.to_numpy().tolist() == [[5, 0], [0, 6], [7, 0]]


def test_same_pairs_has_the_layers_of_the_whole_and_only_its_pairs():
    equal, deeper, _ = quantities.partner_layers(pd.concat([DEPTH, DEEPER]))
    few = pd.concat([DEPTH, DEEPER]).query("layer == 1 and model == 'a'")
    assert quantities.same_pairs(few, equal).to_numpy().tolist() == [[0, 0], [0, 4]]
    found = quantities.same_pairs(few, deeper)
    assert found.to_numpy().tolist() == [[0, 0, 0], [0, 0, 7]]
    shares = quantities.row_shares(found).to_numpy()
    assert np.isnan(shares[0]).all()
    assert shares[1].tolist() == [0, 0, 100]
