"""What neurons of two models have in common when they read different documents: the best r that chance alone finds.

x is observed on a row and y on a row of another document, position by position (`pairing`). Best r is a maximum over all neurons of the other model, so it is
not 0 without anything shared: it grows as neurons fire more rarely and as tokens are fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..ops import Columns, Packed, summarize_correlation
from ..ops.quantize import PANEL
from ..sources import Source
from ..tokens import Tokens
from ..totals import Moments, Product, pack
from .chunks import Chunk, gather, make_chunk
from .nonfinite import refuse_nonfinite
from .pairing import Ints, cut, pair_rows, spans


@dataclass(frozen=True)
class Chance:
    """What chosen neurons of one source find among all neurons of another on re-paired rows.

    Attributes:
        r: float64 [draws, chosen], the largest correlation of each; raw: rounding noise may carry it beyond 1; NaN for a neuron that did not vary.
        stderr: float64 [draws, chosen], standard error of r from the rounding of the operands.
        partner: int64 [draws, chosen], which column of the other source that is; -1 where r is NaN.
        tokens: how many went in, of each draw.
    """

    r: Tensor
    stderr: Tensor
    partner: Tensor
    tokens: tuple[int, ...]


def ring(sources: int) -> list[tuple[int, int]]:
    """Every source with the next one, the last with the first; nothing for one alone."""
    return [(i, (i + 1) % sources) for i in range(sources)] if sources > 1 else []


def pairings(tokens: Tokens, rows: Ints, *, draws: int, chunk_tokens: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Rows of the corpus in pieces, and who is whose partner in each: (rows [n], partners [draws, n]: indices into these n, -1 for none)."""
    rng = np.random.default_rng([seed, 4])
    pieces = [np.sort(rows[piece]) for piece in cut(tokens.lengths[rows].astype(np.int64), chunk_tokens=chunk_tokens, rng=rng)]
    return [(piece, pair_rows(tokens.lengths[piece].astype(np.int64), spans(tokens, piece), draws=draws, rng=rng)) for piece in pieces]


def best_by_chance(
    sources: Sequence[Source],
    tokens: Tokens,
    rows: Ints,
    chosen: Sequence[Tensor],
    centre: Sequence[Tensor],
    *,
    draws: int = 3,
    precision: str = "int8",
    seed: int = 0,
    chunk_tokens: int = 8_192,
    batch_tokens: int = 2_048,
    parts: int = 1,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[tuple[int, int], Chance]:
    """Best correlations of chosen neurons of every source with all neurons of the next one (`ring`), on rows that are re-paired between documents.

    A token counts where it is in r on both sides. Every source runs once over the rows; all draws are made of that. Beside what one chunk takes, memory holds
    the products: draws x chosen x columns of the next source, in float32 (float64), those of `part_rows` of the chosen at a time.

    Args:
        sources: at least two, or there is nothing to do.
        tokens: the corpus.
        rows: of the corpus, each once.
        chosen: of each source, int64 [chosen] columns.
        centre: of each source, float32 [columns]: what the products subtract.
        draws: pairings.
        precision: of the products, "int8", "bf16", "float32" or "float64".
        seed: of the pairings and the dither.
        chunk_tokens: about how many tokens are held at once. Half of a run's chunk: a copy in another order stands beside the activations.
        batch_tokens: tokens that run through a model at once.
        parts: how many the chosen are divided into, with a run of every source for each; a matter of memory and time, r is the same (of int8, to the bit).
        device: where sums live and activations arrive.
        progress: show a progress bar.

    Returns:
        (i, j) -> what the chosen neurons of source i find in source j.

    Raises:
        ActivationError: a source yields NaN or Inf; names model, layer, neuron, row.
    """
    pairs = ring(len(sources))
    if not pairs:
        return {}
    options = {"precision": precision, "seed": seed}
    buffers: dict[str, Tensor] = {}
    made: list[dict[tuple[int, int], Chance]] = []
    bar = tqdm(total=parts * int(tokens.lengths[rows].sum()), unit="tok", unit_scale=True, desc="re-paired", disable=None if progress else True)
    pieces = pairings(tokens, rows, draws=draws, chunk_tokens=chunk_tokens, seed=seed)
    with bar, torch.inference_mode():
        for part in range(parts):
            blocks = {(i, j): [_Block(_part(len(chosen[i]), part, parts), len(chosen[i]), len(centre[j]), device=device, **options) for _ in range(draws)]
                      for i, j in pairs}  # fmt: skip
            for piece, partners in pieces:
                chunk = make_chunk(tokens, piece, batch_tokens=batch_tokens, device=device)
                places = list(_places(chunk, piece, partners, tokens.row_tokens))
                seen = [_Seen(source, i, chosen[i].to(device), centre[i].to(device), chunk, tokens, options) for i, source in enumerate(sources)]
                _add(blocks, seen, places, buffers)
                bar.update(chunk.ends[2])
            made.append({pair: _summary(every) for pair, every in blocks.items()})
            del blocks  # before the next ones are made
    return {pair: _joined([one[pair] for one in made]) for pair in pairs}


def part_rows(chosen: int, parts: int) -> int:
    """How many of the chosen neurons are in the largest of so many parts: a multiple of what lies together in panels, which are not cut then."""
    return PANEL * -(-chosen // (PANEL * parts))


def _part(chosen: int, part: int, parts: int) -> slice:
    """Which of the chosen are in a part; none, where they are few."""
    size = part_rows(chosen, parts)
    return slice(min(part * size, chosen), min((part + 1) * size, chosen))


class _Block:
    """Sums of one ordered pair of sources in one draw: [a part of the chosen, columns], and the moments of all of either side over exactly its tokens."""

    def __init__(self, part: slice, chosen: int, columns: int, **options: Any) -> None:
        self.part = part
        self.product = Product(part.stop - part.start, columns, **options)
        self.moments = tuple(Moments(n, device=options["device"]) for n in (chosen, columns))

    def add(self, x: tuple[Packed, Moments], y: tuple[Packed, Moments]) -> None:
        if self.part.start == self.part.stop:
            return
        self.product.add(x[0].columns(self.part.start, self.part.stop), y[0])
        self.moments[0].merge(x[1])
        self.moments[1].merge(y[1])


def _summary(draws: Sequence[_Block]) -> Chance:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in draws:
        if block.product.tokens < 2 or block.product.centre is None:
            nothing = torch.full((block.product.total.shape[0],), torch.nan, dtype=torch.float64)
            found.append((nothing, nothing, torch.full_like(nothing, -1, dtype=torch.int64)))
            continue
        x, y = (
            Columns(m.field("M2")[own], m.mean()[own] - c.double(), *block.product.added(side))
            for side, (m, c, own) in enumerate(zip(block.moments, block.product.centre, (block.part, slice(None)), strict=True))
        )
        best, _ = summarize_correlation(block.product.total, block.product.tokens, x, y, top_k=1)
        found.append((best.top[:, 0].cpu(), best.top_stderr[:, 0].cpu(), best.top_index[:, 0].cpu()))
    r, stderr, partner = (torch.stack(field) for field in zip(*found, strict=True))
    return Chance(r, stderr, partner, tuple(block.product.tokens for block in draws))


def _joined(parts: Sequence[Chance]) -> Chance:
    """The parts of the chosen in their order."""
    r, stderr, partner = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("r", "stderr", "partner"))
    return Chance(r, stderr, partner, parts[0].tokens)


def _places(chunk: Chunk, rows: Ints, partners: Ints, row_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each draw, where in the chunk's matrices x and y of every pair of tokens stand, int64 [pairs] each: both in r, at the same position of two rows."""
    keys = chunk.keys.cpu().numpy()
    order = np.argsort(rows)
    local = order[np.searchsorted(rows, keys // row_tokens, sorter=order)]
    place = np.full((len(rows), row_tokens), -1)  # of a token in r; beyond the end of a row there is none
    place[local, keys % row_tokens] = np.arange(len(keys))
    for partner in partners:
        x, y = place[partner >= 0], place[partner[partner >= 0]]
        both = (x >= 0) & (y >= 0)
        yield torch.from_numpy(x[both]).to(chunk.keys.device), torch.from_numpy(y[both]).to(chunk.keys.device)


@dataclass(frozen=True)
class _Seen:
    """One source in one chunk; number: its place among the sources, which keys its dither, so the two sides of a product never share one."""

    source: Source
    number: int
    chosen: Tensor
    centre: Tensor
    chunk: Chunk
    tokens: Tokens
    options: dict[str, Any]

    def run(self, buffers: dict[str, Tensor]) -> Tensor:
        """The correlated site over r, [tokens, columns]."""
        return gather(self.source, self.chunk, buffers, sites=[self.source.site])[self.source.site][: self.chunk.ends[0]]

    def side(self, site: Tensor, places: Tensor, buffers: dict[str, Tensor], *, chosen: Tensor | None = None) -> tuple[Packed, Moments]:
        """One side of a product: the tokens at `places` of all columns, or of `chosen`, [tokens, chosen], packed; and their moments."""
        x = _pick(site, places, buffers, "all") if chosen is None else chosen[places]
        moments = Moments(x.shape[1], device=x.device)
        moments.update(x)
        if not torch.isfinite(moments.field("M2")).all():
            whole = Moments(site.shape[1], device=site.device)
            whole.update(site)
            refuse_nonfinite(whole, site, self.source, self.source.site, self.chunk, self.tokens)
        extremes = (moments.field("minimum"), moments.field("maximum"))
        centre = self.centre if chosen is None else self.centre[self.chosen]
        return pack(x, centre, self.chunk.keys[places], source=self.number, extremes=extremes, **self.options), moments


def _add(blocks: dict[tuple[int, int], list[_Block]], seen: Sequence[_Seen], places: Sequence[tuple[Tensor, Tensor]], buffers: dict[str, Tensor]) -> None:
    """One chunk into all blocks. Along the ring only the chosen neurons of the source before are held, and all of the first source, packed, to the end."""
    used = [(draw, x, y) for draw, (x, y) in enumerate(places) if len(x)]
    first: dict[int, tuple[Packed, Moments]] = {}
    before: dict[int, tuple[Packed, Moments]] = {}
    for one in seen:
        site = one.run(buffers)
        for draw, _, y in used:
            side = one.side(site, y, buffers)
            if one.number:
                blocks[one.number - 1, one.number][draw].add(before[draw], side)
            else:
                first[draw] = side
        narrow = site[:, one.chosen]
        before = {draw: one.side(site, x, buffers, chosen=narrow) for draw, x, _ in used}
    for draw, _, _ in used:
        blocks[len(seen) - 1, 0][draw].add(before[draw], first[draw])


def _pick(x: Tensor, places: Tensor, buffers: dict[str, Tensor], name: str) -> Tensor:
    """x[places], [pairs, columns], in memory of an earlier call where it fits."""
    known = buffers.get(name)
    if known is None or known.shape[1] != x.shape[1] or known.shape[0] < len(places) or known.dtype != x.dtype or known.device != x.device:
        buffers.pop(name, None)  # before the next one is made
        del known
        known = buffers[name] = torch.empty(len(places), x.shape[1], dtype=x.dtype, device=x.device)
    return torch.index_select(x, 0, places, out=known[: len(places)])
