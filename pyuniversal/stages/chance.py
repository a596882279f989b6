"""The null of a run: what best r comes out when documents are re-paired."""

from __future__ import annotations

import logging

from .. import results, universality
from ..streaming import available_bytes
from ..totals import Totals
from .inputs import Inputs, clock, note_timings

log = logging.getLogger(__name__)

SHARE = 4  # a null takes at most one in so many of the run's tokens: its three draws and its second forward pass would cost a short run more than the run


BUDGET = 4e9  # bytes that its products may take at most


def chance(inputs: Inputs, *, null_tokens: int, memory: int | None, progress: bool) -> None:
    """Best r by chance, as a table in the run's folder; taken as it is where it is there."""
    totals = Totals.load(inputs.folder / "totals")
    tokens = min(null_tokens, max(totals.site[0].count("all") // SHARE, inputs.corpus.row_tokens))
    if (inputs.folder / "nulls.parquet").exists():
        return
    with clock(inputs.timings, "nulls"):
        table = universality.nulls(
            inputs.sources,
            inputs.corpus,
            totals,
            null_tokens=tokens,
            budget_bytes=min(BUDGET, available_bytes(inputs.options["device"], memory) / 4),
            precision=inputs.options["precision"],
            chunk_tokens=max(inputs.options["chunk_tokens"] // 2, inputs.corpus.row_tokens),
            batch_tokens=inputs.options["batch_tokens"],
            device=inputs.options["device"],
            progress=progress,
        )
    results.write_table(inputs.folder, "nulls", table)
    note_timings(inputs)
