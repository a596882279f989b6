"""What the Triton kernels become on an H100 as runs launch them: no spills, and loads and stores of 16 bytes."""

from __future__ import annotations

import pytest
from sm90 import SHARED_LIMIT, Compiled, compiled

from pyuniversal.kernels import moments, quantize


def check(built: Compiled, registers: int) -> Compiled:
    assert built.count("STL") == built.count("LDL") == 0  # 8 bytes of stack that nothing is stored to come with conversions of 16-bit numbers to float64
    assert built.registers <= registers
    assert built.shared <= SHARED_LIMIT
    return built


@pytest.mark.parametrize("activation", ["", "gelu", "gelu_new"])
@pytest.mark.parametrize(("dtype", "copies"), [("bf16", "LDGSTS.E.64"), ("fp16", "LDGSTS.E.64"), ("fp32", "LDGSTS.E.BYPASS.128")])
def test_moments(dtype, copies, activation):
    # 112 registers leave room for four blocks of four warps; a thread copies its four neurons of a token at once.
    signature = {"parts": "*fp64", "x": f"*{dtype}", "start": "i32", "end": "i32", "neurons": "i32", "stride": "i32"}
    constants = {"ACTIVATION": activation, **moments.REDUCED}
    built = check(compiled("moments:_moments", signature, constants, divisible=("neurons", "stride"), num_warps=moments.REDUCED_WARPS), 112)
    assert built.count(copies) == moments.REDUCED["UNROLLED"] * moments.REDUCED["STAGES"]


def test_merging_moments():
    signature = {"state": "*fp64", "parts": "*fp64", "tokens": "i32", "first_set": "i32", "sets": "i32", "neurons": "i32"}
    check(compiled("moments:_merge", signature, moments.MERGED, divisible=("neurons",), num_warps=moments.MERGED_WARPS), 128)


@pytest.mark.parametrize(("dtype", "copies"), [("bf16", "LDGSTS.E.64"), ("fp16", "LDGSTS.E.64"), ("fp32", "LDGSTS.E.BYPASS.128")])
def test_quantize(dtype, copies):
    # 128 registers leave room for two blocks of eight warps.
    pointers = {"data": "*i32", "rounding": "*fp64", "x": f"*{dtype}", "centre": "*fp32", "inverse": "*fp32", "token_key": "*i32", "neuron_key": "*i32"}
    signature = {**pointers, "tokens": "i32", "neurons": "i32", "stride": "i32", "lines": "i32"}
    divisible = ("tokens", "neurons", "stride")
    built = check(compiled("quantize:_quantize", signature, quantize.INT8, divisible=divisible, num_warps=quantize.INT8_WARPS), 128)
    assert built.count(copies) == 4 * quantize.INT8["STAGES"]
    assert built.count("STG.E.128") == 2  # of whole tiles and of the last
    assert built.count("FFMA") == 32  # one rounding for each of 16 numbers, in either
    assert built.count("STS.U8") == 0


def test_adding_the_sums_of_parts():
    signature = {"total": "*fp64", "sums": "*fp64", "parts": "i32", "length": "i32"}
    check(compiled("quantize:_add_parts", signature, quantize.SUMS, divisible=("length",), num_warps=quantize.SUMS_WARPS), 64)


@pytest.mark.parametrize(("dtype", "result", "loads", "stores"), [("bf16", "i16", 4, 4), ("fp32", "i16", 8, 4), ("fp32", "fp32", 8, 8)])
def test_centred(dtype, result, loads, stores):
    signature = {"data": f"*{result}", "x": f"*{dtype}", "centre": "*fp32", "tokens": "i32", "neurons": "i32", "stride": "i32", "pitch": "i32"}
    divisible = ("tokens", "neurons", "stride", "pitch")
    built = check(compiled("quantize:_centre", signature, quantize.CENTRED, divisible=divisible, num_warps=quantize.CENTRED_WARPS), 64)
    assert built.count("LDG.E.128") == loads
    assert built.count("STG.E.128") == stores
