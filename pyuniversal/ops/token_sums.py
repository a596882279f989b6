"""`token_sums_(sums, counts, x, ids)`: activations summed by the id of their token: sums[ids[t], n] += x[t, n], counts[ids[t]] += 1.

    sums    float64 or float32 [d_vocab, neurons], unit stride along neurons, updated in place
    counts  int64 [d_vocab], contiguous, updated in place
    x       float16 / bfloat16 / float32 / float64 [tokens, neurons], unit stride along neurons; float64 only in the reference
    ids     int64 or int32 [tokens], all within [0, d_vocab)

All tokens of a call that share an id are added up in float64 first, in their order, and that sum is added to the row of `sums`. So float32 sums, which a large
vocabulary may need (50,257 x 36,864 are 7.4 GB instead of 14.8), are rounded once per call and id, not once per token: after c calls that held the id they are
off by at most c 2^-24 of the largest value that the sum had on its way. Float64 sums are off by as little as any sum in float64.
NaN and Inf propagate into the sum of their id and neuron.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import FLOATING, Op, describe, require, require_device


def check(sums: Tensor, counts: Tensor, x: Tensor, ids: Tensor) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    op = "token_sums_"
    require(x.ndim == 2 and x.dtype in FLOATING, op, f"x must be floating [tokens, neurons], not {describe(x)}")
    tokens, neurons = x.shape
    require(
        sums.dtype in (torch.float64, torch.float32) and sums.ndim == 2 and sums.shape[1] == neurons and (sums.stride(1) == 1 or neurons < 2),
        op,
        f"sums must be float64 or float32 [d_vocab, {neurons}] with unit stride along neurons, not {describe(sums)}",
    )
    d_vocab = sums.shape[0]
    require(
        counts.dtype == torch.int64 and list(counts.shape) == [d_vocab] and counts.is_contiguous(),
        op,
        f"counts must be contiguous int64 [{d_vocab}], not {describe(counts)}",
    )
    require(ids.dtype in (torch.int64, torch.int32) and list(ids.shape) == [tokens], op, f"ids must be int64 or int32 [{tokens}], not {describe(ids)}")
    require_device(op, x.device, sums=sums, counts=counts, ids=ids)
    outside = ((ids < 0) | (ids >= d_vocab)).nonzero()
    if len(outside):
        token = int(outside[0])
        require(False, op, f"the id {int(ids[token])} of token {token} is outside the vocabulary, [0, {d_vocab})")


def reference(sums: Tensor, counts: Tensor, x: Tensor, ids: Tensor) -> None:
    """index_add_ of blocks of tokens, in float64, over the ids that occur; then one addition to their rows."""
    present, place, many = torch.unique(ids.long(), return_inverse=True, return_counts=True)
    part = torch.zeros(len(present), x.shape[1], dtype=torch.float64, device=x.device)
    for block, at in zip(x.split(1024), place.split(1024), strict=True):
        part.index_add_(0, at, block.double())
    sums[present] = (sums[present].double() + part).to(sums.dtype)
    counts[present] += many


FASTER = {"cpu": "pyuniversal.ops._native:token_sums_", "triton": "pyuniversal.ops._triton.token_sums:token_sums_"}
token_sums_ = Op("token_sums_", check=check, reference=reference, faster=FASTER)
