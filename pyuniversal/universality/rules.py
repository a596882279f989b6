"""From the correlations of pairs to one row a neuron, and the rules by which a neuron is called universal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from ..totals import Totals
from .partners import label

THRESHOLD = 0.5

# name -> (what is compared with the threshold, whose rule it is)
RULES = {
    "universal": ("mean_corr", "mean_baseline"),  # Gurnee et al. 2024: excess_corr
    "universal_strict": ("min_corr", "max_baseline"),  # an older run of theirs (high_excess_correlation.csv)
    "universal_loose": ("max_corr", "mean_baseline"),  # used in a generalisation of the study
}

CORRELATION_COLUMNS = ("max_corr", "mean_corr", "min_corr", "max_baseline", "min_baseline", "mean_baseline")


def is_universal(neurons: pd.DataFrame, rule: str = "universal", *, threshold: float = THRESHOLD) -> pd.Series:
    """Whether each neuron passes a rule of `RULES`: the first column less the second, above the threshold; False where either is NaN."""
    score, chance = RULES[rule]
    return neurons[score] - neurons[chance] > threshold


def combine(totals: Totals, matches: pd.DataFrame, baselines: Mapping[tuple[int, int], Tensor]) -> pd.DataFrame:
    """One row a neuron, index (model, layer, neuron): over the other models, the largest, mean and smallest of its best r and of its baseline.

    A pair's baseline is the mean over draws; `baseline_spread` is the standard deviation over draws (ddof 1, NaN for one draw), averaged over pairs.
    `corr_stderr` is the standard error that the rounding of the operands gives to mean_corr. `mutual` counts the models where the neuron and its best partner
    choose each other. r is clamped to [-1, 1]. NaN in all of them for a constant neuron and for a model without others.
    """
    best = matches[matches["rank"] == 0]
    tables = []
    for i, source in enumerate(totals.sources):
        own = best[best["model"] == source.name]
        layer, neuron = label(source, np.arange(source.columns))
        index = pd.MultiIndex.from_arrays([np.full(source.columns, source.name, dtype=object), layer, neuron], names=["model", "layer", "neuron"])
        pairs = [j for (k, j) in baselines if k == i]
        table = pd.DataFrame(index=index, columns=[*CORRELATION_COLUMNS, "excess_corr", "corr_stderr", "baseline_spread"], dtype=float)
        table["mutual"] = 0
        if pairs:
            names = [totals.sources[j].name for j in pairs]
            keys = ["layer", "neuron"]
            r = own.pivot(index=keys, columns="other", values="r").reindex(columns=names).clip(-1, 1)
            stderr = own.pivot(index=keys, columns="other", values="stderr").reindex(columns=names)
            rows = pd.MultiIndex.from_arrays([layer, neuron], names=keys)
            r, stderr = r.reindex(rows).to_numpy(), stderr.reindex(rows).to_numpy()  # [neurons, pairs]
            # Clamped like r: on a handful of tokens the rounding noise of int8 carries a rotated r beyond 1.
            chance = np.stack([baselines[i, j].clamp(-1, 1).mean(0).numpy() for j in pairs], axis=1)  # [neurons, pairs]
            table["max_corr"], table["mean_corr"], table["min_corr"] = r.max(1), r.mean(1), r.min(1)
            table["max_baseline"], table["min_baseline"], table["mean_baseline"] = chance.max(1), chance.min(1), chance.mean(1)
            table["excess_corr"] = table["mean_corr"] - table["mean_baseline"]
            table["corr_stderr"] = np.sqrt((stderr**2).sum(1)) / len(pairs)
            several = all(baselines[i, j].shape[0] > 1 for j in pairs)
            table["baseline_spread"] = np.stack([baselines[i, j].std(0).numpy() for j in pairs]).mean(0) if several else np.nan
            mutual = own[own["mutual"]].groupby(keys).size().reindex(rows, fill_value=0)
            table["mutual"] = mutual.to_numpy()
        table["constant"] = ~(totals.site[i].field("M2", "r") > 0).cpu().numpy()
        tables.append(table)
    combined = pd.concat(tables)
    for rule in RULES:
        combined[rule] = is_universal(combined, rule)
    return combined
