"""What runs after the pass: its memory against numbers worked out by hand, against what it really takes, and its place in the plan."""

from __future__ import annotations

import os

import memory
import pytest
import torch
from click.testing import CliRunner

from pyuniversal import NotEnoughMemoryError, cli, pipeline
from pyuniversal.streaming import make_plan
from pyuniversal.streaming.afterwards import (
    candidates_bytes,
    confirm_bytes,
    null_bytes,
    null_products,
    null_work,
    rotating_bytes,
    rotations_read,
    visiting_bytes,
)
from pyuniversal.streaming.layout import Shapes, SourceShape
from pyuniversal.streaming.plan import SLACK

MB = 1_000_000
A = SourceShape("a", 1000, 800, layers=2, width=10, d_model=4)
B = SourceShape("b", 900, 700, layers=3, width=20, d_model=5)
BOTH = Shapes((A, B), "int8", "float32", "mlp.post", 100, 7)
BATCH = 2 * 7 * 4 * (2 * 60 + 3 * 20 + 8 * 5)


def test_candidates_and_confirmation_by_hand():
    # 80 neurons, each with one other model: 16 sums in 4 batches and 16 indices; count, mean and M2 in 4 batches. 2,048 tokens of all; moments of the widest.
    assert candidates_bytes(BOTH) == 80 * (16 * (4 * 8 + 8) + 4 * 3 * 8) + 2048 * 4 * 80 + 2 * 8 * 8 * 60 + 0.75 * BATCH
    assert confirm_bytes(BOTH) == 80 * (32 * 8 + 8 + 32 * 3 * 8) + 2048 * 4 * 80 + 2 * 8 * 8 * 60 + 0.75 * BATCH
    three = Shapes((A, B, A), "int8", "float32", "mlp.post", 100, 7)
    assert candidates_bytes(three) - candidates_bytes(BOTH) == 80 * 640 + 20 * (2 * 640 + 96) + 2048 * 4 * 20
    alone = Shapes((A,), "int8", "float32", "mlp.post", 100, 7)
    assert (candidates_bytes(alone), confirm_bytes(alone), null_bytes(alone, 1e9)) == (0, 0, 0)


def test_the_null_by_hand():
    # All 20 and 60 neurons, in panels of 16: 32 with 60 and 64 with 20, in two parts 16 with 60 and 32 with 20; three draws of four bytes.
    assert null_products(BOTH) == 3 * 4 * (32 * 60 + 64 * 20)
    assert null_products(BOTH, parts=2) == 3 * 4 * (16 * 60 + 32 * 20)
    # 50 tokens: activations of 60 columns, of the 60 chosen, and copies; three draws of a's 20 columns and of two lots of chosen, one of b's 60, a byte each.
    work = 50 * (4 * 2 * (60 + 60) + 3 * (20 + 2 * 60) + 60) + 8 * 8 * 3 * (80 + 80 + 20) + BATCH
    assert null_work(BOTH) == work
    assert null_bytes(BOTH, work + 38_400) == work + 38_400
    assert null_bytes(BOTH, work + 38_399) == work + 19_200
    assert null_bytes(BOTH, work) == 0, "left out"
    # 10 deciles x 40 of every layer are 400 neurons; the sample is halved until its products keep 4 GB.
    wide = [SourceShape(name, 1, 1, layers=10, width=10_000) for name in "ab"]
    sample = next(n for n in (40, 20, 10, 5) if 2 * 12 * 10 * 10 * n * 100_000 <= 4e9)
    assert sample == 10
    assert null_products(Shapes(tuple(wide), "int8", "float32", "mlp.post", 100, 7)) == 2 * 12 * 1008 * 100_000


@pytest.mark.parametrize(("room", "layers", "reads"), [(0, 1, 101), (1e9, 6, 18), (3e10, 100, 2), (5e10, 1, 0)])
def test_rotations_by_hand(room, layers, reads):
    """A quarter of the free memory is theirs where the products, of 40.8 GB, do not fit in it; else they are made layer by layer, and nothing is read twice."""
    shapes = Shapes(tuple(SourceShape(name, 1, 1, layers=100, width=1000) for name in "ab"), "int8", "float32", "mlp.post", 100, 7)
    layer = 4 * 1000 * (5 * 1000 + 4096)  # five rotations, and the rows that meet them
    assert rotating_bytes(shapes, draws=5, room=room) == layers * layer + 5 * 8 * 1000**2 + 3 * 4 * 1000 * 4096
    # The product of all with all, once for the neurons of b, and for those of a once for all of b's layers that are rotated together.
    assert rotations_read(shapes, draws=5, room=room) == reads * 4 * 100_000**2


def test_tables_that_a_gpu_has_no_room_for(monkeypatch):
    # Short chunks and few products at a time: the pass takes less of the GPU than the rotations of the tables.
    free = {"cuda": 1e9}
    monkeypatch.setattr("pyuniversal.streaming.plan.available_bytes", lambda device, *_, **__: free[device])
    sources = [SourceShape(name, 10**6, 10**6, layers=2, width=4000, d_model=64) for name in "ab"]
    options = {"tokens": 10**6, "chunk_tokens": 512, "batch_tokens": 256, "loaded": True, "measure": False, "device": "cuda", "baseline_draws": 3}
    plan = make_plan(sources, **options)
    rotating = rotating_bytes(plan.shapes, draws=3, room=1e9 / SLACK)
    assert plan.memory_bytes == SLACK * plan.visiting_bytes == SLACK * rotating > SLACK * plan.layout.memory_bytes
    assert plan.table_bytes < plan.visiting_bytes == plan.as_dict()["visiting_bytes"]
    free["cuda"] = SLACK * rotating - 1
    with pytest.raises(NotEnoughMemoryError, match=r"Needed with products anywhere: 1\.\d GB of cuda for the tables \(1\.\d GB free\)"):
        make_plan(sources, **options).refuse()


def test_one_model_alone_is_not_rotated():
    alone = Shapes((A,), "int8", "float32", "mlp.post", 100, 7)
    assert (rotating_bytes(alone, draws=5, room=1e9), rotations_read(alone, draws=5, room=1e9), visiting_bytes(alone, top_k=5)) == (0, 0, 0)


@pytest.mark.parametrize(("precision", "dtype"), [("int8", torch.float32), ("float64", torch.float64)])
@pytest.mark.parametrize(("layers", "width"), [(12, 3072), (24, 4096)])
def test_the_summary_on_a_gpu_takes_what_its_kernels_are_given(monkeypatch, layers, width, precision, dtype):
    kernels = pytest.importorskip("pyuniversal.kernels.summarize_correlation")
    given: dict[int, torch.Tensor] = {}

    class Recorded:
        def __getitem__(self, _):
            return lambda *arguments, **_: given.update({id(a): a for a in arguments if isinstance(a, torch.Tensor)})

    for name in ("_tiles", "_choose", "_pick"):
        monkeypatch.setattr(kernels, name, Recorded())
    columns, k = layers * width, 50
    total = torch.empty(width, columns, dtype=dtype, device="meta")
    x, y = (torch.empty(3, n, dtype=torch.float64, device="meta") for n in total.shape)
    sides = kernels.summarize(total, 10**6, x, y, tile=kernels.TILE)
    lists = [kernels.best(side, given_total, 10**6, *ends, k) for side, given_total, ends in zip(sides, (total, total.T), ((x, y), (y, x)), strict=True)]
    taken = sum(t.nbytes for t in given.values() if t.shape not in (total.shape, total.T.shape)) + sum(part.nbytes for side in lists for part in side)
    shapes = Shapes(tuple(SourceShape(name, 1, 1, layers=layers, width=width) for name in "ab"), precision, "float32", "mlp.post", 1024, 7)
    assert visiting_bytes(shapes, top_k=k) == pytest.approx(total.nbytes + taken, rel=0.05)


def test_the_peak_is_that_of_the_largest_stage():
    # Short chunks and many models: the pass takes less than 2,048 tokens of all models at once and the sums of their candidates.
    sources = [SourceShape(name, 10**6, 10**6, layers=2, width=500, d_model=64) for name in "abcdefgh"]
    options = {"tokens": 10**6, "chunk_tokens": 512, "batch_tokens": 256, "loaded": True, "measure": False, "storage": "sweeps", "memory": 2 * 10**9}
    options |= {"top_k": 1, "baseline_draws": 1, "dtype": "float64"}
    plain, dense = make_plan(sources, **options), make_plan(sources, dense_tokens=10**5, **options)
    assert plain.later_bytes["candidates"] == 0
    assert dense.later_bytes["candidates"] == candidates_bytes(dense.shapes) > dense.later_bytes["confirm"]
    assert dense.work.product_flops == pytest.approx(plain.work.product_flops / 10)
    assert dense.table_bytes - plain.table_bytes == 8000 * (7 * 640 + 96)
    words = dense.as_dict()
    assert {name: words[f"{name}_bytes"] for name in ("candidates", "confirm", "nulls")} == dense.later_bytes
    stages = [dense.layout.memory_bytes, dense.table_bytes, *dense.later_bytes.values()]
    assert dense.memory_bytes == SLACK * max(stages)
    with pytest.raises(NotEnoughMemoryError, match=r"Needed with products anywhere: \d+\.\d MB of memory for the candidates \(\d+\.\d MB free\)"):
        tight(sources, options).refuse()


def tight(sources, options):
    """A plan with room for everything but the candidates."""
    held = memory.anonymous()
    room = min(candidates_bytes(make_plan(sources, **options).shapes) - 1, 10**12)
    return make_plan(sources, dense_tokens=10**5, **options | {"memory": int(held + room)})


def test_plan_tells_the_stages(tmp_path):
    words = ["plan", "--max-tokens", "100k", "--dense-tokens", "50k", "--chunk-tokens", "4096"]
    told = CliRunner().invoke(cli.main, words)
    assert told.exit_code == 0, told.output
    for name in ("sums of candidates", "confirmation", "null"):
        assert name in told.stdout
    assert pipeline.plan(max_tokens=100_000, dense_tokens=50_000).work.product_flops * 2 == pipeline.plan(max_tokens=100_000).work.product_flops


CASES = {
    "candidates": {"models": 6, "layers": 3, "width": 2048, "chunk_tokens": 4096, "tokens": 12_000},
    "nulls, in parts": {"models": 3, "layers": 4, "width": 2048, "chunk_tokens": 8192, "tokens": 10_000, "parts": 4},
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_the_plan_says(case):
    found = memory.measured(**CASES[case], stage=case.partition(",")[0])
    assert found["planned"] > 300 * MB
    assert found["measured"] == pytest.approx(found["planned"], rel=0.15), found
