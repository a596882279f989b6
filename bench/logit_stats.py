"""`logit_stats`: loss, entropy, rank and logsumexp of rows of logits, against log_softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyuniversal.ops import LogitStats, logit_stats

from .trial import Contender, Setting, Trial, implementations, within


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, d_vocab = (64, 1000) if setting.quick else (4096, 50_257)
    generator = torch.Generator(setting.device).manual_seed(0)
    frequency = 1 / torch.arange(1.0, d_vocab + 1, device=setting.device)  # Zipf's law, as words have it
    logits = torch.randn(tokens, d_vocab, generator=generator, device=setting.device).mul_(2.5).add_(frequency.log())
    next_id = torch.multinomial(frequency, tokens, replacement=True, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        yield _trial(setting, logits.to(dtype), next_id)


def _trial(setting: Setting, logits: Tensor, next_id: Tensor) -> Trial:
    tokens, d_vocab = logits.shape
    name = str(logits.dtype).removeprefix("torch.")
    truth = logit_stats(logits, next_id, backend="reference")

    def verify(contender: str, found: LogitStats) -> dict[str, float]:
        error = {field: (getattr(found, field) - getattr(truth, field)).abs().max() for field in ("loss", "entropy", "logsumexp")}
        unequal = (found.rank != truth.rank).sum()
        allowed = 1e-4 if contender.startswith("log_softmax") else 1e-6 * math.log(d_vocab)
        return within({**dict.fromkeys(error, allowed), "unequal": 0}, **error, unequal=unequal)

    return Trial(
        op="logit_stats",
        case=f"{name} [{tokens}, {d_vocab}]",
        shape={"tokens": tokens, "d_vocab": d_vocab},
        ours=implementations(logit_stats, setting, lambda backend: logit_stats(logits, next_id, backend=backend), logits, next_id),
        opponents={
            "log_softmax": Contender(
                lambda: log_softmax(logits, next_id, tokens),
                does="float32 log_softmax of all rows; gather, -sum exp(y) y, a count of what is above the true logit",
            ),
            "log_softmax of 16 rows": Contender(lambda: log_softmax(logits, next_id, 16), does="the same for 16 rows at a time, 3 MB each in float32"),
        },
        verify=verify,
        bytes=logits.numel() * logits.element_size(),
        counting="bytes: logits read once",
        work=logits.numel(),
        unit="logits/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def log_softmax(logits: Tensor, next_id: Tensor, rows: int) -> LogitStats:
    """`rows` tokens at a time."""
    parts = []
    for block, ids in zip(logits.split(rows), next_id[:, None].split(rows), strict=True):
        x = block.float()
        y = torch.log_softmax(x, 1)
        true, log_p = x.gather(1, ids), y.gather(1, ids)
        entropy = -(y.exp() * y).sum(1)
        parts.append((-log_p[:, 0], entropy, (x > true).sum(1), (true - log_p)[:, 0]))
    return LogitStats(*(torch.cat(part) for part in zip(*parts, strict=True)))
