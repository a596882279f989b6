"""The bench: who is wrong gets no row, a row says what it must, opponents compute what we compute. No speed is asserted: machines are shared."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import pyuniversal
from pyuniversal.ops import OPS, histogram_, moments_, quantize
from pyuniversal.ops._op import Implementation

ROOT = Path(__file__).parents[1]
MODULES = ("cli", "measure", "trial", "moments", "original", "competent", "run", "profile", "loop")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreted kernel is no contender."""
    for op in OPS:  # Triton asks when it reads a kernel, and other tests go on interpreting
        importlib.import_module(op.faster["triton"].partition(":")[0])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, Any]]:
    """Modules of the package, which is in the clone and never installed."""
    before = [*sys.path]
    sys.path.append(str(ROOT))
    yield {name: importlib.import_module(f"bench.{name}") for name in MODULES}
    sys.path[:] = before


def python(*arguments: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Another Python, with `path` before the installed packages."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def invoke(bench: dict[str, Any], *arguments: object) -> Result:
    return CliRunner().invoke(bench["cli"].main, [*map(str, arguments), "--quick", "--device", "cpu"])


def test_quick_writes_a_row_that_parses(tmp_path):
    out = tmp_path / "deep" / "rows.jsonl"
    for _ in range(2):
        done = python("-m", "bench", "moments", "--quick", "--backend", "cpu", "--repeats", "3", "--threads", "1", "--out", out, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["dtype"] for row in rows] == ["float32", "float16", "bfloat16"] * 2
    row = rows[0]
    assert (row["op"], row["backend"], row["shape"]) == ("moments_", "cpu", {"tokens": 2048, "neurons": 512, "sets": 3})
    assert (row["bytes"], rows[1]["bytes"]) == (2048 * 512 * 4, 2048 * 512 * 2)
    assert row["rate"] == pytest.approx(2048 * 512 / row["median_s"])
    assert (row["repeats"], row["quick"], row["threads"], row["unit"]) == (3, True, 1, "elements/s")
    assert 0 < row["min_s"] <= row["median_s"]
    assert row["ceilings"]["read"]["share"] == pytest.approx(row["bytes"] / row["median_s"] / row["ceilings"]["read"]["per_s"]) == row["share"]
    assert set(row["opponents"]) == {"eager"}
    for entry in row["opponents"].values():
        assert entry["ratio"] == pytest.approx(entry["median_s"] / row["median_s"])
        assert entry["does"]
    assert row["error"]["unequal"] == 0
    assert row["error"]["M4"] < 1e-6
    assert "read once" in row["counting"]
    assert row["versions"]["torch"] == torch.__version__
    assert row["versions"]["pyuniversal"] == pyuniversal.__version__
    assert row["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", row["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["date"])
    assert row["cpu"]
    assert {"instruction_set", "load", "device"} <= set(row)


def test_every_op_has_a_case_and_every_case_runs(bench, tmp_path):
    assert {op.name for op in OPS} <= set(bench["cli"].CASES)
    out = tmp_path / "rows.jsonl"
    cases = ("histogram", "dyadic_histogram", "token_sums", "pair_sums", "logit_stats", "quantize", "product", "summarize_correlation", "correlate")
    done = invoke(bench, *cases, "--repeats", 1, "--out", out)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["op"] for row in rows} == set(bench["cli"].CASES) - {"moments_", "run"}
    products = {row["precision"]: row for row in rows if row["op"] == "product_"}
    assert set(products) == {"int8", "bf16", "float32"}
    assert products["int8"]["operations"] == 2 * 256 * 192 * 2048
    assert set(products["int8"]["ceilings"]) == {"read", "int8"}
    assert set(products["int8"]["opponents"]) == {"torch fp32", "torch bf16", "_int_mm plus add"}
    (composite,) = (row for row in rows if row["op"] == "correlate")
    assert composite["backends"]["product_"] in ("cpu", "reference")


def test_help_is_quick_and_its_examples_are_commands(bench):
    done = python("-c", "import sys, bench.cli; bench.cli.main(['--help'], standalone_mode=False); assert 'torch' not in sys.modules", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    examples = re.findall(r"^  python -m bench(.*?)(?:   .*)?$", bench["cli"].main.epilog, re.MULTILINE)
    assert len(examples) > 4
    for example in examples:
        bench["cli"].main.make_context("bench", shlex.split(example))
    assert "is none of moments_, " in invoke(bench, "moment").output


def spoil(op: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """Put an implementation in the op's table that runs the reference and then changes its result or its arguments."""

    def run(*arguments: Any, **options: Any) -> Any:
        return change(op.reference(*arguments, **options), *arguments)

    module = ModuleType("wrong")
    module.implementation = Implementation(run=run, why_not=lambda *arguments, **options: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wrong", module)
    monkeypatch.setitem(op.faster, "cpu", "wrong:implementation")


def one_token_more(_: None, state: torch.Tensor, *rest: Any) -> None:
    state[0, 0, -1] += 1


def skewed(_: None, state: torch.Tensor, *rest: Any) -> None:
    state[2, 3, 7] *= 1 + 1e-4


def one_bin_further(_: None, counts: torch.Tensor, *rest: Any) -> None:
    counts[5] = counts[5].roll(1)


def one_value_off(packed: Any, *rest: Any) -> Any:
    packed.data.view(-1)[-1] += 1
    return packed


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        (moments_, one_token_more, "cpu is wrong: unequal"),
        (moments_, skewed, "cpu is wrong: M3"),
        (histogram_, one_bin_further, "cpu is wrong: unequal"),
        (quantize, one_value_off, "cpu is wrong: unequal"),
    ],
)
def test_a_wrong_implementation_gets_no_row(bench, tmp_path, monkeypatch, op, change, message):
    spoil(op, monkeypatch, change)
    done = invoke(bench, op.name, "--backend", "cpu", "--out", tmp_path / "rows.jsonl")
    assert done.exit_code == 1
    assert f"{op.name} (float32" in done.output
    assert message in done.output
    assert "no row is written" in done.output
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_wrong_opponent_gets_no_row_either(bench, tmp_path, monkeypatch):
    right = bench["moments"].eager
    monkeypatch.setattr(bench["moments"], "eager", lambda x, ends: right(x, (ends[0] - 1, *ends[1:])))
    done = invoke(bench, "moments", "--out", tmp_path / "rows.jsonl")
    assert done.exit_code == 1
    assert "eager is wrong: unequal" in done.output
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_backend_that_cannot_run_says_why(bench):
    done = invoke(bench, "quantize", "--backend", "triton", "--no-save")
    assert done.exit_code == 1
    assert "left out: quantize on triton: " in done.output
    assert "nothing was measured" in done.output


def test_contenders_take_turns_after_the_check(bench):
    trial, order = bench["trial"], []

    def contender(name: str) -> Any:
        return trial.Contender(lambda: order.append(name), does=name)

    rows = bench["measure"].rows_of(
        trial.Trial(
            op="op", case="case", shape={}, ours={"cpu": contender("cpu")}, opponents={"a": contender("a"), "b": contender("b")},
            verify=lambda name, _: order.append(f"check {name}") or {}, bytes=1, counting="none", work=1, unit="calls/s", ceilings=(),
        ),
        trial.Setting("cpu", quick=True, repeats=2),
    )  # fmt: skip
    assert order == ["cpu", "check cpu", "a", "check a", "b", "check b"] + ["cpu", "a", "b"] * 2
    assert len(rows) == 1
    assert rows[0]["repeats"] == 2
    assert rows[0]["share"] is None


@pytest.mark.parametrize(("device", "calls"), [("cpu", 4), ("cuda", 100)])
def test_what_a_gpu_does_once_does_not_shorten_its_samples(bench, monkeypatch, device, calls):
    # A clock that stands still but in calls: half a tenth of a second in the first, where kernels are compiled, a millisecond in the others.
    clock = [0.0]
    seconds = iter([0.05, *[1e-3] * 1000])

    def run() -> None:
        clock[0] += next(seconds)

    monkeypatch.setattr(bench["measure"], "now", lambda _: clock[0])
    trial = bench["trial"]
    work = trial.Trial(
        op="op", case="case", shape={}, ours={"a": trial.Contender(run, does="a")}, opponents={}, verify=lambda *_: {}, bytes=1, counting="none", work=1,
        unit="calls/s", ceilings=(),
    )  # fmt: skip
    assert bench["measure"]._check(work, work.ours, trial.Setting(device))[1] == {"a": calls}


def test_opponents_of_the_run_find_the_planted_neurons(bench, tmp_path):
    """Best r and baseline of ours and theirs against float64: `agreement` raises where they differ by more than their precision explains."""
    setting = bench["trial"].Setting("cpu")
    errors = bench["run"].agreement(tmp_path / "agreement", setting)
    assert set(errors) == {"dispatch", "original", "competent"}
    assert errors["competent"]["best_r"] < 2e-5
    assert errors["original"]["baseline"] > 1e-7  # float16 it is
    study = bench["run"].make_study(tmp_path / "study", bench["run"].TINY, 4_000, "cpu")
    best, chance = bench["run"].exact(study)
    assert (best[:48:2] > 1 - 1e-9).all()  # layer 0, every other neuron is the same in both models
    assert best[1:48:2].max() < 0.99
    assert chance.max() < 0.99
    modules = [model.module for model in study.models]
    for opponent in (bench["original"].original, bench["competent"].competent):
        outcome = opponent(modules, study.rows, study.rotations)
        assert outcome.partner[:48:2].tolist() == list(range(0, 48, 2))
        assert set(outcome.seconds) == {"pass", "summary", "rotated pass", "rotated summary"}


def test_shares_of_ceilings(bench, tmp_path, monkeypatch):
    """Ceilings take their turn with the contenders; the share that counts is that of the one nearest to the work; where one is unknown, so is it."""
    ceilings = importlib.import_module("bench.ceilings")
    asked, peaks, reads = [], [], []

    def peak(kind, threads, seconds):
        asked.append((kind, threads))
        return peaks.pop()

    for known in (True, False):
        monkeypatch.setattr(ceilings, "_C", ModuleType("_C"))
        if known:
            monkeypatch.setattr(ceilings._C, "peak", peak, raising=False)
        peaks[:] = [2e12, 9e12, 1e12] * 4
        reads[:] = [3e11, 1e11, 2e11] * 4
        monkeypatch.setattr(ceilings, "_read", lambda device, quick: reads.pop())
        assert invoke(bench, "product", "--repeats", 3, "--out", tmp_path / f"{known}.jsonl").exit_code == 0
        row = json.loads((tmp_path / f"{known}.jsonl").read_text().splitlines()[0])
        read = row["bytes"] / row["median_s"] / 2e11
        assert row["ceilings"]["read"] == {"per_s": 2e11, "share": pytest.approx(read)}
        if known:
            assert row["ceilings"]["int8"]["share"] == pytest.approx(row["operations"] / row["median_s"] / 2e12)
            assert row["share"] == max(c["share"] for c in row["ceilings"].values())
        else:
            assert row["ceilings"]["int8"] == {"per_s": None, "share": None}
            assert row["share"] is None
    assert set(asked) == {("int8", torch.get_num_threads()), ("float32", torch.get_num_threads())}


def test_only_the_passes_of_opponents_are_extrapolated(bench):
    seconds = {"pass": 10.0, "summary": 3.0, "rotated pass": 11.0, "rotated summary": 2.0}
    outcome = bench["original"].Outcome(torch.zeros(1), torch.zeros(1), torch.zeros(1), seconds)
    assert outcome.at(4.0) == (40 + 3 + 44 + 2, 40 + 3)
    assert outcome.passes(4.0) == (40 + 44, 40)


def test_parts_are_compared_with_parts_of_the_same_name(bench):
    trial = bench["trial"]

    def parts(name: str, **seconds: float) -> Any:
        return trial.Contender(lambda: None, does=name, split=lambda _: {name: 8.0, **{f"{name}, {part}": value for part, value in seconds.items()}})

    (row,) = bench["measure"].rows_of(
        trial.Trial(
            op="op", case="case", shape={}, ours={"cpu": parts("cpu", pass_=2.0)}, opponents={"a": parts("a", pass_=6.0, other=4.0)}, verify=lambda *_: {},
            bytes=1, counting="none", work=1, unit="calls/s", ceilings=(),
        ),
        trial.Setting("cpu", quick=True, repeats=1),
    )  # fmt: skip
    assert row["parts"] == {"pass_": 2.0}
    assert {name: entry["ratio"] for name, entry in row["opponents"].items()} == {"a": 1.0, "a, pass_": 3.0, "a, other": 0.5}


def test_a_disagreement_of_the_run_is_refused(bench, tmp_path, monkeypatch):
    right = bench["competent"].competent
    monkeypatch.setitem(bench["run"].OPPONENTS, "competent", lambda modules, rows, rotations: right(modules, rows.first(2_000), rotations))
    done = invoke(bench, "run", "--tokens", 2_000, "--out", tmp_path / "rows.jsonl")
    assert done.exit_code == 1
    assert "run: competent is wrong on two tiny models: best r" in done.output
    assert not (tmp_path / "rows.jsonl").exists()


def test_profile_accounts_for_every_second(bench):
    done = invoke(bench, "profile", "--tokens", 2_000)
    assert done.exit_code == 0, done.output
    shares = {name: float(share) for name, share in re.findall(r"│ (\w[\w ]*?) +│ +[\d,]+ │ +[\d.]+ │ +([\d.]+)% │", done.output)}
    assert {"forward", "gather", "moments_", "histogram_", "quantize", "product_", "baseline", "assignment", "rest"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(100, abs=1)


def test_what_a_gpu_did(bench):
    span = bench["loop"].Span
    spans = [
        span("product", 100, 300, True), span("copy", 250, 400, True), span("product", 600, 1100, True), span("copy", 700, 800, True),
        span("cudaEventSynchronize", 0, 50, False), span("cudaEventSynchronize", 500, 530, False), span("product", 0, 5000, False),
    ]  # fmt: skip
    found = bench["loop"].summary(reversed(spans))
    assert found["seconds"] == pytest.approx(1000e-6)
    assert found["busy"] == pytest.approx(0.8)  # idle from 400 to 600
    assert found["kernels"] == {"product": pytest.approx(700e-6), "copy": pytest.approx(250e-6)}
    assert found["waits"] == {"cudaEventSynchronize": {"calls": 2, "seconds": pytest.approx(80e-6)}}
    nothing = bench["loop"].summary([])
    assert (nothing["seconds"], nothing["busy"], nothing["kernels"], nothing["waits"]) == (0.0, None, {}, {})
    refused = invoke(bench, "loop")
    assert refused.exit_code == 1
    assert "loop watches a GPU" in refused.output


def test_the_installed_package_is_benched_not_the_source_folder(tmp_path):
    """`python -m bench` puts the clone first on sys.path, where a `pyuniversal` without compiled part lies."""
    clone = tmp_path.resolve() / "clone"
    shutil.copytree(ROOT / "bench", clone / "bench", ignore=shutil.ignore_patterns("__pycache__", "results"))
    (clone / "pyuniversal").mkdir()
    (clone / "pyuniversal/__init__.py").write_text("raise ImportError('the source folder was imported')")
    installed = Path(pyuniversal.__file__).parents[1]
    done = python("-m", "bench", "--help", cwd=clone, path=installed)
    assert done.returncode == 0, done.stderr
    assert "the source folder was imported" in python("-c", "import pyuniversal", cwd=clone, path=installed).stderr
    # With nothing installed, as with a clone on PYTHONPATH, the clone's own is found.
    done = python("-c", "import bench, sys; print(sys.path.count(sys.argv[1]), sys.path[-1])", clone, cwd=clone, path=clone)
    assert done.stdout.split() == ["1", str(clone)]


def test_the_library_never_imports_the_bench():
    for path in (ROOT / "pyuniversal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert "bench" not in {(name or "").split(".")[0] for name in names}, path
