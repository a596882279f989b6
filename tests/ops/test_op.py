"""What every op promises whatever it computes: who runs, why not, and tensors on one device."""

from __future__ import annotations

import platform

import pytest
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import OPS, PAPER_EDGES, Columns, backends, histogram_, moments_, product_, quantize, summarize_correlation
from pyuniversal.ops.moments import empty
from pyuniversal.totals import pack


def test_backends_are_those_that_take_the_arguments():
    outside_a_run = {"dyadic_histogram_", "token_sums_", "pair_sums_", "logit_stats"}
    assert set(backends("cpu", "int8")) == {op.name for op in OPS} - outside_a_run
    assert backends("cpu", "int8")["quantize"] == "cpu"
    assert backends("cpu", "float64")["quantize"] == "reference"


def test_every_op_has_a_kernel_for_cpus_and_one_for_gpus():
    assert {op.name: tuple(op.faster) for op in OPS} == dict.fromkeys((op.name for op in OPS), ("cpu", "triton")) | {"product_": ("cpu", "triton", "cuda")}


@pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="Triton is for Linux")
def test_kernels_for_gpus_run_here():
    # Where there is no GPU they are interpreted: their tests are not skipped.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert moments_.why_not("triton", empty(1, 2, device), torch.zeros(3, 2, device=device), [3]) is None


def test_interpreted_kernels_run_only_when_they_are_named(monkeypatch):
    x = torch.zeros(3, 4)[:, ::2]  # neurons two apart, which the compiled kernel does not take
    monkeypatch.setattr(moments_, "faster", {"triton": f"{__name__}:anything", **moments_.faster})
    monkeypatch.setattr(moments_, "why_not", lambda backend, *_, **__: None if backend in ("triton", "reference") else "no")
    for value, chosen in (("1", "reference"), ("0", "triton")):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert moments_.choose(empty(1, 2), x, [3]) == chosen


def test_why_not_says_why():
    reasons = moments_.explain(empty(1, 2), torch.zeros(3, 2, dtype=torch.float64), [3])
    assert reasons.pop("triton").startswith(("does not take float64", "does not take cpu tensors", "not built"))  # interpreted, not interpreted, not there
    assert reasons == {"cuda": "not implemented", "cpu": "does not take float64", "reference": "runs"}
    assert moments_.explain(empty(1, 2), torch.zeros(3, 2), [3])["cpu"] == "runs"


def test_tensors_on_different_devices_are_refused_in_words():
    x, elsewhere = torch.zeros(3, 2), torch.zeros(2, device="meta")
    keys = torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(InputError, match="moments_: state is on meta, x on cpu"):
        moments_(empty(1, 2, "meta"), x, [3])
    with pytest.raises(InputError, match="quantize: centre is on meta, x on cpu"):
        quantize(x, elsewhere, torch.zeros(2), *keys, precision="int8")
    with pytest.raises(InputError, match="histogram_: edges is on meta, x on cpu"):
        histogram_(torch.zeros(2, 257, dtype=torch.int64), x, PAPER_EDGES.to("meta"))
    packed = pack(x, torch.zeros(2), torch.arange(3), source=0, seed=0, precision="float32")
    with pytest.raises(InputError, match="product_: total is on meta, x on cpu"):
        product_(torch.zeros(2, 2, device="meta"), packed, packed)
    side = Columns(*(torch.ones(2, dtype=torch.float64),) * 4)
    with pytest.raises(InputError, match=r"summarize_correlation: x\.M2 is on cpu, total on meta"):
        summarize_correlation(torch.zeros(2, 2, device="meta"), 3, side, side)
