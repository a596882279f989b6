"""Neuron tables whose numbers are known: random ones with ties and gaps, and the published ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PAPER = Path(__file__).parents[1] / "data" / "paper"
PROPERTIES = ["sparsity", "mean", "skew", "kurt", "input_bias", "in_out_sim", "l2_penalty", "vocab_kurt"]
COLUMNS = ["max_corr", "mean_corr", "min_corr", "max_baseline", "min_baseline", "mean_baseline", *PROPERTIES]


def finish(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that follow from the correlations, by the published rules."""
    table["excess_corr"] = table["mean_corr"] - table["mean_baseline"]
    table["universal"] = table["mean_corr"] - table["mean_baseline"] > 0.5
    table["universal_strict"] = table["min_corr"] - table["max_baseline"] > 0.5
    table["universal_loose"] = table["max_corr"] - table["mean_baseline"] > 0.5
    return table.assign(mutual=0, constant=False)


def random_table(layers: dict[str, int], d_mlp: int = 30, *, universal: dict[str, int] | None = None, seed: int = 0) -> pd.DataFrame:
    """Models of so many layers; of each model the first `universal[model]` neurons are universal, no other; properties rounded, so that ranks are tied."""
    generator = np.random.default_rng(seed)
    tables = []
    for model, depth in layers.items():
        index = pd.MultiIndex.from_product([[model], range(depth), range(d_mlp)], names=["model", "layer", "neuron"])
        table = pd.DataFrame(generator.normal(size=(len(index), len(COLUMNS))).round(1), index=index, columns=COLUMNS)
        table[COLUMNS[:6]] = 0.2
        table.iloc[: (universal or {}).get(model, 0), :3] = 0.9
        tables.append(table)
    return finish(pd.concat(tables))


def published(model: str) -> pd.DataFrame:
    """12 layers of 3,072 neurons: the published universal ones, all others without excess."""
    own = pd.read_csv(PAPER / f"{model}_universal.csv").assign(model=model).set_index(["model", "layer", "neuron"])
    index = pd.MultiIndex.from_product([[model], range(12), range(3072)], names=["model", "layer", "neuron"])
    table = pd.DataFrame(0.1, index=index, columns=COLUMNS)
    table.loc[own.index, COLUMNS] = own[COLUMNS]
    return finish(table)


@pytest.fixture
def make() -> Callable[..., pd.DataFrame]:
    return random_table


@pytest.fixture(scope="session")
def paper() -> pd.DataFrame:
    return pd.concat([published("stanford-gpt2-small-a"), published("pythia-160m")])


@pytest.fixture
def single(make: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """One model alone: every correlation is NaN."""
    table = make({"alone": 3})
    table[COLUMNS[:6]] = np.nan
    return finish(table)
