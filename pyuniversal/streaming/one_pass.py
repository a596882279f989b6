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
from ..totals import Histogram, Moments, SourceInfo, Totals, first_bad, pack
from .checkpoints import Checkpoints
from .chunks import Chunk, choose_rows, gather, make_chunk, row_of

log = logging.getLogger(__name__)

PILOT_ROWS = 64


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
        device: where sums live and activations arrive.
        progress: show a progress bar.

    Raises:
        InputError: the tokens do not fit the sources, or `out` holds the totals of another run.
        ActivationError: a source yields NaN or Inf; names model, layer, neuron, row. What was summed before stays in `out`.
    """
    sources = [s if hasattr(s, "activations") else ModelSite(s) for s in sources]
    for source in sources:
        source.check(tokens)
    rows = choose_rows(tokens, max_tokens=max_tokens, seed=seed)
    per_chunk = max(1, chunk_tokens // tokens.row_tokens)
    if precision == "int8" and per_chunk * tokens.row_tokens > MAX_TOKENS:
        raise InputError(
            f"a chunk of {per_chunk * tokens.row_tokens:,} tokens is too long for int8, whose sums are exact up to {MAX_TOKENS:,}; lower --chunk-tokens"
        )
    pieces = [rows[i : i + per_chunk] for i in range(0, len(rows), per_chunk)]
    identity = _identity(tokens, rows=len(rows), precision=precision, max_tokens=max_tokens, seed=seed, rows_per_chunk=per_chunk)
    totals = _resume(out, sources, identity, device) if out is not None else None
    if totals is None:
        centre = [_pilot(s, tokens, rows, seed=seed, batch_tokens=batch_tokens, device=device) for s in sources]
        totals = Totals([_info(s) for s in sources], identity=identity, n_chunks=len(pieces), centre=centre, precision=precision, seed=seed, device=device)
    bar = tqdm(
        total=int(tokens.lengths[rows].sum()),
        initial=sum(int(tokens.lengths[pieces[c]].sum()) for c in totals.chunks),
        unit="tok",
        unit_scale=True,
        desc="observe",
        disable=None if progress else True,
    )
    saver = Checkpoints(totals, out)
    buffers: dict[str, Tensor] = {}
    with bar, saver:
        for number in totals.missing():
            chunk = make_chunk(tokens, pieces[number], batch_tokens=batch_tokens, device=device)
            seen = _see(totals, sources, chunk, tokens, buffers, seed=seed, precision=precision)
            with saver.unsafe():
                _add(totals, seen)
                totals.chunks.add(number)
            saver.maybe_save()
            bar.update(chunk.ends[2])
    if totals.cross and totals.tokens < 2:
        raise InputError(f"{tokens.path}: {totals.tokens} tokens are left to correlate when BOS and newlines are out; give more text")
    return totals


@dataclass(frozen=True)
class _Seen:
    """What one chunk says of one source; `packed` is None where there is nothing to correlate."""

    site: Moments
    pre: Moments
    histogram: Histogram
    packed: Packed | None


def _see(totals: Totals, sources: Sequence[Source], chunk: Chunk, tokens: Tokens, buffers: dict[str, Tensor], *, seed: int, precision: str) -> list[_Seen]:
    """Run every source over the chunk; touches no total, so that an error leaves them whole."""
    seen = []
    for i, source in enumerate(sources):
        x = gather(source, chunk, buffers)
        correlated, everything = x[source.site], x["mlp.pre"]  # [tokens, columns]
        site = Moments(correlated.shape[1], sets=totals.site[i].sets, device=correlated.device)
        site.update(correlated, chunk.ends)
        _refuse_nonfinite(site, correlated, source, source.site, chunk, tokens)
        pre = Moments(site.neurons, device=correlated.device)
        pre.update(everything)
        _refuse_nonfinite(pre, everything, source, "mlp.pre", chunk, tokens)
        histogram = Histogram(site.neurons, edges=totals.histogram[i].edges, device=correlated.device)
        histogram.update(everything)
        packed = None
        if len(sources) > 1 and chunk.ends[0]:
            extremes = (site.field("minimum", "r"), site.field("maximum", "r"))
            packed = pack(correlated[: chunk.ends[0]], totals.centre[i], chunk.keys, source=i, seed=seed, precision=precision, extremes=extremes)
        seen.append(_Seen(site, pre, histogram, packed))
        del x, correlated, everything  # before the next source makes its own
    return seen


def _add(totals: Totals, seen: Sequence[_Seen]) -> None:
    for i, one in enumerate(seen):
        totals.site[i].merge(one.site)
        totals.pre[i].merge(one.pre)
        totals.histogram[i].merge(one.histogram)
    packed = [one.packed for one in seen if one.packed is not None]
    if not packed:  # a source alone, or a chunk of nothing but BOS and newlines
        return
    for (i, j), product in totals.cross.items():
        product.add(packed[i], packed[j])
    for (i, layer), product in totals.within.items():
        width = totals.sources[i].width
        block = packed[i].columns(layer * width, (layer + 1) * width)
        product.add(block, block)


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


def _resume(out: str | os.PathLike[str], sources: Sequence[Source], identity: dict[str, Any], device: torch.device | str) -> Totals | None:
    """The totals in `out`, if there are any and they are of this very run."""
    if not (Path(out) / "ledger.json").exists():
        return None
    totals = Totals.load(out, device=device)
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
