"""A disk that is full at the first, second, third ... write of a run, and damaged checkpoints: told in words, and the same command ends with the same bytes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result
from crash import differences, left

from pyuniversal import Totals, cli, load_model, tokenize
from pyuniversal.streaming import checkpoints, one_pass


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A run of two models over three chunks, without its folder."""
    folder = tmp_path_factory.mktemp("inputs")
    models = [tiny.gpt2(folder / name, seed=seed) for seed, name in enumerate("ab")]
    tokens = tokenize(tiny.sentences(16), load_model(models[0]).tokenizer, out=folder / "tokens", row_tokens=32, progress=False)
    return [*map(str, models), "--tokens", str(tokens.path), "--chunk-tokens", "320", "--top-k", "5", "--quiet", "--out"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A checkpoint after every chunk, coarse pictures, few batches of held-out documents."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    monkeypatch.setattr("pyuniversal.report.figures.DPI", 20)
    monkeypatch.setattr("pyuniversal.stages.confirming.document_batches.__kwdefaults__", {"batches": 2})


@pytest.fixture(scope="module")
def expected(words, tmp_path_factory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyuniversal.stages.confirming.document_batches.__kwdefaults__", {"batches": 2})
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        assert command("run", words, out).exit_code == 0
    assert Totals.load(out / "totals").n_chunks == 3
    return left(out)


def command(verb: str, words: list[str], out: Path) -> Result:
    return CliRunner().invoke(cli.main, [verb, *(words if verb == "run" else words[:6] + words[8:]), str(out)])


class Full:
    """Lets `limit` calls of some functions of `os` through, and then no more: the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, functions: tuple[str, ...]) -> None:
        self.calls, self.limit = 0, limit
        for name in functions:
            monkeypatch.setattr(os, name, self._limited(getattr(os, name)))

    def _limited(self, real):
        def call(*args, **options):
            if isinstance(args[0], int) and stat.S_ISDIR(os.fstat(args[0]).st_mode):
                return real(*args, **options)  # of a folder: takes no room
            self.calls += 1
            if self.calls > self.limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return call


def assert_told(result: Result) -> None:
    """In one sentence, which names a file and says what to do; not as a traceback."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert re.fullmatch(
        r"(?s)(.*chunks since the last checkpoint could not be saved.*)?"
        r"Error: cannot write /\S+: No space left on device\. Choose another folder or free some space\.\n",
        result.stderr,
    ), result.stderr


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_at_every_write_of_the_pass(words, expected, tmp_path, monkeypatch, function):
    limit, finished = 0, False
    while not finished:
        out = tmp_path / str(limit)
        with monkeypatch.context() as patch:
            full = Full(patch, limit, (function,))
            result = command("observe", words, out)
        finished = full.calls <= limit
        if not finished:
            assert_told(result)
            # Sixteen parts and a ledger; the centre no more, but after the ledger the one before; that one no more.
            saved = len(Totals.load(out / "totals").chunks) if (out / "totals/ledger.json").exists() else 0
            assert saved == (limit >= 17) + (limit >= 17 + 16) + (limit >= 17 + 17 + 16)
            result = command("observe", words, out)
        assert result.exit_code == 0, result.stderr
        found = left(out)
        assert len(found) > 50
        assert not [name for name in differences(found, expected) if name in found], limit
        limit += 1
    assert limit > 17 + 17 + 16 + 2  # weights, manifest


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_at_every_write_after_the_pass(words, expected, tmp_path, monkeypatch, function):
    assert command("observe", words, tmp_path / "pass").exit_code == 0
    limit, told = 0, set()
    while True:
        out = tmp_path / str(limit)
        shutil.copytree(tmp_path / "pass", out)
        with monkeypatch.context() as patch:
            full = Full(patch, limit, (function,))
            result = command("run", words, out)
        if full.calls <= limit:
            break
        assert_told(result)
        told.add(Path(re.search(r"cannot write (\S+):", result.stderr)[1]).name)
        if limit % 4 == 0:  # of most, the failure alone: a run to its end takes half a second
            assert command("run", words, out).exit_code == 0
            assert differences(left(out), expected) == []
        limit += 1
    assert result.exit_code == 0, result.stderr
    assert told >= {"weights.parquet", "manifest.json", "neurons.parquet", "matches.parquet", "a.csv", "b.csv", "claims.json", "depth.png"}, told


def stop_after_two_chunks(words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        real, seen = one_pass._see, []

        def see(*args):
            seen.append(args)
            if len(seen) > 2:
                raise KeyboardInterrupt
            return real(*args)

        patch.setattr(one_pass, "_see", see)
        assert command("observe", words, out).exit_code == 130


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "gone"])
def test_a_damaged_checkpoint_costs_one_checkpoint(words, expected, tmp_path, monkeypatch, damage):
    out = tmp_path / "run"
    stop_after_two_chunks(words, out, monkeypatch)
    assert Totals.load(out / "totals").chunks == {0, 1}
    named = {path.name.rsplit(".", 2)[0]: path for path in sorted((out / "totals").glob("cross-*"), key=lambda path: int(path.name.split(".")[1]))}
    victim = named["cross-0-1-1"]
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    elif damage == "foreign":
        shutil.copy(named["cross-0-2-1"], victim)
    else:
        victim.write_bytes(content[:-100] if damage == "cut" else content[:-100] + bytes([content[-100] ^ 8]) + content[-99:])
    words = [word for word in words if word != "--quiet"]
    result = CliRunner().invoke(cli.main, ["run", *words, str(out)])
    assert result.exit_code == 0, result.output
    assert str(victim) in result.stderr
    assert "Going back to the checkpoint before it, which holds 1 of 3 chunks" in result.stderr
    assert differences(left(out), expected) == []


def test_a_save_that_fails_after_going_back_leaves_the_older_checkpoint(words, expected, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop_after_two_chunks(words, out, monkeypatch)
    next((out / "totals").glob("cross-0-1-1.2.*")).unlink()
    with monkeypatch.context() as patch:
        Full(patch, 3, ("fsync",))
        assert command("observe", words, out).exit_code == 1
    assert Totals.load(out / "totals").chunks == {0}
    assert command("run", words, out).exit_code == 0
    assert differences(left(out), expected) == []


def test_what_a_kill_left_after_the_last_save_goes(words, expected, tmp_path):
    out = tmp_path / "run"
    assert command("observe", words, out).exit_code == 0
    whole = {path.name for path in (out / "totals").iterdir()}
    newest = max(path for path in (out / "totals").glob("cross-0-1-1.*"))
    for name in ("cross-0-1-1.0.safetensors", ".cross-0-1-1.2.safetensors.0a1b2c3d.tmp", ".tmpAb3dE9", ".ledger.json.0a1b2c3d.tmp", "mine.safetensors"):
        shutil.copy(newest, out / "totals" / name)
    assert command("run", words, out).exit_code == 0
    assert {path.name for path in (out / "totals").iterdir()} == whole | {"mine.safetensors"}
    assert differences(left(out), expected) == []
