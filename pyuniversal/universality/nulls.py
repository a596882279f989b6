"""The document re-pairing null: is anything shared at all?

Best r is a maximum over all neurons of another model, and rare neurons reach a high one by chance. Here x and y are observed on rows of different documents,
position by position, so that only what their marginals and the position explain is left; the best r that still comes out is chance. It belongs beside a
neuron's best r and is not subtracted from it. Chance falls with the number of tokens: it is that of the null's tokens, the column `tokens`, and a bound from
above for a run of more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, NotEnoughMemoryError
from ..sources import ModelSite, Source
from ..streaming.afterwards import DECILES, DRAWS, MOST_PARTS, NULL_BUDGET, PER_STRATUM
from ..streaming.chunks import choose_rows
from ..streaming.layout import size
from ..streaming.repairing import Chance, best_by_chance, part_rows, ring
from ..tokens import Tokens
from ..totals import SourceInfo, Totals

log = logging.getLogger(__name__)

_KINDS = {"model": "object", "other": "object", "layer": "int16", "decile": "int8", "firing_low": "float64", "firing_high": "float64", "neurons": "int32"}
_KINDS |= {"draws": "int16", "tokens": "int64", "mean": "float64", "p50": "float64", "p90": "float64", "p99": "float64", "max": "float64"}
NULL_COLUMNS = tuple(_KINDS)


def nulls(
    sources: Sequence[Source | Any],
    tokens: Tokens,
    totals: Totals,
    *,
    null_tokens: int = 1_000_000,
    draws: int = DRAWS,
    per_stratum: int = PER_STRATUM,
    budget_bytes: float = NULL_BUDGET,
    room_bytes: float | None = None,
    precision: str = "int8",
    chunk_tokens: int = 8_192,
    batch_tokens: int = 2_048,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Best r by chance of sampled neurons of each model among all neurons of the next one, pooled by layer and decile of the firing frequency.

    Args:
        sources: models or `Source`s, those of the run, in its order.
        tokens: the corpus of the run.
        totals: the sums of the run: firing frequencies, centres, its rows and seed.
        null_tokens: the first rows of the run that hold at most so many tokens, BOS included.
        draws: pairings of rows.
        per_stratum: neurons sampled of each layer and decile, all where there are fewer.
        budget_bytes: what the products may take in all; the sample is halved until they do.
        room_bytes: what they may take at once; all where None. Where that is less, they are made in parts, with a run of the models for each, and the table
            is the same.
        precision: of the products; that of the run gives chance the run's rounding noise.
        chunk_tokens: about how many tokens are held at once; half of a run's chunk, since a copy in another order stands beside the activations.
        batch_tokens: tokens that run through a model at once; a matter of memory and speed only.
        device: where sums live and activations arrive.
        progress: show a progress bar.

    Returns:
        A row for each model, layer and decile of P(pre > 0) within the layer (1: the neurons that fire most rarely; constant neurons in none), columns
        `NULL_COLUMNS`: other (where partners were looked for), firing_low and firing_high (of the whole decile), neurons (sampled), draws, tokens (correlated
        in a draw, the mean over draws), and of the best r of all these neurons in all draws mean, p50, p90, p99, max. Empty for a single model, and where no
        row finds another document to be paired with.

    Raises:
        InputError: the sources or tokens are not those of the totals, an option is below 1.
        NotEnoughMemoryError: even one neuron of each stratum exceeds the budget, or even `MOST_PARTS` parts the room.
        ActivationError: a source yields NaN or Inf.
    """
    sources = [s if hasattr(s, "activations") else ModelSite(s) for s in sources]
    _refuse_strangers(sources, tokens, totals)
    for name, value in (("null_tokens", null_tokens), ("draws", draws), ("per_stratum", per_stratum)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if not ring(len(sources)):
        return empty_nulls()
    seed, limit = totals.identity["seed"], totals.identity["max_tokens"]
    cell = 8 if precision == "float64" else 4
    chosen = _within_budget(totals, per_stratum=per_stratum, draws=draws, cell=cell, budget_bytes=budget_bytes, seed=seed)
    parts = 1 if room_bytes is None else fitting_parts([len(c) for c in chosen], [s.columns for s in totals.sources], cell=cell * draws, room_bytes=room_bytes)
    if parts > 1:
        log.info("null: the models run %d times, so that its products stay within %s", parts, size(room_bytes or 0))
    rows = choose_rows(tokens, max_tokens=null_tokens if limit is None else min(null_tokens, limit), seed=seed)
    found = best_by_chance(
        sources,
        tokens,
        rows,
        chosen,
        totals.centre,
        draws=draws,
        precision=precision,
        seed=seed,
        chunk_tokens=chunk_tokens,
        batch_tokens=batch_tokens,
        parts=parts,
        device=device,
        progress=progress,
    )
    if not all(max(chance.tokens) > 1 for chance in found.values()):
        log.warning("%s: no row can be paired with a row of another document, so there is no null; it needs a text of several documents", tokens.path)
    return pool(totals, chosen, found)


def firing_deciles(firing: NDArray[np.float64], groups: NDArray[Any]) -> NDArray[np.int64]:
    """Decile of the firing frequency within each group: int64 [neurons], 1 for the rarest to 10, 0 where `firing` is NaN; equal ones in their order."""
    by_group = pd.Series(firing).groupby(groups)
    rank, size = by_group.rank(method="first").fillna(0).astype(np.int64), by_group.transform("count").astype(np.int64).clip(lower=1)
    return np.asarray(-(-DECILES * rank // size))


def strata(totals: Totals, i: int) -> pd.DataFrame:
    """Layer, firing frequency and its decile within the layer, of every neuron of source i, in the order of its columns; decile 0 for constant neurons."""
    source = totals.sources[i]
    layer = np.repeat(np.asarray(source.layers), source.width)
    firing = totals.pre[i].firing().cpu().numpy()
    varies = (totals.site[i].field("M2", "r") > 0).cpu().numpy()
    return pd.DataFrame({"layer": layer, "firing": firing, "decile": firing_deciles(np.where(varies, firing, np.nan), layer)})


def sample(totals: Totals, i: int, *, per_stratum: int, seed: int) -> Tensor:
    """Columns of source i, int64, rising: up to `per_stratum` of each layer and decile; a smaller sample is part of a larger one."""
    table = strata(totals, i)
    table["order"] = np.random.default_rng([seed, 3, i]).permutation(len(table))
    table["rank"] = table.groupby(["layer", "decile"])["order"].rank(method="first")
    return torch.from_numpy(np.flatnonzero((table["decile"] > 0) & (table["rank"] <= per_stratum)))


def pool(totals: Totals, chosen: Sequence[Tensor], found: dict[tuple[int, int], Chance]) -> pd.DataFrame:
    """The table of `nulls` from the best r by chance of the chosen neurons."""
    rows = []
    for (i, j), chance in found.items():
        table = strata(totals, i)
        sampled = table.iloc[chosen[i].numpy()]
        r = chance.r.clamp(-1, 1).numpy()  # [draws, chosen]
        for (layer, decile), whole in table[table["decile"] > 0].groupby(["layer", "decile"]):
            own = r[:, ((sampled["layer"] == layer) & (sampled["decile"] == decile)).to_numpy()]
            values = own[np.isfinite(own)]
            if len(values):
                row = [totals.sources[i].name, totals.sources[j].name, layer, decile, whole["firing"].min(), whole["firing"].max()]
                counts = [int(np.isfinite(own).any(0).sum()), own.shape[0], round(np.mean(chance.tokens))]
                rows.append([*row, *counts, values.mean(), *np.quantile(values, [0.5, 0.9, 0.99, 1.0])])
    return pd.DataFrame(rows, columns=list(NULL_COLUMNS)).astype(_KINDS)


def empty_nulls() -> pd.DataFrame:
    """A table of nulls without rows."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _KINDS.items()})


def null_p99(totals: Totals, table: pd.DataFrame, i: int) -> NDArray[np.float64]:
    """For every neuron of source i, the 99 % point of best r by chance in its layer and decile: float64 [columns]; NaN if constant or without a null.

    Neurons that follow the position keep their r when documents are re-paired. One of them among 40 sampled sets the 99 % point of its stratum: a neuron below
    it may still share the text, one above it hardly gets there by chance. The columns p50 and p90 of the table hardly feel it.
    """
    own = table.loc[table["model"] == totals.sources[i].name].set_index(["layer", "decile"])["p99"]
    keys = pd.MultiIndex.from_frame(strata(totals, i)[["layer", "decile"]])
    return own.reindex(keys).to_numpy(dtype=np.float64)


def _refuse_strangers(sources: Sequence[Source], tokens: Tokens, totals: Totals) -> None:
    if [SourceInfo(s.name, s.site, tuple(s.layers), s.width, s.hash) for s in sources] != totals.sources:
        raise InputError(f"the totals are of {', '.join(s.name for s in totals.sources)}: hand in the very models, layers and site of the run, in its order")
    if tokens.hash != totals.identity.get("tokens"):
        raise InputError(f"the totals are of another text than {tokens.path}; hand in the tokens of the run")


def fitting_parts(chosen: Sequence[int], columns: Sequence[int], *, cell: int, room_bytes: float) -> int:
    """Into how few parts the chosen neurons of all sources are divided so that the products of one, `cell` bytes a pair, fit the room.

    Raises:
        NotEnoughMemoryError: no number up to `MOST_PARTS` does it.
    """

    def needed(parts: int) -> int:
        return cell * sum(part_rows(chosen[i], parts) * columns[j] for i, j in ring(len(columns)))

    for parts in range(1, MOST_PARTS + 1):
        if needed(parts) <= room_bytes:
            return parts
    raise NotEnoughMemoryError(
        f"the null's products need {size(needed(MOST_PARTS))} of memory even in {MOST_PARTS} parts, and {size(max(room_bytes, 0))} are left for them; "
        "raise --memory, or take fewer models or layers"
    )


def _within_budget(totals: Totals, *, per_stratum: int, draws: int, cell: int, budget_bytes: float, seed: int) -> list[Tensor]:
    """Samples of all sources whose products, `cell` bytes a pair, fit the budget."""
    columns = [s.columns for s in totals.sources]
    most = per_stratum
    while True:
        chosen = [sample(totals, i, per_stratum=per_stratum, seed=seed) for i in range(len(columns))]
        needed = cell * draws * sum(len(chosen[i]) * columns[j] for i, j in ring(len(columns)))
        if needed <= budget_bytes:
            if per_stratum < most:
                log.info("null: %d neurons of each layer and decile instead of %d, to stay within %.1f GB", per_stratum, most, budget_bytes / 1e9)
            return chosen
        if per_stratum == 1:
            raise NotEnoughMemoryError(
                f"the null needs {needed / 1e9:.1f} GB for one neuron of each layer and decile, more than its budget of {budget_bytes / 1e9:.1f} GB; "
                "raise the budget, or take fewer draws or layers"
            )
        per_stratum //= 2
