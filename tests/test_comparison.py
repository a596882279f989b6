"""What differs between two runs: every kind of difference planted by hand is found, named and measured; none is found where there is none."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from click.testing import CliRunner
from rich.console import Console

import pyuniversal
from pyuniversal import FileError, cli
from pyuniversal.comparison import compare
from pyuniversal.report import render_differences

OPTIONS = {"text": tiny.sentences(30), "row_tokens": 32, "baseline_draws": 1, "top_k": 3, "precision": "float64", "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Models a, b, c; runs "1" and "2" of a and b; "seed" of them with another seed; "models" of a, of b under another name, and of c."""
    root = tmp_path_factory.mktemp("comparison")
    for seed, name in enumerate("abc"):
        tiny.gpt2(root / name, seed=seed, n_layer=2, n_inner=12)
    shutil.copytree(root / "b", root / "renamed")
    for out, models, options in (("1", "ab", {}), ("2", "ab", {}), ("seed", "ab", {"seed": 3, "precision": "int8"}), ("models", ["a", "renamed", "c"], {})):
        pyuniversal.run([root / name for name in models], out=root / "runs" / out, **(OPTIONS | options))
    return root / "runs"


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root / "1", tmp_path / "copy")


def edit(folder: Path, name: str, change) -> None:
    table = pd.read_parquet(folder / f"{name}.parquet")
    changed = change(table)
    (table if changed is None else changed).to_parquet(folder / f"{name}.parquet", index=False)


def shown(found) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(render_differences(found))
    return text.getvalue()


def settings(found) -> dict:
    return {change["name"]: (change["old"], change["new"]) for change in found["settings"]}


def test_the_same_run_twice(root):
    found = compare(root / "1", root / "2")
    assert found["identical"] is True
    assert found["settings"] == found["missing"] == []
    assert found["models"] == {"pairs": [{"old": x, "new": x, "by": "both"} for x in "ab"], "removed": [], "added": []}
    assert {name: table["bytes_equal"] for name, table in found["tables"].items()} == {
        f"{t}.parquet": True for t in ("depth", "matches", "neurons", "nulls", "weights")
    }
    assert found["partners"] == {"both": 48, "changed": 0, "share": 0.0}
    assert shown(found).strip() == "No difference: settings and models are the same, and 5 tables byte for byte."
    json.dumps(found, allow_nan=False)


def test_one_number(root, copy):
    """The row is named, the size measured, and nothing else is found."""

    def change(table):
        row = table.index[(table["model"] == "b") & (table["layer"] == 1) & (table["neuron"] == 7)][0]
        table.loc[row, "kurt"] += 0.25

    edit(copy, "neurons", change)
    kurt = pyuniversal.open_run(root / "1").neurons.loc[("b", 1, 7), "kurt"]
    found = compare(root / "1", copy)
    assert found["identical"] is False
    assert found["settings"] == []
    table = found["tables"]["neurons.parquet"]
    assert (table["rows"], table["both"], list(table["columns"])) == ([48, 48], 48, ["kurt"])
    stats = table["columns"]["kurt"]
    assert stats == {"differ": 1, "largest": pytest.approx(0.25), "median": pytest.approx(0.25), "where": "L1.7 of b", "old": kurt, "new": kurt + 0.25}
    assert [name for name, table in found["tables"].items() if not table["bytes_equal"]] == ["neurons.parquet"]
    text = shown(found)
    assert "L1.7 of b" in text
    assert "kurt" in text
    assert "skew" not in text
    assert "matches.parquet: the same, byte for byte." in text


def test_numbers_by_hand(root, copy):
    """Three rows by 1, 2 and 10; NaN for NaN is no difference, a number for NaN is one without a size; infinity has none either."""
    for folder in (copy, copy.parent / "first"):
        if not folder.exists():
            shutil.copytree(root / "1", folder)
        edit(folder, "neurons", lambda table: table.__setitem__("skew", table["skew"].where(~table.index.isin([5, 6]))))

    def change(table):
        for row, by in ((0, 1.0), (3, -10.0), (9, 2.0)):
            table.loc[row, "mean"] += by
        table.loc[5, "skew"] = 1.0
        table.loc[11, "var"] = np.inf
        table.loc[12, "var"] += 0.5

    edit(copy, "neurons", change)
    columns = compare(copy.parent / "first", copy)["tables"]["neurons.parquet"]["columns"]
    assert {name: (c["differ"], c["largest"], c["median"], c["where"]) for name, c in columns.items()} == {
        "mean": (3, pytest.approx(10.0), pytest.approx(2.0), "L0.3 of a"),
        "skew": (1, None, None, "L0.5 of a"),
        "var": (2, pytest.approx(0.5), pytest.approx(0.5), "L1.0 of a"),
    }
    assert (columns["skew"]["old"], columns["skew"]["new"]) == ("nan", 1.0)


def test_order_and_absent_rows(root, copy):
    """Rows are joined by what they are about, not by where they stand."""
    edit(copy, "neurons", lambda table: table.drop(index=[4]))
    shuffled = pd.read_parquet(copy / "neurons.parquet").sample(frac=1, random_state=0)
    shuffled.loc[shuffled["neuron"] == 2, "mean"] += 1.0
    shuffled.to_parquet(copy / "neurons.parquet", index=False)
    table = compare(root / "1", copy)["tables"]["neurons.parquet"]
    assert (table["rows"], table["both"]) == ([48, 47], 47)
    assert {name: (c["differ"], c["largest"]) for name, c in table["columns"].items()} == {"mean": (4, pytest.approx(1.0))}


def test_flags_and_partners(root, copy):
    """Each direction of `universal`; a best partner exchanged with the second best."""

    def flags(table):
        table["universal"] = [True] * 3 + [False] * 45

    edit(copy, "neurons", flags)
    first = shutil.copytree(copy, copy.parent / "first")
    edit(copy, "neurons", lambda table: table.__setitem__("universal", [False] * 2 + [True] * 6 + [False] * 40))

    def partners(table):
        for row in (0, 30):  # rank 0 and rank 1 of one neuron change places
            assert table.loc[[row, row + 1], "rank"].tolist() == [0, 1]
            table.loc[[row, row + 1], ["partner_layer", "partner_neuron", "r"]] = table.loc[[row + 1, row], ["partner_layer", "partner_neuron", "r"]].to_numpy()

    edit(copy, "matches", partners)
    found = compare(first, copy)
    universal = found["tables"]["neurons.parquet"]["columns"]["universal"]
    assert (universal["differ"], universal["became_true"], universal["became_false"]) == (7, 5, 2)
    assert found["partners"] == {"both": 48, "changed": 2, "share": 2 / 48}
    assert found["tables"]["matches.parquet"]["columns"]["r"]["differ"] == 4
    assert found["tables"]["matches.parquet"]["columns"]["r"]["where"].startswith("L")
    text = shown(found)
    assert "neurons.parquet, universal: 5 became true, 2 became false." in text
    assert "Best partners: 2 of 48 changed (4.17%)." in text


def test_options_and_the_numbers_they_change(root):
    found = compare(root / "1", root / "seed")
    assert settings(found)["options.seed"] == (0, 3)
    assert settings(found)["options.precision"] == ("float64", "int8")
    assert settings(found)["options.baseline_seed"] == (0, 3)
    assert set(settings(found)) <= {"options.seed", "options.precision", "options.baseline_seed", "tokens.correlated"} | {
        name for name in settings(found) if name.startswith("backends.")
    }
    one, two = (pyuniversal.open_run(root / name).neurons for name in ("1", "seed"))
    gap = (two["max_corr"] - one["max_corr"]).abs()
    stats = found["tables"]["neurons.parquet"]["columns"]["max_corr"]
    assert stats["differ"] == (gap > 0).sum()
    assert stats["largest"] == gap.max()
    assert stats["median"] == gap[gap > 0].median()
    model, layer, neuron = gap.idxmax()
    assert stats["where"] == f"L{layer}.{neuron} of {model}"
    best = [pyuniversal.open_run(root / name).matches.query("rank == 0").astype({"model": str, "other": str}) for name in ("1", "seed")]
    joined = best[0].merge(best[1], on=["model", "layer", "neuron", "other"])
    changed = (joined["partner_layer_x"] != joined["partner_layer_y"]) | (joined["partner_neuron_x"] != joined["partner_neuron_y"])
    assert found["partners"] == {"both": 48, "changed": changed.sum(), "share": pytest.approx(changed.mean())}
    assert "w_in_norm" not in found["tables"]["neurons.parquet"]["columns"]


def test_models_by_their_weights(root):
    """b is called "renamed" in the second run and is found by its hash; c is new, and its pairs are nobody's."""
    found = compare(root / "1", root / "models")
    assert found["models"] == {
        "pairs": [{"old": "a", "new": "a", "by": "both"}, {"old": "b", "new": "renamed", "by": "weights"}],
        "removed": [],
        "added": ["c"],
    }
    assert settings(found)["models.b.label"] == ("b", "renamed")
    neurons = found["tables"]["neurons.parquet"]
    assert (neurons["rows"], neurons["both"]) == ([48, 72], 48)
    assert not {"kurt", "mean", "vocab_kurt", "w_in_norm"} & set(neurons["columns"]), "what a neuron is by itself has not changed"
    assert neurons["columns"]["max_corr"]["differ"] > 0
    matches = found["tables"]["matches.parquet"]
    assert (matches["rows"], matches["both"]) == ([144, 432], 144)
    assert matches["columns"] == {}, "a and b are to one another what they were"
    assert found["partners"] == {"both": 48, "changed": 0, "share": 0.0}
    assert "renamed has the weights of b and is compared with it." in shown(found)


def test_models_by_their_label(root, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["models"][1]["weights"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = compare(root / "1", copy)
    assert found["models"]["pairs"][1] == {"old": "b", "new": "b", "by": "label"}
    assert settings(found)["models.b.weights"][1] == "0" * 64
    assert found["identical"] is False
    assert "b has other weights in the second run" in shown(found)


def test_labels_exchanged(root, copy):
    """What is called a there is called b here, and the tables say so too: not one number differs."""
    swap = {"a": "b", "b": "a"}
    manifest = json.loads((copy / "manifest.json").read_text())
    for model in manifest["models"]:
        model["label"] = swap[model["label"]]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for name in ("neurons", "matches", "depth", "nulls", "weights"):
        table = pd.read_parquet(copy / f"{name}.parquet")
        for column in {"model", "other"} & set(table.columns):
            table[column] = table[column].astype(str).map(swap)
        table.to_parquet(copy / f"{name}.parquet", index=False)
    claims = json.loads((copy / "claims.json").read_text())
    for claim in claims["claims"]:
        claim["by_model"] = {swap[label]: value for label, value in claim["by_model"].items()}
    (copy / "claims.json").write_text(json.dumps(claims))
    found = compare(root / "1", copy)
    assert set(settings(found)) == {"models.a.label", "models.b.label"}
    assert found["files"] == {}
    assert all(table["columns"] == {} for table in found["tables"].values())
    assert found["partners"]["changed"] == 0


def test_tables_and_claims_that_are_still_to_come(root, copy):
    """Any parquet or JSON file that both have; a list of claims goes by their names."""
    first = shutil.copytree(root / "1", copy.parent / "first")
    claims = [{"name": "more than chance", "verdict": "undecided", "n": 4}, {"name": "deep", "verdict": "holds", "n": 9}]
    for folder, verdict, score in ((first, "undecided", 0.5), (copy, "holds", 0.75)):
        claims[0]["verdict"] = verdict
        (folder / "claims.json").write_text(json.dumps({"claims": claims if folder == first else claims[::-1]}))
        table = pd.DataFrame(
            {"model": ["a", "a"], "layer": [0, 0], "neuron": [1, 1], "family": ["x", "y"], "score": [0.25, score], "confirmed": [True, score > 0.6]}
        )
        (folder / "interventions").mkdir()
        table.to_parquet(folder / "interventions/families.parquet")
    (copy / "extra.json").write_text("{}")
    found = compare(first, copy)
    assert found["files"] == {"claims.json": [{"name": "claims.more than chance.verdict", "old": "undecided", "new": "holds"}]}
    columns = found["tables"]["interventions/families.parquet"]["columns"]
    assert columns["score"] == {"differ": 1, "largest": 0.25, "median": 0.25, "where": "L0.1 of a, family y", "old": 0.5, "new": 0.75}
    assert (columns["confirmed"]["became_true"], columns["confirmed"]["became_false"]) == (1, 0)
    assert found["missing"] == [["extra.json", str(first)]]
    text = shown(found)
    assert "claims.more than chance.verdict" in text
    assert "interventions/families.parquet, confirmed: 1 became true, 0 became false." in text


def test_bytes_alone(root, copy):
    """The same numbers, written otherwise."""
    pd.read_parquet(copy / "neurons.parquet").to_parquet(copy / "neurons.parquet", index=False, compression="zstd")
    found = compare(root / "1", copy)
    assert found["identical"] is False
    assert found["tables"]["neurons.parquet"] == {"bytes_equal": False, "rows": [48, 48], "both": 48, "columns_removed": [], "columns_added": [], "columns": {}}
    assert "says the same (the files are not the same byte for byte)" in shown(found)


def test_columns_that_came_and_went(root, copy):
    edit(copy, "neurons", lambda table: table.rename(columns={"corr_stderr": "new"}))
    table = compare(root / "1", copy)["tables"]["neurons.parquet"]
    assert (table["columns_removed"], table["columns_added"], table["columns"]) == (["corr_stderr"], ["new"], {})


def test_one_model_alone(root, tmp_path):
    for out in ("x", "y"):
        pyuniversal.run([root.parent / "a"], out=tmp_path / out, **OPTIONS)
    found = compare(tmp_path / "x", tmp_path / "y")
    assert found["identical"] is True
    assert found["partners"] is None


class TestCommand:
    def invoke(self, *words):
        return CliRunner().invoke(cli.main, ["diff", *map(str, words)])

    def test_output(self, root):
        result = self.invoke(root / "1", root / "2")
        assert (result.exit_code, result.stdout) == (0, "No difference: settings and models are the same, and 5 tables byte for byte.\n")
        assert json.loads(self.invoke(root / "1", root / "seed", "--json").stdout) == json.loads(json.dumps(compare(root / "1", root / "seed")))
        assert self.invoke(root / "1", root / "seed", "--quiet").output == ""

    def test_exit_codes(self, root, tmp_path):
        assert self.invoke(root / "1", root / "seed").exit_code == 0
        assert self.invoke(root / "1", root / "seed", "--exit-code").exit_code == 1
        assert self.invoke(root / "1", root / "2", "--exit-code").exit_code == 0
        assert self.invoke(root / "1", tmp_path, "--exit-code").exit_code == 2
        assert self.invoke(root / "1", tmp_path).exit_code == 1
        with pytest.raises(FileError, match="holds no run"):
            compare(root / "1", tmp_path)
