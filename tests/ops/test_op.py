"""What every op promises whatever it computes: who runs, why not, and tensors on one device."""

from __future__ import annotations

import pytest
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import OPS, PAPER_EDGES, Columns, backends, histogram_, moments_, product_, quantize, summarize_correlation
from pyuniversal.ops.moments import empty
from pyuniversal.totals import pack


def test_backends_are_those_that_take_the_arguments():
    outside_a_run = {"dyadic_histogram_", "token_sums_", "pair_sums_"}
    assert set(backends("cpu", "int8")) == {op.name for op in OPS} - outside_a_run
    assert backends("cpu", "int8")["quantize"] == "cpu"
    assert backends("cpu", "float64")["quantize"] == "reference"


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
