"""The best partners of every neuron in every other model, from the sums of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..ops import Columns, Correlations, merge_correlations, summarize_correlation
from ..totals import Key, SourceInfo, Totals
from .assignment import assign


class Best(NamedTuple):
    """Partners of every neuron, best first: r (NaN where there are fewer), which neuron (-1), and the error of r from rounding; [neurons, k] each."""

    top: Tensor
    top_index: Tensor
    top_stderr: Tensor


def sides(totals: Totals, key: Key) -> tuple[Columns, Columns]:
    """What the moments over r say of the two sides of the product `key`: a layer of its first source, and all (or that layer again) of its second."""
    i, layer, j = key
    product, width = totals.products[key], totals.sources[i].width
    rows = slice(layer * width, (layer + 1) * width)
    both = []
    for side, (source, columns) in enumerate(((i, rows), (j, rows if i == j else slice(None)))):
        moments = totals.site[source]
        shift = moments.field("mean", "r") - totals.centre[source].double()
        both.append(Columns(moments.field("M2", "r")[columns], shift[columns], *product.added(side)))
    return both[0], both[1]


def summaries(totals: Totals, *, top_k: int, device: torch.device | str = "cpu") -> Iterator[tuple[int, int, Correlations]]:
    """(i, j, correlations of the neurons of source i with those of source j) for every ordered pair, in host memory; the products visit `device`."""
    for i, j in totals.pairs():
        rows, columns = [], None
        for layer in range(len(totals.sources[i].layers)):
            product = totals.products[i, layer, j]
            x, y = (side.to(device) for side in sides(totals, (i, layer, j)))
            found = summarize_correlation(product.total.to(device), product.tokens, x, y, top_k=min(top_k, max(product.total.shape)))
            ahead, back = (part.to("cpu") for part in found)
            rows.append(ahead)
            offset = layer * totals.sources[i].width
            columns = back if columns is None else merge_correlations(columns, back, offset=offset, top_k=min(top_k, totals.sources[i].columns))
        if columns is not None:
            yield i, j, Correlations(*(torch.cat(field) for field in zip(*(tuple(vars(part).values()) for part in rows), strict=True)))
            yield j, i, columns


def whole_side(totals: Totals, i: int) -> Tensor:
    """Count, mean and M2 over r of every neuron of a source, float64 [3, columns]."""
    return torch.stack([totals.site[i].field(name, "r") for name in ("count", "mean", "M2")])


def best_partners(
    totals: Totals, *, top_k: int, refined: Mapping[tuple[int, int], Best] | None = None, device: torch.device | str = "cpu"
) -> dict[tuple[int, int], Best]:
    """(i, j) -> the best partners of the neurons of source i in source j, for every ordered pair; at most `top_k` of the `refined` ones where there are any."""
    if refined is not None:
        return {pair: Best(*(part[:, :top_k] for part in best)) for pair, best in refined.items()}
    return {(i, j): Best(c.top, c.top_index, c.top_stderr) for i, j, c in summaries(totals, top_k=top_k, device=device)}


def label(source: SourceInfo, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Layer and neuron of columns of a source; -1 and -1 for the column -1."""
    layers = np.asarray(source.layers)
    found = column >= 0
    return np.where(found, layers[np.where(found, column // source.width, 0)], -1), np.where(found, column % source.width, -1)


def match_pair(totals: Totals, i: int, j: int, ahead: Best, back: Best, assigned: np.ndarray) -> pd.DataFrame:
    """Rows of `matches` for the neurons of source i among those of source j.

    Columns: model, layer, neuron, other, rank (0 = best), partner_layer, partner_neuron, r (raw: rounding noise may carry it beyond 1), stderr (of r, from the
    rounding of the operands), mutual (rank 0 both ways), assigned (this pair is in the one-to-one assignment with the largest sum of r on the graph of partners
    kept in either direction; `assigned` has it, column of j or -1; a pair that only the other side kept has no row here).
    """
    a, b = totals.sources[i], totals.sources[j]
    index = ahead.top_index.cpu().numpy()  # [neurons, k]
    n, k = index.shape
    column, rank = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
    partner = index.ravel()
    best_back = back.top_index[:, 0].cpu().numpy()
    layer, neuron = label(a, column)
    partner_layer, partner_neuron = label(b, partner)
    table = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(np.full(n * k, i), [s.name for s in totals.sources]),
            "layer": layer.astype(np.int16),
            "neuron": neuron.astype(np.int32),
            "other": pd.Categorical.from_codes(np.full(n * k, j), [s.name for s in totals.sources]),
            "rank": rank.astype(np.int16),
            "partner_layer": partner_layer.astype(np.int16),
            "partner_neuron": partner_neuron.astype(np.int32),
            "r": ahead.top.cpu().numpy().ravel(),
            "stderr": ahead.top_stderr.cpu().numpy().ravel(),
            "mutual": (rank == 0) & (partner >= 0) & (best_back[partner] == column),
            "assigned": (partner >= 0) & (assigned[column] == partner),
        }
    )
    return table[partner >= 0].reset_index(drop=True)


def matches(totals: Totals, *, top_k: int = 50, refined: Mapping[tuple[int, int], Best] | None = None, device: torch.device | str = "cpu") -> pd.DataFrame:
    """The long table of partners of all ordered pairs of models; see `match_pair` for its columns. Empty (with those columns) for a single model.

    Products visit `device`, one at a time.
    """
    found = best_partners(totals, top_k=top_k, refined=refined, device=device)
    assigned: dict[tuple[int, int], np.ndarray] = {}  # int64 [columns of i]: column of j, or -1
    for i, j in totals.pairs():
        assigned[i, j] = assign(found[i, j], found[j, i])
        assigned[j, i] = _inverse(assigned[i, j], totals.sources[j].columns)
    tables = [match_pair(totals, *pair, found[pair], found[pair[::-1]], assigned[pair]) for pair in sorted(found)]
    return pd.concat(tables, ignore_index=True) if tables else empty_matches()


def _inverse(assigned: np.ndarray, columns: int) -> np.ndarray:
    """Who is assigned to each of so many columns, -1 for nobody."""
    inverse = np.full(columns, -1)
    inverse[assigned[assigned >= 0]] = np.flatnonzero(assigned >= 0)
    return inverse


def empty_matches() -> pd.DataFrame:
    """A table of matches without rows."""
    kinds = {"model": "str", "layer": "int16", "neuron": "int32", "other": "str", "rank": "int16", "partner_layer": "int16", "partner_neuron": "int32"}
    kinds |= {"r": "float64", "stderr": "float64", "mutual": "bool", "assigned": "bool"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def depth(matches: pd.DataFrame) -> pd.DataFrame:
    """Where best partners sit: model, other, layer, partner_layer, neurons (how many neurons of that layer have their best partner in that one)."""
    best = matches[matches["rank"] == 0]
    return best.groupby(["model", "other", "layer", "partner_layer"], observed=True).size().rename("neurons").reset_index()
