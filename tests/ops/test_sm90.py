"""What the Triton kernels become on an H100 as runs launch them: no spills, the instructions that matter, memory that a block has."""

from __future__ import annotations

import pytest
from sm90 import SHARED_LIMIT, Compiled, compiled

pytest.importorskip("triton")

from pyuniversal.kernels import dyadic_histogram, histogram, logit_stats, moments, pair_sums, product, quantize, summarize_correlation, token_sums


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


def parts(tiles: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What a configuration says to the kernel, and what to the compiler."""
    return {k: v for k, v in tiles.items() if k.isupper()}, {k: v for k, v in tiles.items() if k.islower()}


@pytest.mark.parametrize(("described", "mirror"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("neurons", [4096, 64])
@pytest.mark.parametrize("dtype", ["i8", "bf16"])
def test_product(dtype, neurons, described, mirror):
    int8 = dtype == "i8"
    constants, options = parts(product.configuration(neurons, neurons, int8=int8, total_described=described))
    height, width, depth = constants["ROWS"], constants["COLUMNS"], constants["TOKENS"]
    x, y = (f"tensordesc<{dtype}[{n}, {depth}]>" if int8 else f"tensordesc<{dtype}[{depth}, {n}]>" for n in (height, width))
    total = f"tensordesc<fp32[{height}, {width // 2}]>" if described else "*fp32"
    sizes = dict.fromkeys(("stride", "rows", "columns", "tokens"), "i32")
    constants |= {"INT8": int8, "WIDEN": False, "DESCRIBED": described, "MIRROR": max(height, width) if mirror else 0}
    signature = {"x": x, "y": y, "total": total, "x_scale": "*fp32", "y_scale": "*fp32", **sizes}
    built = compiled("product:_product", signature, constants, **options)
    assert built.spills == 0
    assert built.shared <= SHARED_LIMIT
    assert built.registers <= (255 if mirror else 248)
    # Both operands in each of three stages: nothing is transposed on its way to wgmma, and the loads run ahead.
    assert built.count("UTMALDG") >= 6
    assert built.count("IGMMA" if int8 else "HGMMA") >= 4
    assert built.count("UTMASTG") == (0 if not described else 4 if mirror else 2)
    assert built.count("LDL") == built.count("STL") == 0


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_summarize_correlation_reads_once(dtype):
    constants, options = parts(summarize_correlation.TILE)
    doubles = dict.fromkeys(("x", "y", "x_sums", "x_groups", "y_sums", "y_groups"), "*fp64")
    sizes = dict.fromkeys(("row_stride", "rows", "columns", "steps", "x_group_count", "y_group_count"), "i32")
    signature = {"total": f"*{dtype}", "tokens": "i64", "x_counts": "*i32", "y_counts": "*i32", **doubles, **sizes}
    constants |= {"column_stride": 1, "EIGHTS": summarize_correlation.EIGHTS}
    built = compiled("summarize_correlation:_tiles", signature, constants, divisible=("row_stride", "rows", "columns"), enable_fp_fusion=False, **options)
    assert built.spills == 0
    assert built.shared <= SHARED_LIMIT // 4
    # Sixteen values a thread, 16 bytes at a time: of float32 four loads. r has the bits of the reference only if nothing is contracted but the division.
    assert built.sass.count("LDG.E.128") >= (4 if dtype == "fp32" else 8)
    assert built.count("CALL") == 16  # each may need the long way to divide: each is computed once, in one layout
    assert "div.rn.f64" in built.ptx
    assert "fma.rn.f64" not in built.ptx
    assert built.sass.count("REDG") > 0


@pytest.mark.parametrize(("lines", "groups"), [(1, 4096), (2, 2048), (32, 128)])
def test_summarize_correlation_chooses_groups(lines, groups):
    assert lines * groups == summarize_correlation.LIST
    signature = {"groups": "*fp64", "chosen": "*i32", "lines": "i32", "count": "i32", "k": "i32"}
    built = compiled("summarize_correlation:_choose", signature, {"LINES": lines, "LENGTH": groups}, **summarize_correlation.LISTS)
    assert built.spills == 0
    assert built.registers <= 208  # 150 of Triton 3.9, 201 of 3.6


@pytest.mark.parametrize("unit", ["partner_stride", "line_stride"])
@pytest.mark.parametrize(("dtype", "lines", "groups"), [("fp32", 2, 64), ("fp64", 1, 128), ("fp32", 64, 2)])
def test_summarize_correlation_picks_partners(dtype, lines, groups, unit):
    assert lines * groups * summarize_correlation.GROUP == summarize_correlation.LIST
    integers = dict.fromkeys({"partner_stride", "line_stride", "lines", "partners", "count", "k"} - {unit}, "i32")
    signature = {"total": f"*{dtype}", "tokens": "i64", "chosen": "*i32", "index": "*i32", **dict.fromkeys(("mine", "theirs", "best"), "*fp64"), **integers}
    constants = {unit: 1, "LINES": lines, "GROUPS": groups, "GROUP": summarize_correlation.GROUP}
    built = compiled("summarize_correlation:_pick", signature, constants, enable_fp_fusion=False, **summarize_correlation.LISTS)
    assert built.spills == 0
    assert built.registers <= 208  # 150 of Triton 3.9, 201 of 3.6
    assert "fma.rn.f64" not in built.ptx


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("padded", [False, True])
def test_logit_stats(dtype, padded):
    signature = {"logits": f"*{dtype}", "next_id": "*i64", "sums": "*fp64", "greater": "*i64", "tokens": "i32", "d_vocab": "i32", "stride": "i32"}
    divisible = ("d_vocab", "stride") if padded else ()  # 50,304: rows are aligned. Those of 50,257 are read four or two bytes a lane
    built = compiled("logit_stats:_logit_stats", signature, {"BLOCK": logit_stats.BLOCK}, divisible=divisible, num_warps=logit_stats.WARPS)
    check(built, 80)  # three programs on a multiprocessor
    assert built.count("MUFU.EX2") == 2 * logit_stats.BLOCK // (32 * logit_stats.WARPS)  # one for each logit, and one for each lane of a row
    assert (built.count("LDG.E.128") > 0) == padded


@pytest.mark.parametrize("sums", ["fp64", "fp32"])
@pytest.mark.parametrize(("dtype", "loads"), [("bf16", 1), ("fp16", 1), ("fp32", 2)])
def test_token_sums(dtype, loads, sums):
    signature = {"sums": f"*{sums}", "counts": "*i64", "x": f"*{dtype}", "ids": "*i64", "order": "*i64", "starts": "*i64", "last": "*i64"}
    strides = ("neurons", "x_stride", "sums_stride")
    constants = {"BLOCK": token_sums.BLOCK, "TOGETHER": token_sums.TOGETHER}
    built = compiled("token_sums:_token_sums", signature | dict.fromkeys(strides, "i32"), constants, divisible=strides, num_warps=token_sums.WARPS)
    check(built, 64)
    assert built.count("LDG.E.128") >= loads * token_sums.TOGETHER
    assert built.count("STG.E.128") == (4 if sums == "fp64" else 2)
    assert built.count("ATOMG") + built.count("REDG") == 0


@pytest.mark.parametrize(("dtype", "loads"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_histograms(dtype, loads):
    tile = {"TOKENS": histogram.TOKENS, "NEURONS": histogram.NEURONS}
    x = {"x": f"*{dtype}", "tokens": "i32", "neurons": "i32", "x_stride": "i32"}
    divisible = ("tokens", "neurons", "x_stride", "width")
    counting = {"part": "*i32", **x, "width": "i32"}
    signature = {**counting, "edges": "*fp32", "guide": "*fp32", "last": "i32"}
    built = compiled("histogram:_histogram", signature, {"STEPS": 9, **tile}, divisible=divisible, num_warps=histogram.WARPS)
    check(built, 80)
    of_dyadic = compiled(
        "dyadic_histogram:_count", {**counting, "exponent": "*i32", "half": "i32"}, tile, divisible=(*divisible, "half"), num_warps=histogram.WARPS
    )
    check(of_dyadic, 64)
    for each in (built, of_dyadic):
        assert each.count("LDG.E.128") >= loads
        assert each.count("ATOMG") == 0  # none waits for the counter that it adds to
        assert each.count("REDG") == histogram.TOKENS * histogram.NEURONS // (32 * histogram.WARPS)
    strip = {"STRIP": dyadic_histogram.STRIP, **tile}
    extremes = compiled("dyadic_histogram:_extremes", {"least": "*fp32", "most": "*fp32", **x}, strip, divisible=divisible[:3], num_warps=histogram.WARPS)
    check(extremes, 80)
    assert extremes.count("LDG.E.128") >= loads


@pytest.mark.parametrize(("dtype", "loads"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_pair_sums(dtype, loads):
    signature = {"sums": "*fp64", "x": f"*{dtype}", "y": f"*{dtype}", "centre_x": "*fp64", "centre_y": "*fp64", "partner": "*i64"}
    sizes = ("pairs", "candidates", "tokens")
    tile = {"PAIRS": pair_sums.PAIRS, "TOKENS": pair_sums.TOKENS}
    built = compiled("pair_sums:_pair_sums", signature | dict.fromkeys(sizes, "i32"), tile, divisible=sizes, num_warps=pair_sums.WARPS)
    check(built, 64)
    assert built.count("LDG.E.128") == loads
    assert built.count("DFMA") == pair_sums.PAIRS * pair_sums.TOKENS // (32 * pair_sums.WARPS)
