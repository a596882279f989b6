"""`logit_stats(logits, next_id)`: loss, entropy, rank of the true next token and logsumexp of every row of logits, in one read of them.

    logits   float16 / bfloat16 / float32 / float64 [tokens, d_vocab], unit stride along the vocabulary; float64 only in the reference
    next_id  int64 [tokens], the token that follows: within [0, d_vocab), or -1: none does

Returns `LogitStats`, four vectors [tokens]:

    loss       float64, nats: logsumexp - x[next_id]; NaN where no token follows
    entropy    float64, nats: -sum p ln p of p = softmax(x)
    rank       int64: how many logits are strictly greater than that of the true token, so 0 is the most likely, and equal ones have the rank of the
               first of them; -1 where no token follows
    logsumexp  float64: ln sum e^x

With m = max x, 1 + E = sum e^(x - m) and W = sum (m - x) e^(x - m): logsumexp = m + ln(1 + E), entropy = ln(1 + E) + W / (1 + E). E is summed without the
largest logit, so that a loss or an entropy of 1e-20 has its digits too. The faster implementations compute the terms in float32: a term e^(x - m) is off
by 2^-24 (m - x) and a few 2^-24 of its value, so a loss or an entropy by about 1e-6 of its value; terms below e^-87 are dropped.

A logit of -Inf (a masked or padded vocabulary) has p = 0 and contributes nothing; a true token with such a logit has loss Inf. A row with a NaN or +Inf, or
with nothing but -Inf, has no softmax: loss and entropy are NaN and rank is -1; logsumexp is NaN, or -Inf in a row of nothing but -Inf.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._op import FLOATING, Op, describe, require

ROWS = 32  # that the reference takes at a time: with 50,257 logits 13 MB


class LogitStats(NamedTuple):
    """What a row of logits says of the next token, vectors [tokens]: loss, entropy and logsumexp float64 in nats, rank int64 (0 = the most likely)."""

    loss: Tensor
    entropy: Tensor
    rank: Tensor
    logsumexp: Tensor


def check(logits: Tensor, next_id: Tensor) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    op = "logit_stats"
    require(logits.ndim == 2 and logits.dtype in FLOATING, op, f"logits must be floating [tokens, d_vocab], not {describe(logits)}")
    tokens, d_vocab = logits.shape
    require(d_vocab > 0, op, f"there must be one logit at least, not {describe(logits)}")
    require(next_id.dtype == torch.int64 and list(next_id.shape) == [tokens], op, f"next_id must be int64 [{tokens}], not {describe(next_id)}")
    require(next_id.device == logits.device, op, f"next_id is on {next_id.device}, logits on {logits.device}")
    outside = ((next_id < -1) | (next_id >= d_vocab)).nonzero()
    if len(outside):
        token = int(outside[0])
        require(False, op, f"next_id[{token}] is {int(next_id[token])}: it must be within the vocabulary, [0, {d_vocab}), or -1")


def statistics(sums: Tensor, greater: Tensor, next_id: Tensor) -> LogitStats:
    """From m (NaN or Inf: there is no softmax), the true logit, E and W, float64 [4, tokens], and how many logits exceed the true one, int64 [tokens]."""
    largest, true, others, spread = sums
    defined = largest.isfinite()
    follows = defined & (next_id >= 0)
    log_sum = torch.log1p(others)
    return LogitStats(
        loss=(largest - true + log_sum).where(follows, torch.nan),
        entropy=(log_sum + spread / (1 + others)).where(defined, torch.nan),
        rank=greater.where(follows, -1),
        logsumexp=(largest + log_sum).where(defined, largest.where(largest < 0, torch.nan)),
    )


def reference(logits: Tensor, next_id: Tensor) -> LogitStats:
    """The formulas above in float64, a few rows at a time."""
    sums = torch.empty(4, len(logits), dtype=torch.float64, device=logits.device)
    greater = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for first in range(0, len(logits), ROWS):
        rows = slice(first, first + ROWS)
        x = logits[rows].double()
        largest, at = x.max(1)  # a NaN is larger than anything
        below = largest[:, None] - x
        e = torch.exp(-below)
        true = x.gather(1, next_id[rows, None].clamp(min=0))
        spread = (below * e).where(e > 0, 0.0).sum(1)
        sums[:, rows] = torch.stack([largest, true[:, 0], e.scatter(1, at[:, None], 0.0).sum(1), spread])
        greater[rows] = (x > true).sum(1)
    return statistics(sums, greater, next_id)


FASTER = {"cpu": "pyuniversal.ops._native:logit_stats", "triton": "pyuniversal.ops._triton.logit_stats:logit_stats"}
logit_stats = Op("logit_stats", check=check, reference=reference, faster=FASTER)
