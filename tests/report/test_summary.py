from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pyuniversal.report import render, summary


def shown(values):
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(render(values))
    return console.export_text()


@pytest.fixture
def found(paper):
    options = {"precision": "int8", "device": "cpu", "seed": 7, "baseline": "haar", "baseline_draws": 1}
    return summary(paper, {"tokens": {"correlated": 12_345}, "options": options, "timings": {"pass": 3600.0, "table": 1800.0}, "machine": {}})


@pytest.mark.parametrize(("model", "universal"), [("stanford-gpt2-small-a", 1533), ("pythia-160m", 465)])
def test_published_models(found, paper, model, universal):
    values = found["models"][model]
    with (Path(__file__).parents[1] / "data" / "paper" / f"{model}_universal.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    wanted = {
        rule: {str(t): sum(row[score] - row[chance] > t for row in rows) for t in (0.45, 0.5, 0.55)}
        for rule, score, chance in (
            ("universal", "mean_corr", "mean_baseline"),
            ("universal_strict", "min_corr", "max_baseline"),
            ("universal_loose", "max_corr", "mean_baseline"),
        )
    }
    assert values["rules"] == wanted
    assert values["rules"]["universal"]["0.5"] == universal == sum(layer["universal"] for layer in values["by_layer"].values())
    assert values["rules"]["universal"]["0.55"] < universal
    assert (values["layers"], values["neurons"], values["constant"]) == (12, 36864, 0)
    assert values["by_layer"]["11"] == {"neurons": 3072, "universal": {1533: 177, 465: 53}[universal]}
    assert values["mean_corr"] == pytest.approx((sum(row["mean_corr"] for row in rows) + 0.1 * (36864 - universal)) / 36864)


def test_what_a_run_was_is_taken_from_the_manifest(found):
    assert set(found) == {"models", "tokens", "options", "timings"}
    assert found["tokens"] == {"correlated": 12_345}


def test_mutual_and_constant_neurons_are_counted(make):
    neurons = make({"a": 1, "b": 1, "c": 1}, d_mlp=6)
    neurons["mutual"] = [0, 1, 2, 2, 0, 0, *[0] * 12]
    neurons.loc[("a", 0, 5), "constant"] = True
    neurons.loc[("a", 0, 5), "mean_corr"] = np.nan
    a = summary(neurons, {})["models"]["a"]
    assert (a["mutual"], a["mutual_everywhere"], a["constant"]) == (3, 2, 1)
    assert a["mean_corr"] == pytest.approx(0.2), "a constant neuron has no correlation and does not count in the mean"


def test_json_has_null_for_what_is_not_a_number(single):
    values = json.loads(json.dumps(summary(single, {}), allow_nan=False))["models"]["alone"]
    assert values["mean_corr"] is values["mean_baseline"] is values["mean_excess"] is None
    assert values["rules"]["universal"] == {"0.45": 0, "0.5": 0, "0.55": 0}
    assert (values["mutual"], values["mutual_everywhere"]) == (0, 0)


def test_terminal(found, single):
    text = shown(found)
    assert re.search(r"universal\W+1,533\W.*465\W", text)
    assert re.search(r"4\.16%.*1\.26%", text)
    assert "0: 64  1: 14  2: 19  3: 5  4: 27" in text
    assert "12,345 tokens correlated, int8 on cpu, seed 7, haar baseline of 1 draw, 1.5 h" in text
    alone = shown(summary(single, {}))
    assert "One model alone has no partners" in alone
    assert "by layer" not in alone


def test_no_number_is_cut_in_80_columns(found):
    models = {f"some/organisation-model-seed-{n}": found["models"]["stanford-gpt2-small-a"] for n in range(7)}
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(render(found | {"models": models}))
    text = console.export_text()
    assert text.count("36,864") == text.count("4.16%") == 7
    assert len(re.findall(r"\bseed-\d|organisation", text)) >= 7
