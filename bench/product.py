"""`product_`: one block of the covariance sums added to its total, against the products that torch has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyuniversal.ops import Packed, absmax_about, product_, quantize, unpack

from .data import activations, keys
from .trial import Contender, Setting, Trial, implementations, within

# neurons of x, neurons of y, tokens
SHAPES = {
    "quick": [(256, 192, 2048)],
    "cpu": [(4096, 4096, 16_384), (2048, 2048, 16_384)],
    "cuda": [(8192, 8192, 16_384), (16_384, 16_384, 16_384)],
}
# Largest error against float64 on the same operands, in units of r. A bf16 product of torch's on a CPU rounds its sums to eight bits.
ALLOWED = {"int8": 1e-6, "bf16": 1e-5, "float32": 1e-5, "torch fp32": 1e-5, "torch bf16": 1e-2, "_int_mm plus add": 1e-6}


def trials(setting: Setting) -> Iterator[Trial]:
    shapes = SHAPES["quick" if setting.quick else setting.device.split(":")[0]]
    for shape in shapes:
        yield _trial(setting, *shape, precision="int8")
    for precision in ("bf16", "float32"):
        yield _trial(setting, *shapes[0], precision=precision)


def _trial(setting: Setting, rows: int, columns: int, tokens: int, *, precision: str) -> Trial:
    x, y = (activations(tokens, neurons, seed=1 + source, device=setting.device) for source, neurons in enumerate((rows, columns)))
    x -= x.mean(0)
    y -= y.mean(0)
    packed = [_pack(side, source, precision) for source, side in enumerate((x, y))]
    totals = {name: torch.zeros(rows, columns, device=setting.device) for name in ("cpu", "cuda", "triton", "reference")}

    def ours(backend: str) -> Tensor:
        product_(totals[backend], *packed, backend=backend)
        return totals[backend]

    contenders = implementations(product_, setting, ours, totals["reference"], *packed)
    opponents = _opponents(x, y, packed, precision)
    for unused in set(totals) - set(contenders):
        del totals[unused]
    # Of float32 operands for the opponents that take them, of what `quantize` made of them for the others.
    norms = x.norm(dim=0)[:, None] * y.norm(dim=0)
    sums = torch.zeros(rows, columns, dtype=torch.float64, device=setting.device)
    product_(sums, *(_pack(side, 0, "float64") for side in (x, y)), backend="reference")
    rounded = torch.zeros(rows, columns, device=setting.device)
    product_(rounded, *packed, backend="reference")

    def verify(name: str, total: Tensor) -> dict[str, float]:
        truth = sums if name.startswith("torch") else rounded
        return within(ALLOWED[precision if name in contenders else name], r=((total - truth).abs() / norms).max())

    return Trial(
        op="product_",
        case=f"{precision} {rows} x {columns} x {tokens}",
        shape={"rows": rows, "columns": columns, "tokens": tokens},
        ours=contenders,
        opponents=opponents,
        verify=verify,
        bytes=sum(p.data.numel() * p.data.element_size() for p in packed) + 2 * 4 * rows * columns,
        operations=2 * rows * columns * tokens,
        counting="operations: 2 x rows x columns x tokens; bytes: both operands read once, the float32 total read and written once",
        work=2 * rows * columns * tokens,
        unit="op/s",
        # On a CPU bf16 operands are widened.
        ceilings=("read", precision if precision == "int8" or setting.device != "cpu" else "float32"),
        notes={"precision": precision},
    )


def _opponents(x: Tensor, y: Tensor, packed: list[Packed], precision: str) -> dict[str, Contender]:
    """Every opponent adds into a float32 total of its own, as the op does."""
    # x, y: float32 [tokens, neurons], centred
    fp32, bf16 = (torch.zeros(x.shape[1], y.shape[1], device=x.device) for _ in range(2))
    opponents = {"torch fp32": Contender(lambda: fp32.addmm_(x.T, y), does="total.addmm_(x.T, y), float32, as the activations lie")}
    if precision != "float32":
        a, b = x.bfloat16(), y.bfloat16()
        widen: dict[str, Any] = {"out_dtype": torch.float32} if x.is_cuda else {}  # a CPU has no product of bf16 with a float32 result
        words = "float32 result" if widen else "result rounded to bf16"
        opponents["torch bf16"] = Contender(lambda: bf16.add_(torch.mm(a.T, b, **widen)), does=f"total += x.T @ y of bf16 operands, {words}")
    if precision == "int8":
        left, right = (unpack(p).T.contiguous() for p in packed)  # int8 [neurons, tokens]
        total = torch.zeros_like(fp32)

        def int_mm() -> Tensor:
            return total.addcmul_(torch._int_mm(left, right.T) * packed[0].scale[:, None], packed[1].scale)

        opponents["_int_mm plus add"] = Contender(int_mm, does="torch._int_mm to an int32 matrix, times the scales of the rows, addcmul_ into the total")
    return opponents


def _pack(x: Tensor, source: int, precision: str) -> Packed:
    centre = torch.zeros(x.shape[1], device=x.device)
    absmax = absmax_about(centre, x.amin(0), x.amax(0))
    return quantize(x, centre, absmax, *keys(*x.shape, source=source, device=str(x.device)), precision=precision)
