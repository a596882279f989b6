"""A run survives what kills it: SIGKILL at any moment, signals that ask, a full disk at every write, damaged checkpoints; and leaves the same bytes.

PYUNIVERSAL_KILLS=100 pytest -s tests/test_crash.py -k killed: so many kills in all instead of a few, and the count of those survived.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from crash import Server, differences, kill_at, left

from pyuniversal.totals.ledger import from_ranges

KILLS = int(os.environ.get("PYUNIVERSAL_KILLS", "6"))
STORAGES = ("resident", "disk", "sweeps")
KEPT = "Chunks of the last checkpoint and stages that ended are kept"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    """Two models and a text of some twenty chunks, as words of the command line."""
    folder = tmp_path_factory.mktemp("inputs")
    models = [tiny.gpt2(folder / name, seed=seed) for seed, name in enumerate("ab")]
    return [*map(str, models), "--text", str(write_text(folder / "text.jsonl", 100)), "--row-tokens", "32", "--chunk-tokens", "256", "--top-k", "5"]


def write_text(path: Path, documents: int) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.sentences(documents)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


@pytest.fixture(scope="module")
def undisturbed(inputs, server, tmp_path_factory) -> tuple[dict, float]:
    """What the run leaves if nothing happens, and how long it takes."""
    out = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    server.start(words(inputs, out / "run"), log=out / "log")
    assert server.wait() == 0, (out / "log").read_text()
    assert chunks_in(out / "run") == (n := json.loads((out / "run/totals/ledger.json").read_text())["head"]["n_chunks"]) >= 20, n
    return left(out / "run"), time.monotonic() - start


def words(inputs: list[str], out: Path, storage: str = "resident") -> list[str]:
    return ["run", *inputs, "--storage", storage, "--out", str(out), "--quiet"]


def chunks_in(run: Path) -> int:
    """Chunks that every sum of a checkpoint holds; 0 where there is none."""
    from pyuniversal import Totals

    return len(Totals.load(run / "totals").chunks) if (run / "totals" / "ledger.json").exists() else 0


@pytest.mark.parametrize("storage", STORAGES)
def test_a_killed_run_ends_with_the_same_bytes(inputs, server, undisturbed, tmp_path, storage):
    expected, seconds = undisturbed
    dice = random.Random(STORAGES.index(storage))
    survived, finished = Counter[str](), 0
    while sum(survived.values()) < KILLS // len(STORAGES):
        out, log = tmp_path / f"run-{finished}", tmp_path / f"log-{finished}"
        while True:
            pid = server.start(words(inputs, out, storage), log=log, pause=dice.choice([0, 0.001, 0.004]))
            how = kill_at(pid, out / "totals", dice, seconds=seconds) if sum(survived.values()) < KILLS // len(STORAGES) else "not killed"
            code = server.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, log.read_text()
            survived[how] += 1
        finished += 1
        assert differences(left(out), expected) == []
        named = {part["file"] for part in json.loads((out / "totals/ledger.json").read_text())["parts"].values()}
        assert {path.name for path in (out / "totals").iterdir()} == {*named, "ledger.json"}, "a kill left files behind"
        assert [path for path in out.rglob("*") if path.name.startswith(".")] == []
    sys.stdout.write(
        f"\n{storage}: {sum(survived.values())} kills survived ({', '.join(f'{n} {how}' for how, n in survived.items())}), {finished} runs finished alike\n"
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_sigterm_saves_what_is_done(inputs, server, undisturbed, tmp_path, storage):
    out, log = tmp_path / "run", tmp_path / "log"
    command = [word for word in words(inputs, out, storage) if word != "--quiet"]
    pid = server.start(command, log=log, pause=0.003)
    ledger = out / "totals" / "ledger.json"
    while not ledger.exists() or json.loads(ledger.read_text())["generation"] < 5:
        time.sleep(0.002)
    before = held(ledger)
    os.kill(pid, signal.SIGTERM)
    assert server.wait() == 143
    told = log.read_text()
    assert f"Terminated. {KEPT}; the same command resumes where it stopped.\n" in told
    assert "Traceback" not in told
    done, of = map(int, re.search(r"stopped; (\d+) of (\d+) chunks are saved in", told).groups())
    assert (done, of) == (chunks_in(out), json.loads(ledger.read_text())["head"]["n_chunks"])
    assert done < of
    assert all(before[part] <= chunks for part, chunks in held(ledger).items() if part in before)
    server.start(command, log=log)
    assert server.wait() == 0
    assert done == 0 or f"resuming: {done} of {of} chunks are done" in log.read_text()
    assert differences(left(out), undisturbed[0]) == []


PLACES = {
    "tokens": ("pyuniversal.tokens.partial:Partial.finish", 1),
    "between": ("pyuniversal.stages.passing:_weights", 1),
    "confirm": ("pyuniversal.totals.confirmation:Confirmation.finish", 3),
    "null": ("pyuniversal.streaming.repairing:_summary", 2),
    "tables": ("pyuniversal.stages.tables:write_tables", 1),
    "figures": ("pyuniversal.report.figures:draw", 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_outside_the_pass(inputs, server, undisturbed, tmp_path, place):
    out, log = tmp_path / "run", tmp_path / "log"
    server.start(words(inputs, out), log=log, terminate=PLACES[place])
    assert server.wait() == 143, log.read_text()
    told = log.read_text()
    assert told.endswith(f"\nTerminated. {KEPT}; the same command resumes where it stopped.\n")
    assert "Traceback" not in told
    assert [path for path in out.rglob(".*") if path.name != ".partial"] == [], "something half-written is left"
    done = {path: path.stat().st_mtime_ns for path in out.glob("confirmation/batch-*")}
    assert len(done) == {"tokens": 0, "between": 0, "confirm": 2}.get(place, len(done))
    server.start(words(inputs, out), log=log)
    assert server.wait() == 0, log.read_text()
    assert differences(left(out), undisturbed[0]) == []
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was kept is done again"


@pytest.mark.parametrize(
    ("verb", "place", "kept"),
    [
        (
            "table",
            ("pyuniversal.stages.tables:write_tables", 1),
            "The sums are as they were, and tables that are done are whole; the same command makes them all again",
        ),
        ("verify", ("pyuniversal.streaming.confirmation:_add", 2), "Nothing was written; the same command begins anew"),
        ("confirm", ("pyuniversal.streaming.repairing:_summary", 2), "Batches of documents that are done are kept; the same command resumes where it stopped"),
    ],
)
def test_sigterm_in_a_verb_of_a_finished_run(inputs, server, tmp_path, verb, place, kept):
    out, log = tmp_path / "run", tmp_path / "log"
    server.start(words(inputs, out), log=log)
    assert server.wait() == 0
    (out / "nulls.parquet").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    server.start([verb, str(out), "--quiet"], log=log, terminate=place)
    assert server.wait() == 143, log.read_text()
    assert log.read_text().endswith(f"\nTerminated. {kept}.\n")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    tables = {"matches.parquet", "neurons.parquet", "depth.parquet"}  # and how long what ended took
    assert changed <= {"table": tables | {"manifest.json"}, "confirm": {"manifest.json"}, "verify": set()}[verb]


def held(ledger: Path) -> dict[str, set[int]]:
    """Chunks of every part of a checkpoint."""
    found = json.loads(ledger.read_text())
    return {name: from_ranges(part["chunks"], found["head"]["n_chunks"]) for name, part in found["parts"].items()}


def test_ctrl_c_of_the_command_itself(inputs, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    text = write_text(tmp_path / "long.jsonl", 4000)
    command = [sys.executable, "-m", "pyuniversal", *words(inputs, out, "disk")[:-1], "--text", str(text)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A shell without a terminal starts what runs behind it deaf to Ctrl-C, and Python heeds that.
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=tmp_path, preexec_fn=hear) as process:
        while process.poll() is None and not (out / "totals" / "ledger.previous.json").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    told = log.read_text()
    assert code == 130, told
    assert f"Interrupted. {KEPT}; the same command resumes where it stopped.\n" in told
    done, of = map(int, re.search(r"stopped; (\d+) of (\d+) chunks are saved in", told).groups())
    assert 0 < done == chunks_in(out) < of


def test_a_disk_that_is_really_full(inputs, server, undisturbed, tmp_path):
    """A limit to the size of a file, so that every writer fails in the middle of its own work and raises what it raises then."""
    out, log = tmp_path / "run", tmp_path / "log"
    named = []
    for largest in (500, 2_000, 9_000, 20_000, 25_000, 40_000, 60_000, 85_000, 100_000):
        log.write_text("")
        server.start(words(inputs, out), log=log, largest_file=largest)
        code = server.wait()
        told = log.read_text()
        assert code == 1, told
        assert "Traceback" not in told
        error = re.search(r"Error: cannot write (\S+): .*File too large.*\. Choose another folder or free some space\.", told)
        assert error, told
        named.append(Path(error[1]).suffix)
    server.start(words(inputs, out), log=log)
    assert server.wait() == 0
    assert differences(left(out), undisturbed[0]) == []
    assert {".safetensors", ".parquet"} <= {*named}, named
