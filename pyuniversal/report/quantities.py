"""What the figures and the summary show, as tables: counts by layer, percentiles within layers, layers of best partners."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..universality import firing_deciles

LAYER = ["model", "layer"]


def has_partners(neurons: pd.DataFrame) -> bool:
    """Whether the table comes from a run of several models: a single model has nothing to correlate with, all its correlations are NaN."""
    return bool(neurons["mean_corr"].notna().any())


def layer_counts(neurons: pd.DataFrame) -> pd.DataFrame:
    """Universal neurons of every layer.

    Args:
        neurons: the neuron table: index (model, layer, neuron), boolean column `universal`.

    Returns:
        Index (model, layer) in the order of the table; columns `neurons` (all of the layer, constant ones included), `universal` (count), `share` (per cent of
        the layer's neurons).
    """
    counts = neurons["universal"].groupby(level=LAYER, sort=False).agg(["size", "sum"]).astype(int)
    counts.columns = pd.Index(["neurons", "universal"])
    counts["share"] = 100.0 * counts["universal"] / counts["neurons"]
    return counts


def percentiles(neurons: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Percentile of every neuron within its layer of its model, 0 to 100.

    The convention of scipy.stats.percentileofscore(layer, value, kind="rank", nan_policy="omit"), as in Gurnee et al. 2024: tied values share the mean of
    their ranks. NaN (a constant neuron's skew, say) stays NaN and counts for nobody.

    Returns:
        Float64, index of `neurons`, the columns asked for.
    """
    return 100.0 * neurons[columns].groupby(level=LAYER, sort=False).rank(method="average", pct=True)


def universal_partners(neurons: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """The depth table (best partners counted by layer) of universal neurons alone.

    Args:
        neurons: the neuron table: index (model, layer, neuron), boolean column `universal`.
        matches: columns model, layer, neuron, other, rank, partner_layer; rank 0 is the best partner.

    Returns:
        Columns model, other, layer, partner_layer, neurons (count).
    """
    best = matches.loc[matches["rank"] == 0, ["model", "other", "layer", "neuron", "partner_layer"]]
    keys = pd.MultiIndex.from_frame(best[["model", "layer", "neuron"]].astype({"model": object}))
    universal = neurons.index[neurons["universal"].to_numpy(dtype=bool)]
    best = best[keys.isin(universal)]
    return best.groupby(["model", "other", "layer", "partner_layer"], sort=False, observed=True).size().rename("neurons").reset_index()


def partner_layers(depth: pd.DataFrame) -> list[pd.DataFrame]:
    """Best partners by layer, summed over ordered pairs of models.

    Pairs are summed only where both sides have the same layers, so models of different depth give several tables.

    Args:
        depth: columns model, other, layer, partner_layer, neurons (count of best partners).

    Returns:
        A table for each combination of layers: rows the neuron's layer, columns its best partner's, int64 counts; `attrs["pairs"]` lists the ordered pairs
        (model, other) that are in it.
    """
    layers: dict[str, set[int]] = {}
    for model, layer in (("model", "layer"), ("other", "partner_layer")):
        for name, values in depth.groupby(model, sort=False, observed=True)[layer]:
            layers.setdefault(str(name), set()).update(int(value) for value in values)
    pairs: dict[tuple[tuple[int, ...], ...], list[tuple[str, str]]] = {}
    for pair in depth[["model", "other"]].drop_duplicates().astype(str).itertuples(index=False, name=None):
        pairs.setdefault(tuple(tuple(sorted(layers[name])) for name in pair), []).append(pair)
    tables = []
    for (rows, columns), members in pairs.items():
        frame = pd.DataFrame(0, index=pd.Index(rows, name="layer"), columns=pd.Index(columns, name="partner_layer"), dtype=np.int64)
        frame.attrs["pairs"] = members
        tables.append(same_pairs(depth, frame))
    return tables


def same_pairs(depth: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The counts of `depth` over the pairs and layers of `table`, one of those that `partner_layers` returns."""
    members = pd.MultiIndex.from_frame(depth[["model", "other"]].astype(str)).isin(table.attrs["pairs"])
    counts = depth[members].pivot_table(index="layer", columns="partner_layer", values="neurons", aggfunc="sum", fill_value=0)
    counts = counts.reindex(index=table.index, columns=table.columns, fill_value=0).astype(np.int64)
    counts.attrs["pairs"] = table.attrs["pairs"]
    return counts


def row_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Per cent of each row's sum, float64; NaN in a row of zeros."""
    total = table.sum(axis=1)
    return 100.0 * table.div(total.where(total > 0), axis=0)


def best_and_chance(neurons: pd.DataFrame, nulls: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Best r in the run beside best r by chance, both among the neurons of the one model that the null took as partner.

    Args:
        neurons: the neuron table: index (model, layer, neuron); columns sparsity, constant.
        nulls: the table of nulls, by model, other, layer and decile of the firing frequency.
        matches: the matches table; only its rank 0 is read.

    Returns:
        A row for each neuron that has both: model, other, layer, neuron, decile, firing (frequency), r (in [-1, 1]), p50 and p99 (of chance, of its layer and
        decile).
    """
    own = neurons[["sparsity", "constant"]].reset_index()
    firing = own["sparsity"].where(~own["constant"].astype(bool)).to_numpy(dtype=np.float64)
    own = own.assign(firing=firing, decile=firing_deciles(firing, own.groupby(LAYER, sort=False).ngroup().to_numpy()))
    best = matches.loc[matches["rank"] == 0, ["model", "other", "layer", "neuron", "r"]].astype({"model": object, "other": object})
    found = own.merge(nulls[["model", "other", "layer", "decile", "p50", "p99"]], on=["model", "layer", "decile"]).merge(
        best, on=["model", "other", "layer", "neuron"]
    )
    return found.assign(r=found["r"].clip(-1, 1))[["model", "other", "layer", "neuron", "decile", "firing", "r", "p50", "p99"]]
