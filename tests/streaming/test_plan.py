"""What the plan says against numbers worked out by hand, against the memory that passes really take, and against what a limit of memory leads to."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time

import memory
import pytest
from crash import differences, left

import pyuniversal
from pyuniversal import NotEnoughMemoryError, pipeline, results, zoo
from pyuniversal.streaming import available_bytes, make_plan
from pyuniversal.streaming.layout import Shapes, SourceShape, layouts
from pyuniversal.streaming.plan import SLACK
from pyuniversal.streaming.rates import STEADY, Rates

MB = 1_000_000
A = SourceShape("a", 1000, 800, layers=2, width=10, d_model=4)
B = SourceShape("b", 900, 700, layers=3, width=20, d_model=5)


def shapes(*sources: SourceShape, **options) -> Shapes:
    return Shapes(sources, **({"precision": "int8", "dtype": "float32", "site": "mlp.post", "chunk_tokens": 100, "batch_tokens": 7} | options))


def test_layouts_by_hand():
    both = shapes(A, B)
    # a with itself: 10 x 10 for either layer; a with b: 10 x 60; b with itself 20 x 20 for three layers.
    assert {key: both.block_bytes(key) for key in both.product_keys()} == {
        (0, 0, 0): 400, (0, 1, 0): 400, (0, 0, 1): 2400, (0, 1, 1): 2400, (1, 0, 1): 1600, (1, 1, 1): 1600, (1, 2, 1): 1600
    }  # fmt: skip
    total = 2 * 400 + 2 * 2400 + 3 * 1600
    state = 4 * 8 * 8 + 257 * 8
    # Activations of b at two sites; a batch: both sites of all layers of b, three of a layer's width, eight of d_model; operands of both, a byte each.
    chunk = 100 * 2 * 4 * 60 + 7 * 4 * (2 * 60 + 3 * 20 + 8 * 5) + 100 * 80 + state * 2 * 80
    assert both.chunk_bytes() == chunk
    resident, sweeps, disk = layouts(both, memory=0, cuda=False)
    assert (resident.memory_bytes, resident.disk_bytes, resident.moved_bytes, resident.runs) == (total + chunk, 2 * total, 0, 2)
    assert (disk.memory_bytes, disk.disk_bytes, disk.moved_bytes, disk.runs) == (2400 + chunk, 2 * total, 2 * total, 2)
    assert sweeps.sweeps == tuple((key,) for key in both.product_keys())
    assert (sweeps.memory_bytes, sweeps.runs, sweeps.disk_bytes) == (2400 + chunk, 2 * 1 + 2 * 2 + 3 * 1, total + 2400)
    host = {layout.storage: layout for layout in layouts(both, memory=0, cuda=True)}["host"]
    assert (host.memory_bytes, host.host_bytes) == (2400 + chunk, total)


def test_sweeps_are_as_few_as_fit():
    both = shapes(A, B)
    room = both.chunk_bytes() + 2 * 400 + 2400
    (sweeps,) = (layout for layout in layouts(both, memory=room, cuda=False) if layout.storage == "sweeps")
    assert [[*group] for group in sweeps.sweeps] == [[(0, 0, 0), (0, 1, 0), (0, 0, 1)], [(0, 1, 1)], [(1, 0, 1), (1, 1, 1), (1, 2, 1)]]
    assert sum(sweeps.sweeps, ()) == tuple(both.product_keys())
    assert sweeps.memory_bytes <= room
    for one, other in zip(sweeps.sweeps, sweeps.sweeps[1:], strict=False):
        held = sum(both.block_bytes(key) for key in (*one, other[0]))
        assert held + both.chunk_bytes(sorted({i for key in (*one, other[0]) for i in (key[0], key[2])})) > room


def test_a_limit_leaves_room_for_what_the_plan_may_be_wrong_by():
    sources = [SourceShape(name, 10**6, 10**6, layers=4, width=2048, d_model=256) for name in "ab"]
    options = {"tokens": 10**6, "chunk_tokens": 4096, "loaded": True, "measure": False}
    needs = make_plan(sources, storage="resident", **options).layout.memory_bytes
    held = -available_bytes("cpu", 0)
    tight, wide = (make_plan(sources, memory=int(held + factor * needs), **options).layout.storage for factor in (1.08, 1.25))
    assert tight != "resident"
    assert wide == "resident"


@pytest.mark.parametrize("memory", [0, 1e9])
def test_seconds_count_a_model_once_for_each_sweep(memory):
    both = shapes(A, B)
    work = make_plan([A, B], tokens=10**6, measure=False, chunk_tokens=100, batch_tokens=7).work
    layout = {layout.storage: layout for layout in layouts(both, memory=memory, cuda=False)}
    rates = Rates(product=1e30, single=1e30, rotation=1e30, moved=1e30)
    passing, swept = (rates.seconds(work, layout[name], chunks=10) for name in ("resident", "sweeps"))
    once = STEADY * (work.forward_flops / rates.forward + work.elements * rates.element)
    assert swept - passing == pytest.approx(once * ((9 if memory == 0 else 2) / 2 - 1))


# Large enough that what a process takes in any case (some 30 MB) says nothing; two full chunks, since the first finds the products untouched.
CASES = {
    "resident": {"models": 2, "layers": 4, "width": 2048, "storage": "resident", "chunk_tokens": 4096, "tokens": 9000},
    "resident, four models, long chunk": {"models": 4, "layers": 2, "width": 1024, "storage": "resident", "chunk_tokens": 16_384, "tokens": 36_000},
    "resident, wide, short chunk": {"models": 2, "layers": 3, "width": 3072, "d_model": 512, "storage": "resident", "chunk_tokens": 2048, "tokens": 5000},
    "disk": {"models": 3, "layers": 2, "width": 2048, "storage": "disk", "chunk_tokens": 12_288, "tokens": 27_000},
    "sweeps": {"models": 2, "layers": 4, "width": 2048, "storage": "sweeps", "chunk_tokens": 2048, "tokens": 5000, "memory": 1_150 * MB},
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_the_plan_says(case):
    found = memory.measured(**({"d_model": 128} | CASES[case]))
    assert found["planned"] > 300 * MB
    assert (found["sweeps"] > 1) == (case == "sweeps")
    assert found["measured"] == pytest.approx(found["planned"], rel=0.15), found


@pytest.fixture(scope="module")
def zoo_options() -> dict:
    return {"tokens": zoo.tokens(), "max_tokens": 20_000, "chunk_tokens": 4096, "baseline_draws": 1, "progress": False}


def test_layouts_of_the_zoo_leave_the_same_bytes(zoo_options, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "pyuniversal")
    models = zoo.models()[:3]
    plan = pipeline.plan(models, tokens=zoo.tokens(), max_tokens=20_000, chunk_tokens=4096)
    free = plan.weights_bytes + SLACK * (plan.layout.memory_bytes - plan.shapes.totals_bytes / 2)  # for half of the products
    found = {}
    for storage in ("resident", "disk", "sweeps"):
        if storage == "sweeps":
            monkeypatch.setattr("pyuniversal.streaming.plan.available_bytes", lambda *_, **__: free)
        found[storage] = left(pyuniversal.run(models, out=tmp_path / storage, storage=storage, **zoo_options).path)
    assert differences(found["disk"], found["resident"]) == []
    assert plan.phases.keys() == results.read_manifest(tmp_path / "disk")["timings"].keys() - {"models", "tokens"}
    assert differences(found["sweeps"], found["resident"]) == []
    told = [record.getMessage() for record in caplog.records if "the products take" in record.getMessage()]
    assert int(re.search(r"in (\d+) sweeps over the tokens", told[-1])[1]) > 1


def test_a_run_that_does_not_fit_is_refused_with_cheaper_ways(tmp_path):
    with pytest.raises(
        NotEnoughMemoryError, match=r"--memory leaves nothing beyond what the process holds already.*Needed with products .*\(0\.0 MB free\).*Cheaper: "
    ) as refused:
        pyuniversal.run(out=tmp_path / "run", memory=150 * MB, max_tokens=20_000, progress=False)
    assert str(refused.value).split("Cheaper: ")[1].count(" needs ") == 3
    assert not (tmp_path / "run" / "totals").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_one_gigabyte_for_the_zoo(tmp_path):
    command = [sys.executable, "-m", "pyuniversal", "run", "--memory", "1GB", "--max-tokens", "20k", "--baseline-draws", "1", "--out", str(tmp_path / "run")]
    log = tmp_path / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Not here: `-m` looks in the current folder first, and the sources of a clone have no compiled ops beside them.
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=tmp_path) as process:
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(OSError):
                peak = max(peak, memory.anonymous(process.pid))  # what is mapped from files the system takes back when it needs it
            time.sleep(0.02)
    told = log.read_text()
    assert process.returncode == 0, told
    assert "sweeps over the tokens" in told or "on disk" in told
    assert peak < 1_000 * MB, f"{peak / 1e6:.0f} MB"
