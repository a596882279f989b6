"""The whole line on the embedded seeds, every column against an independent float64 computation (`oracle`), and what a run leaves in its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny
import torch
from scipy.optimize import linear_sum_assignment

import pyuniversal
from pyuniversal import FileError, InputError, NotEnoughMemoryError, pipeline, zoo
from pyuniversal.report.figures import NAMES
from pyuniversal.streaming.chunks import choose_rows
from pyuniversal.table import PAPER_COLUMNS
from pyuniversal.universality import rotation

TOKENS = 20_000
DRAWS = 2
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def exact_run(tmp_path_factory) -> pyuniversal.Run:
    return pyuniversal.run(max_tokens=TOKENS, precision="float64", baseline_draws=DRAWS, out=tmp_path_factory.mktemp("float64"), progress=False)


@pytest.fixture(scope="module")
def judge() -> oracle.Oracle:
    tokens = pyuniversal.load_tokens(zoo.tokens())
    rows = choose_rows(tokens, max_tokens=TOKENS, seed=0)
    assert TOKENS - 128 < tokens.lengths[rows].sum() <= TOKENS
    return oracle.compute(
        zoo.models(),
        tokens.ids[rows],
        tokens.lengths[rows],
        rotations=lambda model, layer, draw: rotation("haar", 512, seed=0, source=model, layer=layer, draw=draw),
        draws=DRAWS,
        newline=tokens.newline,
        baseline_neurons=range(0, 2048, 16),
    )


def test_the_paper_s_columns_in_its_order(exact_run):
    published = pd.read_csv(Path(__file__).parent / "data/paper/stanford-gpt2-small-a_universal.csv", nrows=1)
    assert [*published.columns][:22] == ["layer", "neuron", *exact_run.neurons.columns[:20]]
    assert exact_run.neurons.columns[20] == published.columns[22] == "excess_corr"
    assert len(exact_run.neurons) == 5 * 2048


@pytest.mark.parametrize("column", PAPER_COLUMNS)
def test_every_column_against_the_oracle(exact_run, judge, column):
    ours, theirs = exact_run.neurons[column], judge.neurons[column]
    known = theirs.notna()
    assert known.sum() == (640 if "baseline" in column else 10_240)
    # The models run in float32 with other batches on either side; kurt and skew of heavy tails carry a float32 activation to the fourth power.
    tolerance = {"skew": 1e-5, "kurt": 1e-5}.get(column, 1e-6)
    np.testing.assert_allclose(ours[known], theirs[known], rtol=tolerance, atol=3e-6 if "corr" in column or "baseline" in column else 1e-6)


def test_rules_and_partners_against_the_oracle(exact_run, judge):
    measured = judge.neurons["mean_baseline"].notna()
    for rule in ("universal", "universal_strict", "universal_loose"):
        assert exact_run.neurons[rule][measured].tolist() == judge.neurons[rule][measured].tolist()
    assert exact_run.neurons["universal_loose"].sum() > 20
    key = ["model", "layer", "neuron", "other", "rank"]
    mine = exact_run.matches.astype({"model": str, "other": str}).set_index(key).sort_index()
    theirs = judge.matches.set_index(key).sort_index()
    mine = mine.loc[theirs.index]
    np.testing.assert_allclose(mine["r"], theirs["r"], atol=3e-6)
    same = (mine["partner_layer"] == theirs["partner_layer"]) & (mine["partner_neuron"] == theirs["partner_neuron"])
    # Partners may differ where two r agree to 3e-6.
    assert same.mean() > 0.999
    best = theirs.index.get_level_values("rank") == 0
    assert (mine["mutual"][best] == theirs["mutual"][best].astype(bool)).mean() > 0.999
    assert abs(exact_run.neurons["mutual"] - judge.neurons["mutual"]).sum() <= 4
    depth = exact_run.depth.astype({"model": str, "other": str}).merge(judge.depth, on=["model", "other", "layer", "partner_layer"], how="outer").fillna(0)
    assert (depth["neurons_x"] - depth["neurons_y"]).abs().max() <= 2


def test_assignment_against_the_dense_one(exact_run, judge):
    """On the graph of 50 partners the sum of r is within a hair of the best of all assignments."""
    mine = exact_run.matches[(exact_run.matches["model"] == "seed-0") & (exact_run.matches["other"] == "seed-1") & exact_run.matches["assigned"]]
    pairs = mine[["partner_layer", "partner_neuron"]]
    assert not pairs.duplicated().any()
    assert not mine[["layer", "neuron"]].duplicated().any()
    r = judge.r[0, 1]
    rows, columns = linear_sum_assignment(r, maximize=True)
    dense = np.sort(r[rows, columns])[::-1]
    assert mine["r"].sum() > 0.98 * dense[: len(mine)].sum()


def test_legacy_columns_against_the_oracle(exact_run, judge, tmp_path):
    before = exact_run.neurons[["mean_corr", "w_in_norm"]]
    import shutil

    shutil.copytree(exact_run.path, tmp_path / "copy")
    legacy = pyuniversal.table_stage(tmp_path / "copy", baseline="gaussian", baseline_draws=1, legacy=True)
    for name in ("mean", "var", "skew", "kurt", "sparsity"):
        np.testing.assert_allclose(legacy.neurons[name], judge.neurons[f"{name}_legacy"], rtol=2e-4, atol=2e-4)
    # P(pre > -0.098) counts more than P(pre > 0).
    assert (legacy.neurons["sparsity"] > exact_run.neurons["sparsity"]).mean() > 0.99
    pd.testing.assert_frame_equal(legacy.neurons[["mean_corr", "w_in_norm"]], before)
    assert legacy.manifest["options"]["legacy"] is True


@pytest.mark.parametrize("precision", ["int8", "float32", "bf16"])
def test_precisions_against_float64(exact_run, tmp_path, precision):
    run = pyuniversal.run(max_tokens=TOKENS, precision=precision, baseline_draws=DRAWS, out=tmp_path, progress=False)
    error = run.neurons["mean_corr"] - exact_run.neurons["mean_corr"]
    if precision == "int8":
        # The best of 2,048 noisy r is biased upwards by selection, so the same partner is compared.
        key = ["model", "layer", "neuron", "other", "partner_layer", "partner_neuron"]
        both = run.matches.merge(exact_run.matches, on=key, suffixes=("", "_exact"))
        both = both[both["rank_exact"] < 10]
        z = (both["r"] - both["r_exact"]) / both["stderr"]
        assert len(both) > 300_000
        assert 0.9 < z.std() < 1.1
        assert abs(z.mean()) < 0.05
        assert (run.neurons["corr_stderr"] > 0).all()
        assert abs(error).max() < 6 * run.neurons["corr_stderr"].max()
    else:
        assert abs(error).max() < {"float32": 3e-6, "bf16": 2e-3}[precision]
        assert (run.neurons["corr_stderr"] == 0).all()
    assert abs(run.neurons["mean_baseline"] - exact_run.neurons["mean_baseline"]).max() < {"int8": 0.01, "bf16": 2e-3, "float32": 1e-5}[precision]


@pytest.mark.parametrize("name", ["neurons", "matches", "depth", "nulls"])
def test_every_column_is_explained_and_no_other(exact_run, name):
    text = (Path(__file__).parents[1] / "COLUMNS.md").read_text(encoding="utf-8")
    section = text.split(f"## `{name}.parquet`")[1].split("\n## ")[0]
    explained = [column for line in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for column in re.findall(r"`(\w+)`", line)]
    assert sorted(explained) == sorted(pd.read_parquet(exact_run.path / f"{name}.parquet").columns)


def test_folder_holds_what_the_readme_says(exact_run):
    table = pd.read_csv(exact_run.path / "tables" / "seed-3.csv", index_col=["layer", "neuron"])
    pd.testing.assert_frame_equal(table, exact_run.neurons.xs("seed-3"), rtol=1e-12)
    assert {p.name for p in (exact_run.path / "figures").iterdir()} == {f"{name}.png" for name in NAMES}
    manifest = json.loads((exact_run.path / "manifest.json").read_text())
    assert manifest["options"] | {"max_tokens": TOKENS, "precision": "float64", "baseline_draws": DRAWS, "top_k": 50, "seed": 0} == manifest["options"]
    assert [m["label"] for m in manifest["models"]] == [f"seed-{n}" for n in range(5)]
    assert manifest["tokens"]["hash"] == pyuniversal.load_tokens(zoo.tokens()).hash
    assert manifest["tokens"]["correlated"] == exact_run.totals.tokens
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or manifest["versions"]["torch"] == torch.__version__
    assert len({m["weights"] for m in manifest["models"]}) == 5
    assert manifest["backends"] == {"moments_": "cpu", "quantize": "reference", "product_": "cpu", "summarize_correlation": "cpu", "histogram_": "cpu"}
    assert list(manifest["timings"]) == ["models", "tokens", "pass", "weights", "confirm", "nulls", "table", "figures"]


def test_baseline_spread_and_mean_over_draws(exact_run, judge):
    draws = judge.baselines.pivot_table(index=["model", "layer", "neuron", "other"], columns="draw", values="baseline")
    spread = draws.std(axis=1, ddof=1).groupby(["model", "layer", "neuron"]).mean()
    np.testing.assert_allclose(exact_run.neurons["baseline_spread"].loc[spread.index], spread, rtol=1e-3, atol=1e-5)


def test_readme_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README", "exec"), names)
    assert (tmp_path / "depth.png").stat().st_size > 10_000
    assert names["universal"]["excess_corr"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(names["again"].neurons, names["run"].neurons)
    assert len(blocks[0].strip().splitlines()) <= 12
    torch.manual_seed(0)
    exec(compile(blocks[1], "README", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("torch.Size([300, 200])")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return [tiny.gpt2(tmp_path_factory.mktemp("tiny") / name, seed=seed) for seed, name in enumerate("abc")]


class TestSmall:
    """Runs of tiny models: the ways to start one, and the ways in which it refuses."""

    options = {"text": tiny.sentences(40), "row_tokens": 32, "progress": False, "baseline_draws": 1}  # noqa: RUF012

    def test_one_model_alone(self, folders, tmp_path):
        run = pyuniversal.run(folders[:1], out=tmp_path, **self.options)
        assert run.neurons.filter(regex="corr|baseline").isna().all(axis=None)
        assert not run.neurons[["universal", "universal_strict", "universal_loose"]].any(axis=None)
        assert run.neurons[["mean", "var", "skew", "kurt", "vocab_kurt", "w_in_norm", "sparsity"]].notna().all(axis=None)
        assert run.matches.empty
        assert list(run.matches.columns) == [
            "model",
            "layer",
            "neuron",
            "other",
            "rank",
            "partner_layer",
            "partner_neuron",
            "r",
            "stderr",
            "mutual",
            "assigned",
            "r_confirmed",
            "r_se",
        ]
        assert json.dumps(run.summary(), allow_nan=False)

    def test_layers_families_and_labels(self, tmp_path):
        """Two architectures with one tokenizer; some layers; the table speaks of the model's own layer numbers."""
        folders = [tiny.FAMILIES[family](tmp_path / family / "model") for family in ("gpt2", "llama")]
        run = pyuniversal.run(folders, out=tmp_path / "run", layers=[0, 2], **self.options)
        assert run.neurons.groupby(level="model").size().to_dict() == {"model": 80, "model-2": 72}
        assert sorted(set(run.neurons.index.get_level_values("layer"))) == [0, 2]
        assert set(run.matches["partner_layer"]) <= {0, 2}
        assert run.matches.query("model == 'model'")["partner_neuron"].max() < 36

    def test_a_model_against_a_shuffled_copy_of_itself(self, folders, tmp_path):
        """Neurons permuted: every one finds itself, r = 1, wherever it went."""
        from transformers import AutoTokenizer, GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(folders[0])
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        for block in model.transformer.h:
            block.mlp.c_fc.weight.data, block.mlp.c_fc.bias.data = block.mlp.c_fc.weight.data[:, order], block.mlp.c_fc.bias.data[order]
            block.mlp.c_proj.weight.data = block.mlp.c_proj.weight.data[order]
        model.save_pretrained(tmp_path / "shuffled")
        AutoTokenizer.from_pretrained(folders[0]).save_pretrained(tmp_path / "shuffled")
        run = pyuniversal.run([folders[0], tmp_path / "shuffled"], out=tmp_path / "run", precision="float32", **self.options)
        assert run.neurons["max_corr"].min() > 0.9999
        best = run.matches.query("model == 'shuffled' and rank == 0")
        assert best["partner_neuron"].tolist() == order.repeat(3).tolist()
        assert best["partner_layer"].tolist() == best["layer"].tolist()
        assert best["mutual"].all()
        assert best["assigned"].all()
        assert run.depth.query("model == 'shuffled'")[["layer", "partner_layer", "neurons"]].to_numpy().tolist() == [[l, l, 40] for l in range(3)]

    def test_padded_vocabulary_is_left_out_unless_legacy(self, tmp_path):
        folder = tiny.neox(tmp_path / "neox")
        run = pyuniversal.run([folder], out=tmp_path / "run", **self.options)
        neurons = run.neurons
        legacy = pyuniversal.table_stage(tmp_path / "run", legacy=True).neurons
        weights = pyuniversal.load_model(folder).weights()
        for got, limit in ((neurons, tiny.D_VOCAB), (legacy, tiny.D_VOCAB + 27)):
            unembed = weights.W_U.double().numpy()[:, :limit]
            w = weights.layer(1).W_out.double().numpy()[7]
            cosine = w @ unembed / np.linalg.norm(unembed, axis=0) / np.linalg.norm(w)
            assert got.loc[("neox", 1, 7), "vocab_var"] == pytest.approx(cosine.var(), rel=1e-9)

    def test_dead_neurons_are_nan_and_nobody_s_partner(self, folders, tmp_path):
        from safetensors.torch import load_file, save_file

        for name in ("left", "right"):
            dead = tiny.gpt2(tmp_path / name, seed=7 if name == "left" else 8)
            tensors = load_file(dead / "model.safetensors")
            tensors["transformer.h.1.mlp.c_fc.weight"][:, 5] = 0
            save_file(tensors, dead / "model.safetensors", metadata={"format": "pt"})
        run = pyuniversal.run([tmp_path / "left", tmp_path / "right"], out=tmp_path / "run", **self.options)
        dead = run.neurons["constant"]
        assert dead[dead].index.tolist() == [("left", 1, 5), ("right", 1, 5)]
        assert run.neurons.loc[dead, ["max_corr", "mean_baseline", "excess_corr", "skew", "kurt"]].isna().all(axis=None)
        assert not run.neurons.loc[dead, "universal"].any()
        assert run.neurons.loc[~dead, ["max_corr", "mean_baseline"]].notna().all(axis=None)
        assert run.matches.query("layer == 1 and neuron == 5").empty
        assert run.matches.query("partner_layer == 1 and partner_neuron == 5").empty
        assert run.matches["r"].notna().all()

    def test_the_same_command_again_changes_nothing(self, folders, tmp_path):
        first = pyuniversal.run(folders[:2], out=tmp_path, **self.options)
        files = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
        pyuniversal.run(folders[:2], out=tmp_path, **self.options)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == files
        assert first.manifest["options"]["text"] == "list"

    def test_another_run_s_folder(self, folders, tmp_path):
        pyuniversal.run(folders[:2], out=tmp_path, **self.options)
        with pytest.raises(InputError, match=r"seed \(0 there, 4 asked for\).*--overwrite"):
            pyuniversal.run(folders[:2], out=tmp_path, seed=4, **self.options)
        keep = tmp_path / "my-notes.txt"
        keep.write_text("mine")
        run = pyuniversal.run(folders[1:], out=tmp_path, seed=4, overwrite=True, **self.options)
        assert [m["label"] for m in run.manifest["models"]] == ["b", "c"]
        assert keep.read_text() == "mine"

    def test_overwrite_spares_its_own_input(self, folders, tmp_path):
        pyuniversal.run(folders[:2], out=tmp_path, **self.options)
        with pytest.raises(InputError, match=r"--overwrite would remove .*tokens, which this run is to read"):
            pyuniversal.run(folders[:2], tokens=tmp_path / "tokens", out=tmp_path, overwrite=True, seed=3, progress=False)
        with pytest.raises(InputError, match="neither a local folder nor"):
            pyuniversal.run([folders[0], "no-such-model"], out=tmp_path, overwrite=True, **self.options)
        assert len(pyuniversal.open_run(tmp_path).neurons) == 240

    def test_a_handful_of_tokens_is_no_finding(self, folders, tmp_path, caplog):
        run = pyuniversal.run(folders[:2], text=["of the hot", "with"], row_tokens=16, out=tmp_path, seed=1, progress=False)
        assert "tokens were correlated: with so few, neurons find partners by chance alone" in caplog.text
        assert run.neurons["max_baseline"].max() <= 1
        assert run.neurons["max_corr"].max() <= 1

    def test_labels_that_stand_twice(self, folders, tmp_path):
        again = [tiny.gpt2(tmp_path / where / name, seed=seed) for seed, (where, name) in enumerate((("1", "a"), ("2", "a"), ("3", "a-2")), start=5)]
        run = pyuniversal.run(again, out=tmp_path / "run", **self.options)
        assert sorted(p.stem for p in (run.path / "tables").iterdir()) == ["a", "a-2", "a-2-2"]
        assert set(run.matches["other"].unique()) == {"a", "a-2", "a-2-2"}

    def test_a_table_that_was_interrupted_is_no_finished_run(self, folders, tmp_path, monkeypatch):
        pyuniversal.run(folders[:2], out=tmp_path, **self.options)
        with monkeypatch.context() as patch:
            patch.setattr("pyuniversal.stages.tables.write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pyuniversal.table_stage(tmp_path, legacy=True)
        with pytest.raises(FileError, match=r"has not come to its end: repeat the command that started it, or `pyuniversal table"):
            pyuniversal.open_run(tmp_path)
        assert pyuniversal.table_stage(tmp_path).manifest["options"]["legacy"] is False

    def test_bad_input(self, folders, tmp_path):
        out = tmp_path / "run"
        with pytest.raises(InputError, match=r"models were given but no text: give --text .* or --tokens"):
            pyuniversal.run(folders, out=out)
        with pytest.raises(InputError, match=r"both a text and a folder of tokens were given"):
            pyuniversal.run(folders, text=["a"], tokens=zoo.tokens(), out=out)
        with pytest.raises(InputError, match="no model was given"):
            pyuniversal.run([], text=["a"], out=out)
        with pytest.raises(InputError, match=r"/a and .*/a have the same weights"):
            pyuniversal.run([folders[0], folders[0]], out=out, **self.options)
        with pytest.raises(InputError, match=r"a and other .*tokenizer"):
            pyuniversal.run([folders[0], tiny.gpt2(tmp_path / "other", words=["quite", "different"])], out=out, **self.options)
        with pytest.raises(InputError, match="were made with another tokenizer than that of a"):
            pyuniversal.run(folders, tokens=zoo.tokens(), out=out)
        with pytest.raises(InputError, match="unknown baseline 'permutation'; choose one of haar, gaussian"):
            pyuniversal.run(folders[:2], out=out, **(self.options | {"baseline": "permutation"}))
        with pytest.raises(InputError, match="unknown precision 'int4'"):
            pyuniversal.run(folders[:2], out=tmp_path / "int4", precision="int4", **self.options)
        with pytest.raises(FileError, match="holds no run"):
            pyuniversal.open_run(tmp_path)
        with pytest.raises(FileError, match="holds no complete pass"):
            pyuniversal.table_stage(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(FileError, match=r"cannot write to the folder .*file.*Choose another one with --out"):
            pyuniversal.run(folders, out=tmp_path / "file", **self.options)

    def test_too_little_memory_is_said_before_the_start(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("pyuniversal.streaming.memory.free_bytes", lambda device: 1_000_000)
        with pytest.raises(NotEnoughMemoryError) as caught:
            pyuniversal.run(folders, out=tmp_path, **self.options)
        message = str(caught.value)
        totals = 4 * (len(folders) * (len(folders) - 1) // 2 * (3 * 40) ** 2 + len(folders) * 3 * 40**2)
        for words in (
            f"this run does not fit on cpu. Its products take {totals / 1e6:.1f} MB, a chunk in work ",
            "products resident: ",
            "products sweeps: ",
            "products disk: ",
            f" MB of memory ({1 / 1.03:.1f} MB free)",
            "a shorter chunk (--chunk-tokens ",
            "half of the layers (--layers 0-0) needs ",
            "two models at a time needs " if len(folders) > 2 else "a very short one (--chunk-tokens ",
        ):
            assert words in message
        assert isinstance(caught.value, MemoryError)
        assert not (tmp_path / "totals").exists()


def test_plan_counts_operations_and_bytes():
    plan = pipeline.plan(max_tokens=100_000, baseline_draws=3)
    cells = 10 * 2048**2 + 5 * 4 * 512**2
    assert plan.work.product_flops == 2 * 100_000 * cells
    assert plan.work.baseline_flops == 3 * 20 * 2 * 2048**2 * 512
    # Attention 4 d^2, MLP 8 d^2, each weight one multiplication and one addition a token.
    assert plan.work.forward_flops == 2 * 100_000 * 5 * 4 * 12 * 128**2
    assert plan.shapes.totals_bytes == 4 * cells
    assert plan.layout.storage == "resident"
    assert 4 * cells + 16_384 * 2048 * (8 + 5) < plan.layout.memory_bytes < 4 * cells + 16_384 * 2048 * (8 + 5) + 200e6
    assert plan.fits == (plan.memory_bytes <= plan.available_bytes)
    assert plan.work.tokens == 100_000
    assert pipeline.plan(max_tokens=10**9).work.tokens == pyuniversal.load_tokens(zoo.tokens()).n_tokens
