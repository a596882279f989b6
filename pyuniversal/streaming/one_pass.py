"""The one pass: every source runs once per batch, and moments, histograms and all products are fed from that one forward."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ActivationError, InputError
from ..ops import Packed
from ..ops.product import MAX_TOKENS
from ..sources import ModelSite, Source
from ..tokens import Tokens
from ..totals import SETS, Histogram, Key, Moments, SourceInfo, Totals, first_bad, pack
from .checkpoints import Checkpoints
from .chunks import Chunk, choose_rows, gather, make_chunk, row_of

log = logging.getLogger(__name__)

PILOT_ROWS = 64
STORAGES = ("resident", "host", "disk")


def observe(
    sources: Sequence[Source | Any],
    tokens: Tokens,
    *,
    out: str | os.PathLike[str] | None = None,
    precision: str = "int8",
    max_tokens: int | None = None,
    seed: int = 0,
    chunk_tokens: int = 16_384,
    batch_tokens: int = 2_048,
    device: torch.device | str = "cpu",
    storage: str = "resident",
    sweeps: Sequence[Sequence[Key]] | None = None,
    progress: bool = True,
) -> Totals:
    """Stream the tokens through all sources once and sum.

    Args:
        sources: what yields the columns: models (all their MLP neurons, "mlp.post") or `Source`s such as `ModelSite`. Every pair of them is correlated, one
            alone gets its moments.
        tokens: the corpus, tokenised with the tokenizer of all sources.
        out: folder of the totals. A run that was stopped resumes there from its last checkpoint; a finished one is read back.
        precision: of the products, "int8", "bf16", "float32" or "float64".
        max_tokens: at most so many tokens, BOS included, in whole rows; all by default.
        seed: of the row order, the held-out documents and the dither.
        chunk_tokens: tokens a chunk, rounded down to whole rows; changes the rounding, so it belongs to the run.
        batch_tokens: tokens that run through a model at once; a matter of memory and speed only.
        device: where activations arrive and moments live.
        storage: where the products live: "resident" (on the device), "host" (in the host's memory; each visits the device once a chunk) or "disk" (in `out`;
            each is read and written once a chunk, which is then saved). `make_plan` says what fits.
        sweeps: keys of products (`Totals.product_keys`), group after group: the tokens go through the models once for each, and no other product takes memory
            meanwhile. All in one by default. The sums are the same to the bit, whatever the groups and the storage.
        progress: show a progress bar.

    Raises:
        InputError: the tokens do not fit the sources, an unknown storage or one on disk without `out`, or `out` holds the totals of another run.
        ActivationError: a source yields NaN or Inf; names model, layer, neuron, row. What was summed before stays in `out`.
    """
    sources = [s if hasattr(s, "activations") else ModelSite(s) for s in sources]
    for source in sources:
        source.check(tokens)
    if storage not in STORAGES or (storage == "disk" and out is None):
        raise InputError(f"storage {storage!r}" + (" needs a folder, out" if storage in STORAGES else f" is none of {', '.join(STORAGES)}"))
    rows = choose_rows(tokens, max_tokens=max_tokens, seed=seed)
    per_chunk = max(1, chunk_tokens // tokens.row_tokens)
    if precision == "int8" and per_chunk * tokens.row_tokens > MAX_TOKENS:
        raise InputError(
            f"a chunk of {per_chunk * tokens.row_tokens:,} tokens is too long for int8, whose sums are exact up to {MAX_TOKENS:,}; lower --chunk-tokens"
        )
    pieces = [rows[i : i + per_chunk] for i in range(0, len(rows), per_chunk)]
    identity = _identity(tokens, rows=len(rows), precision=precision, max_tokens=max_tokens, seed=seed, rows_per_chunk=per_chunk)
    home = "cpu" if storage in ("host", "disk") else device
    totals = _resume(out, sources, identity, device, home) if out is not None else None
    if totals is None:
        centre = [_pilot(s, tokens, rows, seed=seed, batch_tokens=batch_tokens, device=device) for s in sources]
        infos = [_info(s) for s in sources]
        totals = Totals(infos, identity=identity, n_chunks=len(pieces), centre=centre, precision=precision, seed=seed, device=device, home=home)
    if out is not None:
        totals.open(out)
    sizes = [int(tokens.lengths[piece].sum()) for piece in pieces]
    groups = [_Group(totals, keys) for keys in sweeps or [totals.product_keys()]]
    bar = tqdm(
        total=sum(sizes) * len(groups),
        initial=sum(sizes[c] for group in groups for c in range(len(pieces)) if c not in group.missing()),
        unit="tok",
        unit_scale=True,
        desc="observe",
        disable=None if progress else True,
    )
    saver = Checkpoints(totals, out)
    buffers: dict[str, Tensor] = {}
    with bar, saver:
        for group in groups:
            for number in sorted(group.missing()):
                chunk = make_chunk(tokens, pieces[number], batch_tokens=batch_tokens, device=device)
                seen = _see(group, sources, number, chunk, tokens, buffers)
                with saver.unsafe():
                    _add(group, number, seen, settle=storage == "disk")
                if storage == "disk":
                    saver.save()
                saver.maybe_save()
                bar.update(chunk.ends[2])
            if len(groups) > 1 and out is not None:
                with saver.unsafe():
                    totals.settle(group.keys)
                saver.save()
    if len(sources) > 1 and totals.tokens < 2:
        raise InputError(f"{tokens.path}: {totals.tokens} tokens are left to correlate when BOS and newlines are out; give more text")
    return totals


class _Group:
    """Products that one sweep over the tokens fills, and the sources that must run for them."""

    def __init__(self, totals: Totals, keys: Sequence[Key]) -> None:
        self.totals, self.keys = totals, list(keys)
        self.sources = sorted({i for key in keys for i in (key[0], key[2])}) or range(len(totals.sources))

    def missing(self) -> set[int]:
        """Chunks that something of this group does not hold."""
        held: list[set[int]] = [*(self.totals.observed[i] for i in self.sources), *(self.totals.added[key] for key in self.keys)]
        return {chunk for chunk in range(self.totals.n_chunks) if not all(chunk in some for some in held)}

    def open(self, chunk: int) -> list[Key]:
        """Products of the group that do not hold a chunk."""
        return [key for key in self.keys if chunk not in self.totals.added[key]]


@dataclass(frozen=True)
class _Seen:
    """What one chunk says of one source: its operand of the products (None where there is nothing to correlate) and, the first time, its moments."""

    packed: Packed | None
    observed: tuple[Moments, Moments, Histogram] | None


def _see(group: _Group, sources: Sequence[Source], number: int, chunk: Chunk, tokens: Tokens, buffers: dict[str, Tensor]) -> dict[int, _Seen]:
    """Run the sources of a group over a chunk; touches no total, so that an error leaves them whole."""
    totals = group.totals
    correlated = {i for key in group.open(number) for i in (key[0], key[2])} if chunk.ends[0] else set()
    seen = {}
    for i in group.sources:
        source, new = sources[i], number not in totals.observed[i]
        if not new and i not in correlated:
            continue
        x = gather(source, chunk, buffers, sites={source.site, "mlp.pre"} if new else {source.site})
        site = Moments(totals.sources[i].columns, sets=SETS, device=totals.device)
        site.update(x[source.site], chunk.ends)
        _refuse_nonfinite(site, x[source.site], source, source.site, chunk, tokens)
        packed = None
        if i in correlated:
            extremes = (site.field("minimum", "r"), site.field("maximum", "r"))
            r = x[source.site][: chunk.ends[0]]
            packed = pack(r, totals.centre[i], chunk.keys, source=i, seed=totals.seed, precision=totals.precision, extremes=extremes)
        seen[i] = _Seen(packed, (site, *_of_pre(x["mlp.pre"], source, chunk, tokens)) if new else None)
        del x  # before the next source makes its own
    return seen


def _of_pre(x: Tensor, source: Source, chunk: Chunk, tokens: Tokens) -> tuple[Moments, Histogram]:
    """Moments and histogram of the pre-activations of a chunk, [tokens, columns]."""
    moments = Moments(x.shape[1], device=x.device)
    moments.update(x)
    _refuse_nonfinite(moments, x, source, "mlp.pre", chunk, tokens)
    histogram = Histogram(x.shape[1], device=x.device)
    histogram.update(x)
    return moments, histogram


def _add(group: _Group, number: int, seen: dict[int, _Seen], *, settle: bool) -> None:
    """Add a chunk to the totals; `settle` writes each product before the next one is read."""
    totals = group.totals
    for i, one in seen.items():
        if one.observed is not None:
            totals.observe(i, number, *one.observed)
    left: tuple[tuple[int, int], Packed] | None = None  # the operand of a layer serves its product with every other source
    for key in group.open(number):
        i, layer, j = key
        whole, other = seen[i].packed if i in seen else None, seen[j].packed if j in seen else None
        operands = None
        if whole is not None and other is not None:
            if left is None or left[0] != (i, layer):
                width = totals.sources[i].width
                left = (i, layer), whole.columns(layer * width, (layer + 1) * width)
            operands = (left[1], left[1] if i == j else other)
        totals.add(key, number, operands)
        if settle:
            totals.settle([key])


def _refuse_nonfinite(moments: Moments, x: Tensor, source: Source, site: str, chunk: Chunk, tokens: Tokens) -> None:
    """Raise `ActivationError` for the first NaN or Inf of a chunk; looks for it only where the moments say that there is one."""
    bad = ~torch.isfinite(moments.field("M2", moments.sets[-1]))
    if not bad.any():
        return
    column = int(bad.nonzero()[0])
    values = x[:, column]
    place = first_bad(values)
    layer, neuron = source.layers[column // source.width], column % source.width
    row, position = row_of(chunk, place)
    raise ActivationError(
        f"{source.name}: {site} of L{layer}.{neuron} is {values[place].item()} at row {row} (document {tokens.documents[row]}), position {position}; "
        f"{int(bad.sum())} neurons are affected. Run the model in a wider dtype (--dtype float32), leave the layer out with --layers, or repair its weights."
    )


def _pilot(source: Source, tokens: Tokens, rows: np.ndarray, *, seed: int, batch_tokens: int, device: torch.device | str) -> Tensor:
    """float32 [columns]: mean over r in a seeded sample of the run's rows. Any fixed centre keeps the products exact; this one keeps the operands small."""
    sample = np.random.default_rng([seed, 1]).choice(rows, size=min(PILOT_ROWS, len(rows)), replace=False)
    chunk = make_chunk(tokens, sample, batch_tokens=batch_tokens, device=device)
    x = gather(source, chunk)[source.site][: chunk.ends[0]]
    moments = Moments(x.shape[1], device=x.device)
    moments.update(x)
    _refuse_nonfinite(moments, x, source, source.site, chunk, tokens)
    return moments.mean().nan_to_num(0.0).float()


def _identity(tokens: Tokens, **options: Any) -> dict[str, Any]:
    return {"tokens": tokens.hash, **options}


def _info(source: Source) -> SourceInfo:
    return SourceInfo(source.name, source.site, tuple(source.layers), source.width, source.hash)


def _resume(
    out: str | os.PathLike[str], sources: Sequence[Source], identity: dict[str, Any], device: torch.device | str, home: torch.device | str
) -> Totals | None:
    """The totals in `out`, if there are any and they are of this very run."""
    if not any((Path(out) / name).exists() for name in ("ledger.json", "ledger.previous.json")):
        return None
    totals = Totals.load(out, device=device, home=home)
    differing = [f"{k} ({totals.identity.get(k)} there, {v} asked for)" for k, v in identity.items() if totals.identity.get(k) != v]
    if totals.sources != [_info(s) for s in sources]:
        differing.append("models, layers or site")
    if differing:
        raise InputError(f"{out} holds the totals of another run; it differs in {', '.join(differing)}. Choose another --out, or --overwrite.")
    if totals.chunks and not totals.complete:
        log.info("resuming: %d of %d chunks are done", len(totals.chunks), totals.n_chunks)
    elif totals.complete:
        log.info("the pass in %s is complete; its sums are taken as they are", out)
    return totals
