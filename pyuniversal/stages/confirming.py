"""After the pass, models run again on two kinds of documents: those that only the best candidates are summed over, and those that were held out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import universality
from ..errors import InputError
from ..streaming import check_resumable, choose_rows, confirm_pass, document_batches
from ..streaming.confirmation import CANDIDATES, STEPS
from ..streaming.pairing import spans
from ..tokens import Tokens
from ..totals import Confirmation, Totals
from ..totals.confirmation import LEDGER
from .inputs import Inputs, clock, note_timings

log = logging.getLogger(__name__)

CONFIRMED, REFINED = "confirmation", "candidates"  # folders of a run


def accept(inputs: Inputs) -> None:
    """Refuse what a run with other options left of candidates or confirmation, before anything of that run is touched.

    Raises:
        InputError: there is such a thing.
    """
    folder, dense = inputs.folder, inputs.options["dense_tokens"] is not None
    refined, confirmed = ((folder / name / LEDGER).exists() for name in (REFINED, CONFIRMED))
    totals = Totals.load(folder / "totals") if refined or confirmed else None
    if totals is None or len(totals.sources) < 2:
        return
    rest = _candidates(inputs, totals) if dense else None
    if rest is not None and refined:
        check_resumable(inputs.sources, inputs.corpus, **rest)
    if confirmed and rest is not None and (not refined or Confirmation.load(folder / REFINED).missing()):
        raise InputError(f"{folder / CONFIRMED} holds the confirmation of another run: its partners are no candidates. Choose another --out, or --overwrite.")
    if confirmed and (held := _held_out(inputs, totals)) is not None:
        check_resumable(inputs.sources, inputs.corpus, **held)


def refine(inputs: Inputs, *, hashes: bool = True, progress: bool) -> None:
    """Sum the best candidates of the dense pass, and nobody else, over the text that it left, or --confirm-tokens of it; `hashes` as of `Totals.load`."""
    totals = Totals.load(inputs.folder / "totals", hashes=hashes)
    rest = _candidates(inputs, totals)
    if rest is None:
        return
    tokens = int(inputs.corpus.lengths[rest["rows"]].sum())
    cells = sum(product.total.numel() for product in totals.products.values())
    pairs = sum(partner.numel() for partner in rest["partners"].values())
    log.info(
        "%s further tokens for %d candidates of every neuron: %.2e operations instead of %.2e of the dense product, %.2f %%",
        f"{tokens:,}", CANDIDATES, 2.0 * tokens * pairs, 2.0 * tokens * cells, 100 * pairs / cells,
    )  # fmt: skip
    _sum(inputs, rest, progress=progress, words="candidates")


def confirm(inputs: Inputs, *, hashes: bool = True, progress: bool) -> None:
    """Run the held-out documents (at most a ninth of the run's tokens) for the chosen partners; `hashes` as of `Totals.load`."""
    held = _held_out(inputs, Totals.load(inputs.folder / "totals", hashes=hashes))
    if held is not None:
        _sum(inputs, held, progress=progress, words="confirm")


def _sum(inputs: Inputs, what: dict[str, Any], *, progress: bool, words: str) -> None:
    options = {name: inputs.options[name] for name in ("batch_tokens", "device")}
    with clock(inputs.timings, words):
        confirm_pass(inputs.sources, inputs.corpus, **what, **options, progress=progress, words=words)
    note_timings(inputs)


def _candidates(inputs: Inputs, totals: Totals) -> dict[str, Any] | None:
    """What `confirm_pass` sums of the candidates, and where; None where there is nothing to sum."""
    if len(totals.sources) < 2:
        return None
    rows = refinement_rows(inputs, totals)
    if not len(rows):
        log.warning("the dense pass took the whole text: nothing is left for its candidates; give more text or fewer --dense-tokens")
        return None
    return {
        "rows": rows,
        "batch_of_row": document_batches(inputs.corpus, rows, seed=inputs.options["seed"], batches=STEPS),
        "partners": {(i, j): found.top_index for i, j, found in universality.summaries(totals, top_k=CANDIDATES, device=inputs.options["device"])},
        "centre": totals.centre,
        "out": inputs.folder / REFINED,
    }


def _held_out(inputs: Inputs, totals: Totals) -> dict[str, Any] | None:
    """What `confirm_pass` sums of the chosen partners, and where; None where there is nothing to sum."""
    if len(totals.sources) < 2:
        return None
    corpus, seed = inputs.corpus, inputs.options["seed"]
    run = int(corpus.lengths[choose_rows(corpus, max_tokens=inputs.dense_tokens, seed=seed)].sum())
    rows = _at_most(corpus, held_out_rows(corpus, seed=seed), max(run // 9, corpus.row_tokens))
    if not len(rows):
        log.warning("no document of %s was held out: nothing can be confirmed; *_confirmed and *_se stay empty. Give more documents.", corpus.path)
        return None
    refined = refined_of(inputs.folder, totals, inputs.options, device=inputs.options["device"])
    found = universality.best_partners(totals, top_k=1, refined=refined, device=inputs.options["device"])
    return {
        "rows": rows,
        "batch_of_row": document_batches(corpus, rows, seed=seed),
        "partners": {pair: best.top_index[:, :1].contiguous() for pair, best in found.items()},
        "centre": totals.centre,
        "out": inputs.folder / CONFIRMED,
    }


def refined_of(folder: Path, totals: Totals, options: Mapping[str, Any], *, device: str) -> dict[tuple[int, int], universality.Best] | None:
    """The candidates of a run over all its tokens; None for a run that has none, whatever an earlier one left in its folder."""
    return None if options.get("dense_tokens") is None else universality.refined(totals, folder / REFINED, device=device)


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
