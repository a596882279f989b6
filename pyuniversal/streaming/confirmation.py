"""The pass that confirms chosen partners on documents that had no part in choosing them, by batches of documents."""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import sha256
from ..sources import ModelSite, Source
from ..tokens import Tokens
from ..totals import Confirmation, Moments
from ..totals.confirmation import LEDGER
from .chunks import Chunk, gather, make_chunk
from .nonfinite import refuse_nonfinite
from .one_pass import _info

log = logging.getLogger(__name__)

BATCHES = 32
CANDIDATES = 16  # partners of a neuron that stay in the race when a part of the text goes through the dense product and the rest does not
STEPS = 4  # that the sums of the candidates are saved in: each takes memory


def document_batches(tokens: Tokens, rows: NDArray[np.integer], *, seed: int, batches: int = BATCHES) -> NDArray[np.int64]:
    """Deal the documents of some rows out to batches of about as many tokens each; a document is never split.

    Documents come in a seeded order, each to the batch that has the fewest tokens so far. Not the longest first, which would balance better: batches that all
    have the same mixture of lengths differ less than chance has it, and the standard errors made of them would be too small. With packing "joined" a row
    counts as of the document of its first token.

    Args:
        tokens: the corpus.
        rows: [rows], indices in it.
        seed: of the order.
        batches: how many; fewer documents make as many batches as documents.

    Returns:
        int64 [rows], 0 to batches - 1; every batch has a document.

    Raises:
        InputError: fewer than one batch.
    """
    if batches < 1:
        raise InputError(f"documents need at least one batch, not {batches}")
    documents, place = np.unique(tokens.documents[rows], return_inverse=True)
    sizes = np.bincount(place, weights=tokens.lengths[rows] - 1, minlength=len(documents))  # BOS does not count
    lightest = [(0, b) for b in range(min(batches, len(documents)))]
    batch_of = np.empty(len(documents), np.int64)
    for document in np.random.default_rng([seed, 3]).permutation(len(documents)):
        size, batch = lightest[0]
        batch_of[document] = batch
        heapq.heapreplace(lightest, (size + int(sizes[document]), batch))
    return batch_of[place]


def confirm_pass(
    sources: Sequence[Source | Any],
    tokens: Tokens,
    *,
    rows: NDArray[np.integer],
    batch_of_row: NDArray[np.integer],
    partners: Mapping[tuple[int, int], Tensor],
    centre: Sequence[Tensor],
    out: str | os.PathLike[str] | None = None,
    chunk_tokens: int = 2_048,
    batch_tokens: int = 2_048,
    device: torch.device | str = "cpu",
    progress: bool = True,
    words: str = "confirm",
) -> Confirmation:
    """Run every source once over some rows and sum the products of neurons with their partners, batch of documents by batch of documents.

    Args:
        sources: as in `observe`.
        tokens: the corpus.
        rows: [rows], indices in it; best of documents that had no part in choosing the partners.
        batch_of_row: [rows], as `document_batches` gives it.
        partners: (i, j) -> int64 [columns of source i, candidates], columns of source j or -1.
        centre: per source, [columns], what the products subtract; those of the run's totals do.
        out: folder of the state. Each batch is written when it is finished; a pass that was stopped goes on at the first one missing, and a finished one is
            read back.
        chunk_tokens: tokens, rounded down to whole rows, whose activations of all sources are in memory at once.
        batch_tokens: tokens that run through a model at once.
        device: where sums live and activations arrive.
        progress: show a progress bar.
        words: before it.

    Raises:
        InputError: the tokens do not fit the sources, the partners or centres not the neurons, or `out` holds another confirmation.
        ActivationError: a source yields NaN or Inf; names model, layer, neuron, row. The batches finished before stay in `out`.
    """
    sources = [s if hasattr(s, "activations") else ModelSite(s) for s in sources]
    for source in sources:
        source.check(tokens)
    state = _new(sources, tokens, rows=rows, batch_of_row=batch_of_row, partners=partners, centre=centre, device=device)
    if out is not None:
        state = _resume(out, state, device)
    own = [np.asarray(rows, np.int64)[np.asarray(batch_of_row) == b] for b in range(state.batches)]
    bar = tqdm(
        total=int(tokens.lengths[rows].sum()),
        initial=sum(int(tokens.lengths[own[b]].sum()) for b in state.done),
        unit="tok",
        unit_scale=True,
        desc=words,
        disable=None if progress else True,
    )
    per_chunk = max(1, chunk_tokens // tokens.row_tokens)
    buffers: list[dict[str, Tensor]] = [{} for _ in sources]
    with bar:
        for batch in state.missing():
            for start in range(0, len(own[batch]), per_chunk):
                chunk = make_chunk(tokens, own[batch][start : start + per_chunk], batch_tokens=batch_tokens, device=device)
                _add(state, batch, sources, chunk, tokens, buffers)
                bar.update(chunk.ends[2])
            state.finish(batch, out)
    return state


def _add(state: Confirmation, batch: int, sources: Sequence[Source], chunk: Chunk, tokens: Tokens, buffers: list[dict[str, Tensor]]) -> None:
    """Run every source over a chunk and add its tokens of the set r to one batch of documents."""
    if not chunk.ends[0]:
        return
    seen = []
    for i, source in enumerate(sources):
        x = gather(source, chunk, buffers[i], sites={source.site})[source.site][: chunk.ends[0]]  # [tokens, columns]
        moments = Moments(x.shape[1], device=x.device)
        moments.update(x)
        refuse_nonfinite(moments, x, source, source.site, chunk, tokens)
        state.moments[i].add(batch, moments)
        seen.append(x)
    for (i, j), pair in state.pairs.items():
        pair.update(batch, seen[i], seen[j])


def check_resumable(
    sources: Sequence[Source],
    tokens: Tokens,
    *,
    rows: NDArray[np.integer],
    batch_of_row: NDArray[np.integer],
    partners: Mapping[tuple[int, int], Tensor],
    centre: Sequence[Tensor],
    out: str | os.PathLike[str],
) -> None:
    """Raise the `InputError` that `confirm_pass` would for the folder `out`; nothing is run or written."""
    if (Path(out) / LEDGER).exists():
        _refuse_other(out, Confirmation.load(out), _new(sources, tokens, rows=rows, batch_of_row=batch_of_row, partners=partners, centre=centre, device="cpu"))


def _new(
    sources: Sequence[Source],
    tokens: Tokens,
    *,
    rows: NDArray[np.integer],
    batch_of_row: NDArray[np.integer],
    partners: Mapping[tuple[int, int], Tensor],
    centre: Sequence[Tensor],
    device: torch.device | str,
) -> Confirmation:
    """The state before the first batch."""
    rows, batch_of_row = np.asarray(rows, np.int64), np.asarray(batch_of_row, np.int64)
    if not len(rows) or rows.shape != batch_of_row.shape or batch_of_row.min() < 0:
        raise InputError(f"{tokens.path}: there is nothing to confirm on: {len(rows)} rows, a batch for {len(batch_of_row)} of them; hold more documents out")
    identity = {"tokens": tokens.hash, "rows": sha256(rows.tobytes(), batch_of_row.tobytes())}
    batches = int(batch_of_row.max()) + 1
    return Confirmation([_info(s) for s in sources], partners=partners, centre=centre, batches=batches, identity=identity, device=device)


def _resume(out: str | os.PathLike[str], new: Confirmation, device: torch.device | str) -> Confirmation:
    """The state in `out`, if there is one and it is of this very confirmation; else the new one, whose files are begun."""
    if not (Path(out) / LEDGER).exists():
        new.start(out)
        return new
    found = Confirmation.load(out, device=device)
    _refuse_other(out, found, new)
    if found.done:
        log.info("resuming the confirmation: %d of %d batches of documents are done", len(found.done), found.batches)
    return found


def _refuse_other(out: str | os.PathLike[str], found: Confirmation, new: Confirmation) -> None:
    differing = [name for name in new.identity if found.identity.get(name) != new.identity[name]]
    if found.sources != new.sources:
        differing.append("models, layers or site")
    if differing:
        raise InputError(f"{out} holds the confirmation of another run; it differs in {', '.join(differing)}. Choose another --out, or --overwrite.")
