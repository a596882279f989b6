"""A run in a page: counts and means of every model as a plain dict."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ..universality import RULES, THRESHOLD, is_universal
from . import quantities

THRESHOLDS = (0.45, THRESHOLD, 0.55)  # the rule, and how much hangs on it


def summary(neurons: pd.DataFrame, manifest: dict[str, Any], claims: dict[str, Any] | None = None, nulls: pd.DataFrame | None = None) -> dict[str, Any]:
    """What a run found.

    Args:
        neurons: the neuron table of all models: index (model, layer, neuron).
        manifest: the run's manifest; tokens, options and timings are taken over as they stand.
        claims: taken over.
        nulls: best r by chance; `chance` has, for each decile of the firing frequency, the median over models and layers of its median and of its 99 % point,
            and how many per cent of the neurons exceed the 99 % point of their own layer and decile.

    Returns:
        A dict that JSON can hold (None for what is not a number). `models` has for each label: layers, neurons, constant (neurons that never vary), rules
        (the count of each published rule at the thresholds 0.45, 0.5 and 0.55), by_layer (layer -> neurons, universal), mean_corr, mean_baseline and
        mean_excess (means over its neurons), mutual (neurons that choose each other with their best partner in at least one model), mutual_everywhere (in
        every other model), confirmed (by the confirmed values: universal, and of how many neurons nothing
        can be said at two standard errors; None where nothing was confirmed).
    """
    models = list(dict.fromkeys(neurons.index.get_level_values("model")))
    taken: dict[str, Any] = {key: manifest[key] for key in ("version", "tokens", "options", "timings") if key in manifest}
    if claims is not None:
        taken["claims"] = claims
    if nulls is not None and len(nulls):
        taken["chance"] = _chance(neurons, nulls)
    return {"models": {str(model): _model(neurons.xs(model, level="model", drop_level=False), len(models) - 1) for model in models}, **taken}


def _model(rows: pd.DataFrame, others: int) -> dict[str, Any]:
    by_layer = quantities.layer_counts(rows).droplevel("model")
    mutual = rows["mutual"].fillna(0)
    return {
        "layers": len(by_layer),
        "neurons": len(rows),
        "constant": int(rows["constant"].sum()),
        "rules": {rule: {f"{threshold:g}": int(is_universal(rows, rule, threshold=threshold).sum()) for threshold in THRESHOLDS} for rule in RULES},
        "by_layer": {str(layer): {"neurons": int(counts["neurons"]), "universal": int(counts["universal"])} for layer, counts in by_layer.iterrows()},
        "mean_corr": _number(rows["mean_corr"].mean()),
        "mean_baseline": _number(rows["mean_baseline"].mean()),
        "mean_excess": _number(rows["excess_corr"].mean()),
        "confirmed": _confirmed(rows),
        "mutual": int((mutual > 0).sum()),
        "mutual_everywhere": int((mutual == others).sum()) if others else 0,
    }


def _chance(neurons: pd.DataFrame, nulls: pd.DataFrame) -> dict[str, Any]:
    """What best r comes by chance alone, by decile of the firing frequency."""
    by_decile = nulls.groupby("decile")[["firing_low", "firing_high", "p50", "p99"]].median()
    known = neurons["null_p99"].notna() & neurons["mean_corr"].notna()
    return {
        "tokens": int(nulls["tokens"].max()),
        "draws": int(nulls["draws"].max()),
        "deciles": {str(decile): {name: _number(value) for name, value in row.items()} for decile, row in by_decile.iterrows()},
        "exceed": _number(100.0 * (neurons["mean_corr"] > neurons["null_p99"])[known].mean()),
    }


def _confirmed(rows: pd.DataFrame) -> dict[str, int] | None:
    """How the rule comes out by the documents that were held out."""
    if "excess_confirmed" not in rows or not rows["excess_confirmed"].notna().any():
        return None
    beyond = rows["excess_confirmed"] - THRESHOLD
    return {"universal": int((beyond > 0).sum()), "undecided": int((beyond.abs() <= 2 * rows["excess_se"]).sum())}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
