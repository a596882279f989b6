"""One pass in several processes: shards merged by hand, and ranks that torchrun starts, kills and starts again, against one process alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from pyuniversal import InputError, ModelSite, Totals, cli, load_model, load_tokens, observe
from pyuniversal.ops.moments import FIELDS
from pyuniversal.streaming import Ranks, one_pass, parts
from pyuniversal.streaming.parts import rank_folders
from pyuniversal.totals import ledger

COMMON = ["--row-tokens", "32", "--chunk-tokens", "128", "--batch-tokens", "64", "--seed", "3"]
TABLE = ["--baseline-draws", "1", "--top-k", "3"]
# What torchrun starts: the command line, which notes every chunk that a rank adds and, as the third of one rank begins, dies or fails.
SHARED = """
import os, signal, sys
from pyuniversal.cli import main
from pyuniversal.errors import InputError
from pyuniversal.streaming import one_pass

rank, attempt, real, added = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], one_pass._add, []

def add(group, number, *rest, **options):
    if len(added) == 2 and attempt == "0" and rank == os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    if len(added) == 2 and rank == os.environ.get("FAILS"):
        raise InputError("the third chunk is not to my taste")
    real(group, number, *rest, **options)
    added.append(number)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{rank} {attempt} {number}\\n")

one_pass._add = add
main(prog_name="pyuniversal")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a text and two models, the second a copy of the first with a tenth of noise: some of its neurons have partners."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.gpt2(folder / "a", seed=0)
    shutil.copytree(folder / "a", folder / "b")
    generator = torch.Generator().manual_seed(1)
    weights = load_file(folder / "a/model.safetensors")
    noisy = {name: w + 0.1 * w.std() * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noisy, folder / "b/model.safetensors", metadata={"format": "pt"})
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.sentences(70)))
    (folder / "shared.py").write_text(SHARED)
    return folder


def command(work: Path, verb: str, out: str, *options: str, text: bool = True) -> list[str]:
    corpus = ["--text", str(work / "text.jsonl")] if text else []
    return [verb, str(work / "a"), str(work / "b"), *corpus, *COMMON, "--out", str(work / out), *options]


def invoke(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, list(words))
    assert result.exit_code == code, result.output
    return result


def torchrun(work: Path, processes: int, words: list[str], *, restarts: int = 0, **environment: str) -> tuple[Any, list[list[int]]]:
    """The result of torchrun, and what was added: [rank, attempt, chunk]."""
    notes = work / f"{Path(words[words.index('--out') + 1]).name}.notes"
    start = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts), str(work / "shared.py")]
    # As many threads as here: with others, a model's last bits may differ.
    variables = os.environ | {"NOTES": str(notes), "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    run = [sys.executable, "-m", "torch.distributed.run", *start, *words]
    result = subprocess.run(run, capture_output=True, text=True, check=False, env=variables, timeout=120)
    return result, [[int(word) for word in line.split()] for line in notes.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(work) -> Path:
    invoke(*command(work, "run", "alone", *TABLE))
    return work / "alone"


def assert_same_sums(found: Totals, wanted: Totals) -> None:
    """Counts exactly, moments to the rounding of float64 sums, products to that of their float32 sums."""
    assert found.complete
    assert wanted.n_chunks > 9
    assert (found.identity, found.sources, found.tokens) == (wanted.identity, wanted.sources, wanted.tokens)
    for i in range(len(wanted.sources)):
        assert torch.equal(found.centre[i], wanted.centre[i])
        assert torch.equal(found.histogram[i].counts, wanted.histogram[i].counts)
        for mine, theirs in ((found.site[i], wanted.site[i]), (found.pre[i], wanted.pre[i])):
            a, b = (dict(zip(FIELDS, m.state.unbind(1), strict=True)) for m in (mine, theirs))  # [sets, neurons] each
            for name in ("count", "positive", "minimum", "maximum"):
                assert torch.equal(a[name], b[name]), name
            # A mean and a third moment may be near 0 by cancellation: what rounds is of the size of the spread, or by Cauchy and Schwarz of sqrt(M2 M4).
            size = {"mean": (b["M2"] / b["count"]).sqrt(), "M2": b["M2"], "M3": (b["M2"] * b["M4"]).sqrt(), "M4": b["M4"]}
            for name, scale in size.items():
                assert ((a[name] - b[name]).abs() <= 1e-12 * scale).all(), name
    assert set(found.products) == set(wanted.product_keys())
    for key, product in found.products.items():
        other, (i, layer, j) = wanted.products[key], key
        assert product.tokens == other.tokens == wanted.tokens
        left, right = (wanted.site[s].field("M2", "r") for s in (i, j))
        width = wanted.sources[i].width
        left = left[layer * width : (layer + 1) * width]
        size = left[:, None].sqrt() * (left if i == j else right).sqrt()
        # Two orders of n sums, each rounded to 24 bits, of terms that together are no more than the product of the spreads.
        assert ((product.total - other.total).abs() <= wanted.n_chunks * 2**-23 * size).all()
        for mine, theirs in zip(product.rounding, other.rounding, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
        assert all(torch.equal(*both) for both in zip(product.centre, other.centre, strict=True))


def assert_same_findings(found: Path, wanted: Path) -> None:
    neurons, others = (pd.read_parquet(folder / "neurons.parquet") for folder in (found, wanted))
    assert 5 < others["universal"].sum() < len(others) - 5
    for column in ("universal", "universal_strict"):
        assert (neurons[column] == others[column]).all(), column
    for column in ("mean_corr", "mean_baseline", "skew", "sparsity"):
        np.testing.assert_allclose(neurons[column], others[column], atol=1e-6, rtol=0)
    matches, theirs = (pd.read_parquet(folder / "matches.parquet") for folder in (found, wanted))
    np.testing.assert_allclose(matches["r"], theirs["r"], atol=1e-6, rtol=0)
    clear = theirs["r"] - theirs.groupby(["model", "layer", "neuron", "other"], observed=True)["r"].shift(-1) > 1e-6
    best = clear & (theirs["rank"] == 0)
    assert best.sum() > 200
    assert (matches[best][["partner_layer", "partner_neuron"]] == theirs[best][["partner_layer", "partner_neuron"]]).all(axis=None)


def test_two_processes_find_what_one_finds(work, alone):
    result, added = torchrun(work, 2, command(work, "run", "two", *TABLE, "--json"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["path"] == str(work / "two"), "one process talks"
    assert result.stderr.count("pyuniversal run\n") == 1
    whole = Totals.load(alone / "totals")
    assert sorted(added) == sorted([chunk % 2, 0, chunk] for chunk in range(whole.n_chunks))
    assert_same_sums(Totals.load(work / "two/totals"), whole)
    assert_same_findings(work / "two", alone)
    assert not rank_folders(work / "two/totals")
    assert not (work / "two/totals/ledger.previous.json").exists()


def test_a_killed_rank_goes_on_from_its_checkpoint(work, alone):
    # On disk, every chunk is saved. --overwrite must not throw away what was saved before the kill.
    words = command(work, "observe", "killed", "--storage", "disk", "--overwrite")
    result, added = torchrun(work, 3, words, restarts=1, DIES="1")
    assert result.returncode == 0, result.stderr
    whole = Totals.load(alone / "totals")
    assert [chunk for rank, attempt, chunk in added if (rank, attempt) == (1, 0)] == [1, 4]
    assert any(attempt == 1 for _, attempt, _ in added)
    assert Counter(chunk for _, _, chunk in added) == Counter(range(whole.n_chunks)), "no chunk is computed twice"
    assert_same_sums(Totals.load(work / "killed/totals"), whole)
    assert not rank_folders(work / "killed/totals")


def test_a_failing_rank_says_why_ends_all_and_loses_nothing(work, alone):
    words = command(work, "observe", "failing", "--storage", "disk")
    start = time.monotonic()
    result, added = torchrun(work, 2, words, FAILS="1")
    assert result.returncode != 0
    assert time.monotonic() - start < 120
    assert "Error (rank 1): the third chunk is not to my taste" in result.stderr
    assert [chunk for rank, _, chunk in added if rank == 1] == [1, 3]
    kept = Totals.load(work / "failing/totals/rank-1")
    assert kept.chunks == {1, 3}
    again = invoke(*words)
    assert "took over 2 chunks of an earlier rank 1" in again.stderr
    assert_same_sums(Totals.load(work / "failing/totals"), Totals.load(alone / "totals"))
    assert not rank_folders(work / "failing/totals")


@pytest.fixture(scope="module")
def shards(work, alone) -> list[Path]:
    """The two halves of the run, made apart."""
    for k in (0, 1):
        told = invoke(*command(work, "observe", f"shard-{k}", "--shard", f"{k}/2"))
        n = Totals.load(alone / "totals").n_chunks
        assert f"shard {k}/2: {len(range(k, n, 2))} of {n} chunks are there" in told.stderr
        assert f"  shard              {k}/2\n" in told.stderr
    return [work / "shard-0", work / "shard-1"]


def test_shards_merged_are_one_run(work, alone, shards):
    whole = Totals.load(alone / "totals")
    for k, folder in enumerate(shards):
        assert Totals.load(folder / "totals").chunks == set(range(k, whole.n_chunks, 2))
        assert not (folder / "totals/ledger.previous.json").exists(), "a shard that is done keeps one generation"
        refused = invoke("table", str(folder), code=1).stderr
        assert f"{folder} holds {len(range(k, whole.n_chunks, 2))} of the {whole.n_chunks} chunks" in refused
        assert "`pyuniversal merge` joins" in refused
    before = {path: path.read_bytes() for folder in shards for path in folder.rglob("*") if path.is_file()}
    told = json.loads(invoke("merge", *map(str, shards), "--out", str(work / "merged"), "--json").stdout)
    assert told == {"path": str(work / "merged"), "tokens": whole.tokens, "chunks": whole.n_chunks, "missing": 0}
    assert {path: path.read_bytes() for path in before} == before, "what is merged stays as it is"
    assert_same_sums(Totals.load(work / "merged/totals"), whole)
    manifest = json.loads((work / "merged/manifest.json").read_text())
    assert [part["path"] for part in manifest["parts"]] == [str(folder) for folder in shards]
    assert sum(part["tokens"] for part in manifest["parts"]) == manifest["tokens"]["correlated"] == whole.tokens
    assert "shard" not in manifest
    invoke("table", str(work / "merged"), *TABLE, "--seed", "3")
    assert_same_findings(work / "merged", alone)


def test_shards_of_machines_whose_pilots_differ_are_one_run(work, alone, shards, monkeypatch):
    real, off = one_pass._pilot, torch.tensor([1e-7, -3e-8, 0.02, 0.0])

    def pilot(*args, **options):
        centre = real(*args, **options)
        return centre + off.repeat(len(centre) // 4)

    with monkeypatch.context() as patch:
        patch.setattr(one_pass, "_pilot", pilot)
        invoke(*command(work, "observe", "elsewhere", "--shard", "1/2", "--precision", "float64"))
    invoke(*command(work, "observe", "here", "--shard", "0/2", "--precision", "float64"))
    invoke(*command(work, "observe", "one", "--precision", "float64"))
    invoke("merge", str(work / "here"), str(work / "elsewhere"), "--out", str(work / "both"))
    found, wanted = (Totals.load(work / name / "totals") for name in ("both", "one"))
    assert not torch.equal(Totals.load(work / "elsewhere/totals").centre[0], wanted.centre[0])
    for key, product in found.products.items():
        size = wanted.products[key].total.abs().max()
        assert ((product.total - wanted.products[key].total).abs() <= 1e-12 * size).all(), key
        assert all(torch.equal(*both) for both in zip(product.centre, wanted.products[key].centre, strict=True))


def test_three_shards_two_of_them_merged_first(work, alone):
    folders = [work / f"third-{k}" for k in range(3)]
    for k, folder in enumerate(folders):
        invoke(*command(work, "observe", folder.name, "--shard", f"{k}/3"))
    told = invoke("merge", str(folders[2]), str(folders[0]), "--out", str(work / "some"))
    missing = len(range(1, Totals.load(alone / "totals").n_chunks, 3))
    assert f"{missing} chunks are still missing" in told.stdout
    invoke("merge", str(work / "some"), str(folders[1]), "--out", str(work / "all"))
    assert_same_sums(Totals.load(work / "all/totals"), Totals.load(alone / "totals"))


def test_what_cannot_be_merged_is_told_by_folder(work, alone, shards, tmp_path):
    first, second = map(str, shards)
    out = tmp_path / "out"

    def refused(*words: str) -> str:
        told = invoke("merge", *words, "--out", str(out), code=1).stderr
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
        return told

    assert f"{first} and {first}: cannot merge: both totals hold chunk 0 and" in refused(first, first)
    assert f"{second} and {alone}: cannot merge: both totals hold chunk 1" in refused(second, str(alone))
    assert "merging takes two folders or more" in refused(first)
    assert f"{tmp_path / 'absent'} holds no pass that came to its end" in refused(first, str(tmp_path / "absent"))
    invoke(*command(work, "observe", "stranger", "--shard", "1/2", "--precision", "bf16"))
    assert f"{first} and {work / 'stranger'}: cannot merge totals of different runs: they differ in precision" in refused(first, str(work / "stranger"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    told = invoke("merge", first, second, "--out", str(tmp_path / "full"), code=1).stderr
    assert f"{tmp_path / 'full'} is there already and not empty" in told
    assert (tmp_path / "full/mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("2/2", "there is no shard 2/2: of 2 the first is 0/2 and the last 1/2."),
        ("0", "'0' is no shard; write which and of how many, from 0 on: 0/2 and 1/2 are the two halves."),
        ("a/b", "'a/b' is no shard"),
        ("1/2/3", "'1/2/3' is no shard"),
        ("0/0", "'0/0' is a shard of nothing."),
    ],
)
def test_what_is_no_shard(written, words):
    assert words in " ".join(invoke("observe", "a", "--shard", written, code=2).stderr.split())


def test_shards_of_the_library(work, alone):
    sources, tokens = [ModelSite(load_model(work / "a"))], load_tokens(alone / "tokens")
    with pytest.raises(InputError, match="there is no shard 3/3: of 3 shards the first is 0 and the last 2"):
        observe(sources, tokens, shard=(3, 3), progress=False)
    assert observe(sources, tokens, shard=(2, 3), chunk_tokens=128, seed=3, progress=False).chunks == set(range(2, Totals.load(alone / "totals").n_chunks, 3))
    assert not observe(sources, tokens, shard=(999, 1000), chunk_tokens=128, progress=False).chunks


def test_sweeps_go_on_where_a_rank_left_products_unequal(work, alone, tmp_path, monkeypatch):
    """Rank folders of a run in sweeps hold some products and not others; one process takes them over and adds what is missing, sum by sum."""
    sources = [ModelSite(load_model(work / name)) for name in "ab"]
    tokens, whole = load_tokens(alone / "tokens"), Totals.load(alone / "totals")
    keys = whole.product_keys()
    options = {"chunk_tokens": 128, "batch_tokens": 64, "seed": 3, "progress": False}
    for k in (0, 1):
        folder = tmp_path / "totals" / (f"rank-{k}" if k else "")
        observe(sources, tokens, out=folder, shard=(k, 3), sweeps=[keys[:4]] if k else [keys], **options)
    left = Totals.load(tmp_path / "totals/rank-1")
    assert len(left.added[keys[0]]) == len(range(1, whole.n_chunks, 3))
    assert not left.added[keys[-1]]
    summed, real = {}, one_pass._add

    def add(group, number, *rest, **more):
        summed[number] = group.open(number)
        real(group, number, *rest, **more)

    monkeypatch.setattr(one_pass, "_add", add)
    assert_same_sums(observe(sources, tokens, out=tmp_path / "totals", **options), whole)
    assert summed == {chunk: keys[4:] if chunk % 3 == 1 else keys for chunk in range(whole.n_chunks) if chunk % 3}, "what is there is not done again"
    assert not rank_folders(tmp_path / "totals")


@pytest.mark.parametrize("verb", ["table", "confirm", "verify"])
def test_one_process_alone_does_what_is_not_shared(work, alone, tmp_path, monkeypatch, verb):
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    (out / "nulls.parquet").unlink()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert invoke(verb, str(out)).output == ""
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.setenv("RANK", "0")
    assert invoke(verb, str(out), "--quiet").exit_code == 0
    assert verb == "verify" or {path: path.stat().st_mtime_ns for path in out.rglob("*")} != {path: time for path, (time, _) in before.items()}


def test_one_rank_alone_hashes_the_sums_of_all(work, alone, monkeypatch):
    hashed, real = [], ledger.file_sha256
    monkeypatch.setattr(ledger, "file_sha256", lambda path: hashed.append(path) or real(path))
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    out, where = alone / "totals", {"device": "cpu", "home": "cpu"}
    found = parts._completed(None, out, Ranks(1, 2), **where)
    assert not hashed
    assert_same_sums(found, Totals.load(out))
    assert {path.name for path in hashed} == {path.name for path in out.glob("*.safetensors")}


def test_environment(monkeypatch):
    assert Ranks.here() == Ranks(0, 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="MASTER_PORT is not set: start them with torchrun"):
        Ranks.here()
    monkeypatch.setenv("MASTER_PORT", "1")
    ranks = Ranks.here()
    assert (ranks.rank, ranks.world, ranks.local) == (3, 4, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (ranks.device("cuda"), ranks.device("cpu")) == ("cuda:1", "cpu")
    with pytest.raises(InputError, match="would put all 4 processes on one GPU"):
        ranks.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="process 1 of this machine has no GPU: there are 1"):
        ranks.device("cuda")
