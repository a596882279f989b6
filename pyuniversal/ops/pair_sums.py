"""`pair_sums_(sums, x, y, centre_x, centre_y, partner)`: products of neurons with chosen partners, and with nobody else.

sums[n, c] += sum over tokens of (x[t, n] - centre_x[n]) (y[t, p] - centre_y[p]), p = partner[n, c]

    sums                float64 [x neurons, candidates], contiguous, updated in place
    x                   float16 / bfloat16 / float32 / float64 [tokens, x neurons], unit stride along neurons; float64 only in the reference
    y                   [tokens, y neurons] of the dtype of x and the same tokens in the same order, unit stride along neurons
    centre_x, centre_y  float64 [neurons of either side]; any fixed values, best close to the means
    partner             int64 [x neurons, candidates], contiguous, within [0, y neurons), or -1: there is none, its sum stays as it is

All in float64: nothing is rounded to less. Tokens are added in an order that does not depend on the number of threads. NaN and Inf propagate into the sums of
their neuron, as x or as partner. Work: 2 x neurons x candidates x tokens operations, where `product_` takes y neurons for candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import FLOATING, Op, describe, require, require_device

BLOCK = 256  # tokens that the reference gathers at a time


def check(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    op = "pair_sums_"
    for name, side in (("x", x), ("y", y)):
        require(side.ndim == 2 and side.dtype in FLOATING, op, f"{name} must be floating [tokens, neurons], not {describe(side)}")
        require(side.stride(1) == 1 or side.shape[1] < 2, op, f"{name} must have unit stride along neurons, not strides {tuple(side.stride())}")
    require(x.dtype == y.dtype, op, f"x is {x.dtype}, y is {y.dtype}: both must have one dtype")
    require(x.shape[0] == y.shape[0], op, f"x has {x.shape[0]} tokens, y has {y.shape[0]}: both must hold the same tokens")
    for name, centre, side in (("centre_x", centre_x, x), ("centre_y", centre_y, y)):
        require(
            centre.dtype == torch.float64 and list(centre.shape) == [side.shape[1]], op, f"{name} must be float64 [{side.shape[1]}], not {describe(centre)}"
        )
    require(
        partner.dtype == torch.int64 and partner.ndim == 2 and partner.shape[0] == x.shape[1] and partner.is_contiguous(),
        op,
        f"partner must be contiguous int64 [{x.shape[1]}, candidates], not {describe(partner)}",
    )
    require(
        sums.dtype == torch.float64 and sums.shape == partner.shape and sums.is_contiguous(),
        op,
        f"sums must be contiguous float64 {list(partner.shape)}, not {describe(sums)}",
    )
    require_device(op, x.device, sums=sums, y=y, centre_x=centre_x, centre_y=centre_y, partner=partner)
    outside = ((partner < -1) | (partner >= y.shape[1])).nonzero()
    if len(outside):
        n, c = outside[0].tolist()
        require(False, op, f"partner[{n}, {c}] is {int(partner[n, c])}: it must be a neuron of y, [0, {y.shape[1]}), or -1")


def reference(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> None:
    """Gather the partners of a block of tokens and sum, in float64."""
    for column in range(partner.shape[1]):
        some = (partner[:, column] >= 0).nonzero()[:, 0]
        p = partner[some, column]
        for left, right in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
            sums[some, column] += ((left[:, some].double() - centre_x[some]) * (right[:, p].double() - centre_y[p])).sum(0)


FASTER = {"cpu": "pyuniversal.ops._native:pair_sums_", "triton": "pyuniversal.ops._triton.pair_sums:pair_sums_"}
pair_sums_ = Op("pair_sums_", check=check, reference=reference, faster=FASTER)
