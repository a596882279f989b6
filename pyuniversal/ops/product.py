"""`product_(total, x, y)`: total += (x - centre_x)^T (y - centre_y), one block of the one symmetric product Z^T Z.

    total   [x.neurons, y.neurons], unit stride along y; float32, or float64 where both sides are float64. Updated in place.
    x, y    `Packed` of the same precision and the same tokens in the same order

int8: the sums over tokens are exact int32 (a chunk holds at most 133,144 tokens: 127^2 each), then total += scale_x scale_y sum, in float32. The other
precisions multiply in their own dtype and add in float32 (float64). Work: 2 x.neurons y.neurons tokens operations.

The diagonal of a block of a source with itself is biased for int8 (E q^2 = x^2 + added variance): variances come from `moments_`, never from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import Op, describe, require, require_device
from .quantize import Packed, unpack

MAX_TOKENS = (2**31 - 1) // 127**2


def check(total: Tensor, x: Packed, y: Packed) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    require(x.precision == y.precision, "product_", f"one side is {x.precision}, the other {y.precision}")
    require(x.tokens == y.tokens, "product_", f"one side has {x.tokens} tokens, the other {y.tokens}: both must hold the same tokens")
    require(x.precision != "int8" or x.tokens <= MAX_TOKENS, "product_", f"int8 sums are exact up to {MAX_TOKENS:,} tokens a chunk, not {x.tokens:,}")
    dtype = torch.float64 if x.precision == "float64" else torch.float32
    require(
        total.dtype == dtype and list(total.shape) == [x.neurons, y.neurons] and total.stride(1) == 1,
        "product_",
        f"total must be {str(dtype).removeprefix('torch.')} [{x.neurons}, {y.neurons}] with unit stride along its columns, not {describe(total)}",
    )
    require_device("product_", x.data.device, total=total, y=y.data)


def reference(total: Tensor, x: Packed, y: Packed) -> None:
    """float64 matrix product of the operands, in blocks of rows; exact for int8."""
    right = unpack(y).double()  # [tokens, neurons]
    for start in range(0, x.neurons, 1024):
        rows = slice(start, start + 1024)
        sums = unpack(x)[:, rows].double().T @ right
        total[rows] += (sums * x.scale[rows, None].double() * y.scale.double()).to(total.dtype)


# Which of the last two is faster on a GPU has not been measured: "cuda" runs where it is named, or where Triton is not installed.
FASTER = {
    "cpu": "pyuniversal.ops._native:product_",
    "triton": "pyuniversal.ops._triton.product:product_",
    "cuda": "pyuniversal.ops._cuda:product_",
}
product_ = Op("product_", check=check, reference=reference, faster=FASTER)
