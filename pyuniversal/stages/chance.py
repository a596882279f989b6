"""The null of a run: what best r comes out when documents are re-paired."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd

from .. import results, universality
from ..errors import NotEnoughMemoryError
from ..streaming import available_bytes
from ..streaming.afterwards import null_work
from ..streaming.layout import Shapes
from ..streaming.plan import LIMITED, SLACK
from ..totals import Totals
from .inputs import Inputs, clock, note_timings, shape_of

log = logging.getLogger(__name__)

SHARE = 4  # a null takes at most one in so many of the run's tokens: its three draws and its second forward pass would cost a short run more than the run


@contextmanager
def _unless_too_large() -> Iterator[list[pd.DataFrame]]:
    """A null that does not fit is left out, with a warning: it must not cost the run its tables."""
    try:
        yield []
    except NotEnoughMemoryError as error:
        log.warning("no null is made: %s", error)


def _room(inputs: Inputs, memory: int | None) -> float:
    """Bytes that the null's products may take at once: what is free, or what --memory leaves, beside its activations."""
    options = inputs.options
    sources = tuple(shape_of(s.name, s.model.config, s.layers) for s in inputs.sources)
    shapes = Shapes(sources, **{name: options[name] for name in ("precision", "dtype", "site", "chunk_tokens", "batch_tokens")})
    return available_bytes(options["device"], memory) / (SLACK if memory is None else LIMITED) - null_work(shapes)


def chance(inputs: Inputs, *, null_tokens: int, memory: int | None, hashes: bool = True, progress: bool) -> None:
    """Best r by chance, as a table in the run's folder; taken as it is where it is there. `hashes` as of `Totals.load`."""
    totals = Totals.load(inputs.folder / "totals", hashes=hashes)
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
                room_bytes=_room(inputs, memory),
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
