"""After the pass, models run again on two kinds of documents: those that only the best candidates are summed over, and those that were held out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import universality
from ..streaming import choose_rows, confirm_pass, document_batches
from ..streaming.pairing import spans
from ..tokens import Tokens
from ..totals import Totals
from .inputs import Inputs, clock, note_timings

log = logging.getLogger(__name__)

CANDIDATES = 16  # partners of a neuron that stay in the race when a part of the text goes through the dense product and the rest does not
STEPS = 4  # that the sums of the candidates are saved in: each takes memory
CONFIRMED, REFINED = "confirmation", "candidates"  # folders of a run


def refine(inputs: Inputs, *, progress: bool) -> None:
    """Sum the best candidates of the dense pass, and nobody else, over the text that it left, or --confirm-tokens of it."""
    totals = Totals.load(inputs.folder / "totals")
    if len(totals.sources) < 2:
        return
    options = inputs.options
    rows = refinement_rows(inputs, totals)
    if not len(rows):
        log.warning("the dense pass took the whole text: nothing is left for its candidates; give more text or fewer --dense-tokens")
        return
    partners = {(i, j): found.top_index for i, j, found in universality.summaries(totals, top_k=CANDIDATES, device=inputs.options["device"])}
    tokens = int(inputs.corpus.lengths[rows].sum())
    cells = sum(product.total.numel() for product in totals.products.values())
    pairs = sum(partner.numel() for partner in partners.values())
    log.info(
        "%s further tokens for %d candidates of every neuron: %.2e operations instead of %.2e of the dense product, %.2f %%",
        f"{tokens:,}", CANDIDATES, 2.0 * tokens * pairs, 2.0 * tokens * cells, 100 * pairs / cells,
    )  # fmt: skip
    with clock(inputs.timings, "candidates"):
        confirm_pass(
            inputs.sources,
            inputs.corpus,
            rows=rows,
            batch_of_row=document_batches(inputs.corpus, rows, seed=options["seed"], batches=STEPS),
            partners=partners,
            centre=totals.centre,
            out=inputs.folder / REFINED,
            batch_tokens=options["batch_tokens"],
            device=options["device"],
            progress=progress,
            words="candidates",
        )
    note_timings(inputs)


def confirm(inputs: Inputs, *, progress: bool) -> None:
    """Run the held-out documents (at most a ninth of the run's tokens) for the chosen partners."""
    totals = Totals.load(inputs.folder / "totals")
    if len(totals.sources) < 2:
        return
    corpus, seed = inputs.corpus, inputs.options["seed"]
    run = int(corpus.lengths[choose_rows(corpus, max_tokens=inputs.dense_tokens, seed=seed)].sum())
    rows = _at_most(corpus, held_out_rows(corpus, seed=seed), max(run // 9, corpus.row_tokens))
    if not len(rows):
        log.warning("no document of %s was held out: nothing can be confirmed; *_confirmed and *_se stay empty. Give more documents.", corpus.path)
        return
    refined = refined_of(inputs.folder, totals, inputs.options)
    found = universality.best_partners(totals, top_k=1, refined=refined, device=inputs.options["device"])
    with clock(inputs.timings, "confirm"):
        confirm_pass(
            inputs.sources,
            corpus,
            rows=rows,
            batch_of_row=document_batches(corpus, rows, seed=seed),
            partners={pair: best.top_index[:, :1].contiguous() for pair, best in found.items()},
            centre=totals.centre,
            out=inputs.folder / CONFIRMED,
            batch_tokens=inputs.options["batch_tokens"],
            device=inputs.options["device"],
            progress=progress,
        )
    note_timings(inputs)


def refined_of(folder: Path, totals: Totals, options: Mapping[str, Any]) -> dict[tuple[int, int], universality.Best] | None:
    """The candidates of a run over all its tokens; None for a run that has none, whatever an earlier one left in its folder."""
    return None if options.get("dense_tokens") is None else universality.refined(totals, folder / REFINED)


def refinement_rows(inputs: Inputs, totals: Totals) -> NDArray[np.integer]:
    """Rows that only the candidates are summed over: those after the dense pass's own."""
    rows = choose_rows(inputs.corpus, max_tokens=inputs.options["max_tokens"], seed=inputs.options["seed"])
    return _at_most(inputs.corpus, rows[totals.identity["rows"] :], inputs.options["confirm_tokens"])


def held_out_rows(corpus: Tokens, *, seed: int) -> NDArray[np.integer]:
    """Rows of the documents that were held out, whole documents in a seeded order."""
    held = corpus.held_out(seed)
    rows = np.flatnonzero(held[corpus.documents])
    if corpus.packing == "joined":  # of a row that several documents share, all must be held out
        first, last = spans(corpus, rows).T
        before = np.append(0, np.cumsum(held))
        rows = rows[before[last + 1] - before[first] == last + 1 - first]
        log.warning(
            "with packing \"joined\" rows share documents: %d rows are of held-out documents alone, but the beginnings of these may lie in rows of the run, so "
            "that the confirmation is not wholly apart from it; packing \"documents\" keeps them apart", len(rows)
        )  # fmt: skip
    documents = np.random.default_rng([seed, 4]).permutation(np.unique(corpus.documents[rows]))
    place = np.empty(corpus.n_documents, np.int64)
    place[documents] = np.arange(len(documents))
    return rows[np.argsort(place[corpus.documents[rows]], kind="stable")]


def _at_most(corpus: Tokens, rows: NDArray[np.integer], tokens: int | None) -> NDArray[np.integer]:
    """The first of the rows that hold at most so many tokens, BOS included."""
    return rows if tokens is None else rows[: int(np.searchsorted(np.cumsum(corpus.lengths[rows]), tokens, side="right"))]
