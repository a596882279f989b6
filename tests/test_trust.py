"""What a run says of itself: confirmation on held-out documents, all pairs on a part of the text only, verification."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from click.testing import CliRunner

import pyuniversal
from pyuniversal import FileError, InputError, ModelSite, cli, load_model, load_tokens, tokenize
from pyuniversal.models.loading import DTYPES
from pyuniversal.stages.confirming import held_out_rows
from pyuniversal.stages.verifying import ACTIVATIONS
from pyuniversal.streaming import choose_rows
from pyuniversal.streaming.chunks import gather, make_chunk

COLUMNS = 3 * 40
OPTIONS = {"chunk_tokens": 512, "baseline_draws": 2, "top_k": COLUMNS, "progress": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """b has the neurons of a but for a little noise, so that the best partners are no toss-up; c is a stranger."""
    made = [tiny.gpt2(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate("abc")]
    from transformers import GPT2LMHeadModel

    a, b = (GPT2LMHeadModel.from_pretrained(folder) for folder in made[:2])
    generator = torch.Generator().manual_seed(5)
    for mine, theirs in zip(b.parameters(), a.parameters(), strict=True):
        mine.data = theirs.data + 0.03 * torch.randn(theirs.shape, generator=generator)
    b.save_pretrained(made[1])
    return made


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, folders) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    tokenize(tiny.sentences(300, seed=1), load_model(folders[0]).tokenizer, out=out, row_tokens=32, progress=False)
    return out


@pytest.fixture(scope="module")
def whole(folders, tokens, tmp_path_factory) -> pyuniversal.Run:
    return pyuniversal.run(folders, tokens=tokens, out=tmp_path_factory.mktemp("whole"), precision="float64", **OPTIONS)


def seen_on(folders, tokens: Path, rows: np.ndarray) -> list[np.ndarray]:
    """Activations of some rows over the token set r, float64 [tokens, columns] of each model."""
    corpus = load_tokens(tokens)
    chunk = make_chunk(corpus, rows, batch_tokens=512, device="cpu")
    return [gather(ModelSite(load_model(f)), chunk)["mlp.post"][: chunk.ends[0]].double().numpy() for f in folders]


def test_partners_are_confirmed_where_they_were_not_chosen(whole, folders, tokens):
    corpus = load_tokens(tokens)
    dense, held = choose_rows(corpus, max_tokens=None, seed=0), held_out_rows(corpus, seed=0)
    assert not set(corpus.documents[held]) & set(corpus.documents[dense])
    ninth = int(corpus.lengths[dense].sum()) // 9
    held = held[: np.searchsorted(corpus.lengths[held].cumsum(), ninth, side="right")]
    a, _, c = seen_on(folders, tokens, held)
    r = np.corrcoef(a.T, c.T)[:COLUMNS, COLUMNS:]
    best = whole.matches.query("model == 'a' and other == 'c' and rank == 0")
    truth = r[best["layer"] * 40 + best["neuron"], best["partner_layer"] * 40 + best["partner_neuron"]]
    np.testing.assert_allclose(best["r_confirmed"], truth, atol=1e-6)
    assert (best["r_se"] > 0).all()
    assert whole.matches.query("rank > 0")["r_confirmed"].isna().all()
    own = whole.matches.query("model == 'a' and rank == 0").groupby(["layer", "neuron"])["r_confirmed"]
    np.testing.assert_allclose(whole.neurons.loc["a", "mean_corr_confirmed"], own.mean(), atol=1e-12)
    np.testing.assert_allclose(whole.neurons["excess_confirmed"], whole.neurons["mean_corr_confirmed"] - whole.neurons["mean_baseline"], atol=1e-12)
    told = whole.summary()["models"]["a"]["confirmed"]
    beyond = whole.neurons.loc["a", "excess_confirmed"] - 0.5
    assert told == {"universal": (beyond > 0).sum(), "undecided": (beyond.abs() <= 2 * whole.neurons.loc["a", "excess_se"]).sum()}


@pytest.mark.parametrize("precision", ["float64", "int8"])
def test_all_pairs_on_a_part_of_the_text_and_the_best_on_the_rest(whole, folders, tokens, tmp_path, caplog, precision):
    caplog.set_level("INFO")
    run = pyuniversal.run(folders, tokens=tokens, out=tmp_path, precision=precision, dense_tokens=4_000, **OPTIONS)
    corpus = load_tokens(tokens)
    dense, everything = (choose_rows(corpus, max_tokens=limit, seed=0) for limit in (4_000, None))
    rest = int(corpus.lengths[everything[len(dense) :]].sum())
    assert rest > corpus.lengths[dense].sum()
    cells, pairs = 3 * COLUMNS**2 + 3 * 3 * 40**2, 6 * COLUMNS * 16
    assert f"{rest:,} further tokens for 16 candidates of every neuron: {2 * rest * pairs:.2e} operations instead of {2 * rest * cells:.2e}" in caplog.text
    keys = ["model", "layer", "neuron", "other"]
    both = run.matches.merge(whole.matches, on=[*keys, "partner_layer", "partner_neuron"], suffixes=("", "_whole"))
    assert len(both) == len(run.matches) == 6 * COLUMNS * 16
    error = both["r"] - both["r_whole"]
    if precision == "float64":
        assert error.abs().max() < 1e-6
    else:
        assert (error.abs() <= 6 * both["stderr"] + 1e-6).all()
        assert 0.8 < (error / both["stderr"]).std() < 1.2
    best, truth = (r.matches.query("rank == 0 and model != 'c' and other != 'c'").set_index(keys)[["partner_layer", "partner_neuron"]] for r in (run, whole))
    assert (best == truth).all(axis=1).mean() > (0.999 if precision == "float64" else 0.98)


def test_confirm_tokens_need_dense_tokens(folders, tokens, tmp_path):
    with pytest.raises(InputError, match="say with --dense-tokens how many go through that"):
        pyuniversal.run(folders, tokens=tokens, out=tmp_path, confirm_tokens=100, **OPTIONS)


def test_verify_finds_what_was_changed(whole, folders, tokens, tmp_path):
    found = pyuniversal.pipeline.verify(whole.path, progress=False)
    assert found["failures"] == []
    assert found["neurons"] == dict.fromkeys("abc", 8)
    assert found["correlations"] == 6 * 8
    assert found["largest_difference"] < 1e-5
    path = whole.path / "matches.parquet"
    kept = path.read_bytes()
    matches = pd.read_parquet(path)
    best = matches["rank"] == 0
    matches.loc[best, "r"] -= 2e-4
    matches.to_parquet(path, index=False)
    result = CliRunner().invoke(cli.main, ["verify", str(whole.path), "--json", "--quiet"])
    path.write_bytes(kept)
    assert result.exit_code == 1
    changed, *failures = json.loads(result.stdout)["failures"]
    assert changed == f"{path} is not what the run wrote; `pyuniversal table {whole.path}` makes it again"
    assert len(failures) == 6 * 8
    assert all(" computed again" in words and " of a with L" in words for words in failures[:8])
    victim = next((whole.path / "totals").glob("within-0-1*"))
    kept = victim.read_bytes()
    victim.write_bytes(kept[:-3] + bytes([kept[-3] ^ 1]) + kept[-2:])
    with pytest.raises(FileError, match=rf"{victim.name} is damaged"):
        pyuniversal.pipeline.verify(whole.path, progress=False)
    victim.write_bytes(kept)


@pytest.mark.parametrize("name", ["neurons.parquet", "depth.parquet", "claims.json", "tables/b.csv"])
def test_verify_finds_a_table_that_was_changed_or_is_gone(whole, name):
    path = whole.path / name
    kept = path.read_bytes()
    try:
        for left, told in ((kept.replace(b"0", b"1", 1), "is not what the run wrote"), (None, "is not there")):
            path.unlink()
            if left is not None:
                path.write_bytes(left)
            found = pyuniversal.pipeline.verify(whole.path, progress=False)
            assert found["failures"] == [f"{path} {told}; `pyuniversal table {whole.path}` makes it again"]
            path.write_bytes(kept)
    finally:
        path.write_bytes(kept)


def test_verify_allows_what_the_dtype_of_the_models_loses(whole, folders, tokens, tmp_path, monkeypatch):
    """Activations that differ by three per cent: more than float32 explains, less than bfloat16 of another machine may."""
    short = pyuniversal.run(folders[::2], tokens=tokens, out=tmp_path, dtype="bfloat16", max_tokens=4_000, **OPTIONS)
    assert short.manifest["options"]["dtype"] == "bfloat16"
    generator = torch.Generator().manual_seed(3)

    def elsewhere(*args, **options):
        return {site: x * (1 + 0.03 * torch.randn(x.shape, generator=generator)).to(x.dtype) for site, x in gather(*args, **options).items()}

    monkeypatch.setattr("pyuniversal.streaming.confirmation.gather", elsewhere)
    found = pyuniversal.pipeline.verify(short.path, progress=False)
    assert found["failures"] == []
    assert 1e-4 < found["largest_difference"] < 2e-2
    assert len(pyuniversal.pipeline.verify(whole.path, progress=False)["failures"]) > 24
    assert set(ACTIVATIONS) == set(DTYPES)


def test_what_is_not_of_the_run_is_refused(whole, folders, tokens, tmp_path):
    with pytest.raises(InputError, match=r"these models are not those of the run in .*, in this order"):
        pyuniversal.pipeline.verify(whole.path, folders[::-1], progress=False)
    other = tokenize(tiny.sentences(30, seed=9), load_model(folders[0]).tokenizer, out=tmp_path / "other", row_tokens=32, progress=False)
    with pytest.raises(InputError, match="holds other tokens than the run in"):
        pyuniversal.pipeline.confirm_stage(whole.path, tokens=other.path, progress=False)
    with pytest.raises(FileError, match="holds no complete pass"):
        pyuniversal.pipeline.confirm_stage(tmp_path, progress=False)


def test_confirm_is_a_stage_of_its_own(whole, folders, tokens, tmp_path):
    pyuniversal.observe_stage(folders, tokens=tokens, out=tmp_path, precision="float64", chunk_tokens=512, progress=False)
    bare = pyuniversal.table_stage(tmp_path, baseline_draws=2, top_k=COLUMNS)
    assert bare.neurons["excess_confirmed"].isna().all()
    assert bare.summary()["models"]["a"]["confirmed"] is None
    assert CliRunner().invoke(cli.main, ["confirm", str(tmp_path), "--quiet"]).exit_code == 0
    again = pyuniversal.table_stage(tmp_path, baseline_draws=2, top_k=COLUMNS)
    pd.testing.assert_frame_equal(again.neurons, whole.neurons)


def test_what_an_earlier_run_left_in_the_folder_is_not_taken(whole, folders, tokens, tmp_path, caplog, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(whole.path, out)
    shutil.rmtree(out / "totals")
    pyuniversal.observe_stage(folders, tokens=tokens, out=out, precision="float64", max_tokens=3_000, chunk_tokens=512, progress=False)
    table = pyuniversal.table_stage(out, baseline_draws=2, top_k=COLUMNS)
    assert "is not complete, or of other models, tokens or partners: nothing is taken from it" in caplog.text
    assert table.neurons["excess_confirmed"].isna().all()
    assert table.matches["r_confirmed"].isna().all()
    before = table.nulls["tokens"].max()
    shutil.rmtree(out / "confirmation")
    pyuniversal.pipeline.confirm_stage(out, null_tokens=400, progress=False)
    again = pyuniversal.table_stage(out, baseline_draws=2, top_k=COLUMNS)
    assert again.neurons["excess_confirmed"].notna().any()
    assert 0 < again.nulls["tokens"].max() <= 400 < before
    monkeypatch.setattr("pyuniversal.universality.nulls", lambda *_, **__: pytest.fail("the null that is there is the one asked for"))
    pyuniversal.pipeline.confirm_stage(out, null_tokens=400, progress=False)


def test_candidates_are_of_the_run_that_asked_for_them(folders, tokens, tmp_path):
    options = {"tokens": tokens, "out": tmp_path, "precision": "float64", "chunk_tokens": 512, "progress": False}
    dense = pyuniversal.run(folders, dense_tokens=4_000, baseline_draws=2, **options)
    assert dense.matches["rank"].max() == 15
    pyuniversal.observe_stage(folders, max_tokens=4_000, **options)
    plain = pyuniversal.table_stage(tmp_path, baseline_draws=2)
    assert plain.matches["rank"].max() == 49
    assert pyuniversal.pipeline.verify(tmp_path, progress=False)["failures"] == []


PLAIN, REFINED = {"max_tokens": 4_000}, {"dense_tokens": 4_000, "confirm_tokens": 3_000}


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        (REFINED, REFINED | {"confirm_tokens": 2_000}, "candidates holds the confirmation of another run; it differs in rows"),
        (REFINED, PLAIN, "confirmation holds the confirmation of another run; it differs in partners"),
        (PLAIN, REFINED, "confirmation holds the confirmation of another run: its partners are no candidates"),
        (PLAIN, {"max_tokens": 3_000}, "totals holds the totals of another run; it differs in rows"),
    ],
)
def test_a_refused_repeat_leaves_every_byte(folders, tokens, tmp_path, first, then, told):
    options = {"tokens": tokens, "out": tmp_path, "chunk_tokens": 512, "baseline_draws": 1, "top_k": 3, "progress": False}
    pyuniversal.run(folders[::2], **first, **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{told}.* Choose another --out, or --overwrite"):
        pyuniversal.run(folders[::2], **then, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    pyuniversal.run(folders[::2], **first, **options)


@pytest.mark.parametrize("verb", ["verify", "confirm"])
def test_what_a_manifest_names_is_told_before_it_is_loaded(whole, folders, tokens, tmp_path, monkeypatch, verb):
    out = tmp_path / "run"
    shutil.copytree(whole.path, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["models"][1]["source"] = "stranger/model\x1b[2J"
    (out / "manifest.json").write_text(json.dumps(manifest))
    told = []

    def load(models, **_):
        told.append(models)
        raise InputError("nothing is loaded here")

    monkeypatch.setattr("pyuniversal.stages.inputs.load_models", load)
    said = CliRunner().invoke(cli.main, [verb, str(out)]).stderr.splitlines()
    start = said.index(f"named by {out / 'manifest.json'}, not by this command, and loaded now:")
    assert said[start + 1 : start + 5] == [
        f"  model '{folders[0]}' from the folder '{folders[0].resolve()}'",
        "  model 'stranger/model\\x1b[2J' from the Hugging Face hub or its cache",
        f"  model '{folders[2]}' from the folder '{folders[2].resolve()}'",
        f"  tokens '{tokens}'",
    ]
    assert said[start + 5] == "Error: nothing is loaded here"
    own = CliRunner().invoke(cli.main, [verb, str(out), *map(str, folders), "--tokens", str(tokens)]).stderr
    assert "named by" not in own
    assert told[1] == [str(folder) for folder in folders]
    assert "names on the Hugging Face hub" in " ".join(CliRunner().invoke(cli.main, [verb, "--help"]).stdout.split())


def test_rows_of_joined_documents_are_confirmed_on_only_if_all_of_them_is_held_out(folders, tmp_path, caplog):
    corpus = tokenize(tiny.sentences(300, seed=1), load_model(folders[0]).tokenizer, out=tmp_path, row_tokens=16, packing="joined", progress=False)
    held = corpus.held_out(0)
    rows = held_out_rows(corpus, seed=0)
    assert 0 < len(rows) < held[corpus.documents].sum()
    for row in rows:
        following = corpus.documents[row + 1] if row + 1 < corpus.n_rows else corpus.n_documents - 1
        last = following if row + 1 == corpus.n_rows or corpus.starts[row + 1] > 0 else following - 1
        assert held[corpus.documents[row] : last + 1].all()
    assert f"rows share documents: {len(rows)} rows are of held-out documents alone" in caplog.text
