"""The one pass: every source runs once per batch, and moments, histograms and all products are fed from that one forward."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import InputError
from ..ops import Packed
from ..ops.product import MAX_TOKENS
from ..sources import ModelSite, Source
from ..tokens import Tokens
from ..totals import SETS, Histogram, Key, Moments, SourceInfo, Totals, pack
from .checkpoints import Checkpoints
from .chunks import Chunk, choose_rows, gather, make_chunk
from .nonfinite import Finiteness, refuse_nonfinite
from .parts import begin, finish, folder_of
from .ranks import Held, Ranks

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
    shard: tuple[int, int] = (0, 1),
    ranks: Ranks | None = None,
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
        shard: (k, n): add only the chunks whose number is k modulo n. The totals of all n, made apart, are one run's when they are merged (`Totals.merge`).
        ranks: this process among those that share the pass and `out`, connected by `streaming.started`; each adds its share of the chunks, and all return the
            totals of all. A process alone by default.
        progress: show a progress bar.

    Raises:
        InputError: the tokens do not fit the sources, an unknown storage or one on disk without `out`, no such shard, or `out` holds the totals of another run.
        RankError: another of the ranks ended.
        ActivationError: a source yields NaN or Inf; names model, layer, neuron, row. What was summed before stays in `out`.
    """
    sources, ranks, out = [s if hasattr(s, "activations") else ModelSite(s) for s in sources], ranks or Ranks(), None if out is None else Path(out)
    for source in sources:
        source.check(tokens)
    if storage not in STORAGES or (storage == "disk" and out is None):
        raise InputError(f"storage {storage!r}" + (" needs a folder, out" if storage in STORAGES else f" is none of {', '.join(STORAGES)}"))
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"there is no shard {shard[0]}/{shard[1]}: of {shard[1]} shards the first is 0 and the last {shard[1] - 1}")
    rows = choose_rows(tokens, max_tokens=max_tokens, seed=seed)
    per_chunk = max(1, chunk_tokens // tokens.row_tokens)
    if precision == "int8" and per_chunk * tokens.row_tokens > MAX_TOKENS:
        raise InputError(
            f"a chunk of {per_chunk * tokens.row_tokens:,} tokens is too long for int8, whose sums are exact up to {MAX_TOKENS:,}; lower --chunk-tokens"
        )
    pieces = [rows[i : i + per_chunk] for i in range(0, len(rows), per_chunk)]
    identity = _identity(tokens, rows=len(rows), precision=precision, max_tokens=max_tokens, seed=seed, rows_per_chunk=per_chunk)
    where: dict[str, Any] = {"device": device, "home": "cpu" if storage in ("host", "disk") else device}
    infos = [_info(s) for s in sources]

    def make(centre: list[Tensor] | None) -> Totals:
        centre = centre or [_pilot(s, tokens, rows, seed=seed, rows_per_chunk=per_chunk, batch_tokens=batch_tokens, device=device) for s in sources]
        return Totals(infos, identity=identity, n_chunks=len(pieces), centre=centre, precision=precision, seed=seed, **where)

    totals = begin(out, infos, identity, ranks=ranks, make=make, **where)
    if totals.complete:
        if out is not None and not ranks.rank:
            totals.open(out)  # which removes what a kill left there after the last save
        return _enough(totals, tokens)
    own = None if out is None else folder_of(out, ranks.rank)
    if own is not None:
        totals.open(own)
    others = Held.elsewhere(totals, ranks)
    groups = [_Group(totals, keys, others, ours=_share(shard, ranks)) for keys in sweeps or [totals.product_keys()]]
    sizes = [int(tokens.lengths[piece].sum()) for piece in pieces]
    saver = Checkpoints(totals, own)
    buffers: dict[str, Tensor] = {}
    with _bar(groups, sizes, progress=progress and not ranks.rank) as bar, saver:
        for group in groups:
            for number in sorted(group.missing()):
                chunk = make_chunk(tokens, pieces[number], batch_tokens=batch_tokens, device=device)
                seen = _see(group, sources, number, chunk, buffers)
                _refuse(seen, sources, chunk, tokens, buffers)
                with saver.unsafe():
                    _add(group, number, seen, settle=storage == "disk")
                ends = chunk.ends
                del seen, chunk  # before the next ones are made
                if storage == "disk":
                    saver.save()
                saver.maybe_save()
                bar.update(ends[2])
            if len(groups) > 1 and out is not None:
                with saver.unsafe():
                    totals.settle(group.keys)
                saver.save()
    totals = finish(totals, out, ranks, settle=storage == "disk" or len(groups) > 1, **where)
    if shard[1] > 1:
        log.info("shard %d/%d: %d of %d chunks are there", *shard, len(totals.chunks), totals.n_chunks)
    return _enough(totals, tokens) if totals.complete else totals


def _share(shard: tuple[int, int], ranks: Ranks) -> Callable[[int], bool]:
    """Whether a chunk is for this process, by its number: the shard's, dealt out to the ranks in turn."""
    k, n = shard
    return lambda chunk: chunk % n == k and chunk // n % ranks.world == ranks.rank


def _enough(totals: Totals, tokens: Tokens) -> Totals:
    """Totals of the whole run, unless they are of too little to correlate."""
    if len(totals.sources) > 1 and totals.tokens < 2:
        raise InputError(f"{tokens.path}: {totals.tokens} tokens are left to correlate when BOS and newlines are out; give more text")
    return totals


def _bar(groups: Sequence[_Group], sizes: Sequence[int], *, progress: bool) -> Any:
    """The bar of this process's tokens, [chunks] of them, once for each sweep."""
    share = [[c for c in range(len(sizes)) if group.ours(c)] for group in groups]
    done = [set(chunks) - group.missing() for chunks, group in zip(share, groups, strict=True)]
    whole, before = (sum(sizes[c] for chunks in some for c in chunks) for some in (share, done))
    return tqdm(total=whole, initial=before, unit="tok", unit_scale=True, desc="observe", disable=None if progress else True)


class _Group:
    """Products that one sweep over the tokens fills, and the sources that must run for them."""

    def __init__(self, totals: Totals, keys: Sequence[Key], others: Held, *, ours: Callable[[int], bool]) -> None:
        self.totals, self.keys, self.others, self.ours = totals, list(keys), others, ours
        self.sources = sorted({i for key in keys for i in (key[0], key[2])}) or range(len(totals.sources))

    def missing(self) -> set[int]:
        """Our chunks that something of this group does not hold."""
        return {c for c in range(self.totals.n_chunks) if self.ours(c) and (self.open(c) or not all(self.observed(i, c) for i in self.sources))}

    def observed(self, i: int, chunk: int) -> bool:
        """Whether the moments of source i hold a chunk, here or on another rank."""
        return chunk in self.totals.observed[i] or chunk in self.others.observed[i]

    def open(self, chunk: int) -> list[Key]:
        """Products of the group that do not hold a chunk, neither here nor on another rank."""
        return [key for key in self.keys if chunk not in self.totals.added[key] and chunk not in self.others.added[key]]


@dataclass(frozen=True)
class _Seen:
    """What one chunk says of one source: its operand of the products (None where there is nothing to correlate), moments and, the first time, the rest.

    finite: whether the moments are.
    """

    packed: Packed | None
    site: Moments
    pre: tuple[Moments, Histogram] | None
    finite: Finiteness


def _see(group: _Group, sources: Sequence[Source], number: int, chunk: Chunk, buffers: dict[str, Tensor]) -> dict[int, _Seen]:
    """Run the sources of a group over a chunk; touches no total, so that an error leaves them whole. A GPU is given work and waited for nowhere."""
    totals = group.totals
    correlated = {i for key in group.open(number) for i in (key[0], key[2])} if chunk.ends[0] else set()
    seen = {}
    for i in group.sources:
        source, new = sources[i], not group.observed(i, number)
        if not new and i not in correlated:
            continue
        x = gather(source, chunk, buffers, sites={source.site, "mlp.pre"} if new else {source.site})
        site = Moments(totals.sources[i].columns, sets=SETS, device=totals.device)
        site.update(x[source.site], chunk.ends)
        pre = _of_pre(x["mlp.pre"], totals.histogram[i].edges) if new else None
        finite = Finiteness([site] if pre is None else [site, pre[0]])  # asked before the operand is made, which a GPU does while it is answered
        packed = None
        if i in correlated:
            extremes = (site.field("minimum", "r"), site.field("maximum", "r"))
            r = x[source.site][: chunk.ends[0]]
            packed = pack(r, totals.centre[i], chunk.keys, source=i, seed=totals.seed, precision=totals.precision, extremes=extremes)
        seen[i] = _Seen(packed, site, pre, finite)
        del x  # before the next source makes its own
    return seen


def _of_pre(x: Tensor, edges: Tensor) -> tuple[Moments, Histogram]:
    """Moments and histogram of the pre-activations of a chunk, [tokens, columns]."""
    moments = Moments(x.shape[1], device=x.device)
    moments.update(x)
    histogram = Histogram(x.shape[1], edges=edges, device=x.device)
    histogram.update(x)
    return moments, histogram


def _refuse(seen: dict[int, _Seen], sources: Sequence[Source], chunk: Chunk, tokens: Tokens, buffers: dict[str, Tensor]) -> None:
    """Raise `ActivationError` if a source yielded NaN or Inf; it runs once more then, to show where."""
    for i, one in seen.items():
        if one.finite.known():
            continue
        source = sources[i]
        x = gather(source, chunk, buffers, sites={source.site} if one.pre is None else {source.site, "mlp.pre"})
        refuse_nonfinite(one.site, x[source.site], source, source.site, chunk, tokens)
        if one.pre is not None:
            refuse_nonfinite(one.pre[0], x["mlp.pre"], source, "mlp.pre", chunk, tokens)


def _add(group: _Group, number: int, seen: dict[int, _Seen], *, settle: bool) -> None:
    """Add a chunk to the totals; `settle` writes each product before the next one is read."""
    totals = group.totals
    for i, one in seen.items():
        if one.pre is not None:
            totals.observe(i, number, one.site, *one.pre)
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


def _pilot(source: Source, tokens: Tokens, rows: np.ndarray, *, seed: int, rows_per_chunk: int, batch_tokens: int, device: torch.device | str) -> Tensor:
    """float32 [columns]: mean over r in a seeded sample of the run's rows. Any fixed centre keeps the products exact; this one keeps the operands small."""
    sample = np.random.default_rng([seed, 1]).choice(rows, size=min(PILOT_ROWS, len(rows)), replace=False)
    moments = Moments(len(source.layers) * source.width, device=device)
    for start in range(0, len(sample), rows_per_chunk):  # no more memory than a chunk of the pass
        chunk = make_chunk(tokens, sample[start : start + rows_per_chunk], batch_tokens=batch_tokens, device=device)
        x = gather(source, chunk, sites={source.site})[source.site][: chunk.ends[0]]
        moments.update(x)
        refuse_nonfinite(moments, x, source, source.site, chunk, tokens)
        del x  # before the next one
    return moments.mean().nan_to_num(0.0).float()


def _identity(tokens: Tokens, **options: Any) -> dict[str, Any]:
    return {"tokens": tokens.hash, **options}


def _info(source: Source) -> SourceInfo:
    return SourceInfo(source.name, source.site, tuple(source.layers), source.width, source.hash)
