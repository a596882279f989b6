"""The null of a run: what best r comes out when documents are re-paired."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd

from .. import results, universality
from ..errors import NotEnoughMemoryError
from ..totals import Totals
from .inputs import Inputs, clock, note_timings

log = logging.getLogger(__name__)

SHARE = 4  # a null takes at most one in so many of the run's tokens: its three draws and its second forward pass would cost a short run more than the run


BUDGET = 4e9  # bytes that its products may take at most


@contextmanager
def _unless_too_large() -> Iterator[list[pd.DataFrame]]:
    """A null that does not fit is left out, with a warning: it must not cost the run its tables."""
    try:
        yield []
    except NotEnoughMemoryError as error:
        log.warning("no null is made: %s", error)


def chance(inputs: Inputs, *, null_tokens: int, memory: int | None, progress: bool) -> None:
    """Best r by chance, as a table in the run's folder; taken as it is where it is there."""
    totals = Totals.load(inputs.folder / "totals")
    tokens = min(null_tokens, max(totals.site[0].count("all") // SHARE, inputs.corpus.row_tokens))
    identity = totals.identity | {"weights": [source.hash for source in totals.sources], "null_tokens": tokens, "precision": inputs.options["precision"]}
    if (inputs.folder / "nulls.parquet").exists() and results.read_table(inputs.folder, "nulls").attrs.get("identity") == identity:
        return
    with clock(inputs.timings, "nulls"), _unless_too_large() as made:
        made.append(
            universality.nulls(
                inputs.sources,
                inputs.corpus,
                totals,
                null_tokens=tokens,
                budget_bytes=BUDGET if memory is None else min(BUDGET, memory / 8),  # not what is free just now: a repeated run has the same null
                precision=inputs.options["precision"],
                chunk_tokens=max(inputs.options["chunk_tokens"] // 2, inputs.corpus.row_tokens),
                batch_tokens=inputs.options["batch_tokens"],
                device=inputs.options["device"],
                progress=progress,
            )
        )
    table = made[0] if made else universality.empty_nulls()
    table.attrs["identity"] = identity if made else None
    results.write_table(inputs.folder, "nulls", table)
    note_timings(inputs)
