"""The study's claims on a run's tables, each with an effect, an interval and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError
from . import quantities
from .clusters import distances, dominance, draw_clusters

# Gurnee et al. 2024: column of the neuron table -> (the side of the claim, the claim).
CLAIMS = {
    "sparsity": ("lower", "Universal neurons fire less often than the other neurons of their layer."),
    "skew": ("higher", "Activations of universal neurons have a higher skew than those of the other neurons of their layer."),
    "kurt": ("higher", "Activations of universal neurons have a higher kurtosis than those of the other neurons of their layer."),
    "input_bias": ("lower", "Universal neurons have a more negative input bias than the other neurons of their layer."),
    "l2_penalty": ("higher", "Universal neurons have a larger L2 penalty than the other neurons of their layer."),
}
DEPTH = "The best partners of universal neurons in other models lie at a similar depth."
LEVEL = 0.95
NEGLIGIBLE = 0.147  # Romano et al. 2006, of |Cliff's delta|; taken over for depth, which has no convention of its own
FEWEST = 5  # universal neurons below which nothing is judged, and below which a layer alone is not counted
FEW_MODELS = 2  # so many models or fewer do not show how models differ


@dataclass(frozen=True)
class _Bootstrap:
    cells: pd.MultiIndex  # (model, layer)
    weights: np.ndarray  # [resamples, layers]

    def effect(self, statistic: Callable[[np.ndarray], np.ndarray], by_layer: np.ndarray, universal: np.ndarray, side: str) -> dict[str, Any]:
        """The numbers of one claim.

        Args:
            statistic: weights [resamples, layers] -> effects [resamples].
            by_layer: the effect in each layer alone [layers].
            universal: universal neurons of each layer [layers].
            side: "lower" or "higher".
        """
        models = self.cells.get_level_values("model")
        labels = list(dict.fromkeys(models))
        alone = np.stack([models == label for label in labels]).astype(float)  # [models, layers]
        drawn = statistic(self.weights)
        drawn = drawn[np.isfinite(drawn)]  # a resample may hold no universal neuron
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (math.nan, math.nan)
        counted = (universal >= FEWEST) & np.isfinite(by_layer)
        return {
            "value": _number(statistic(np.ones((1, len(models))))[0]),
            "low": _number(low),
            "high": _number(high),
            "level": LEVEL,
            "direction": side,
            "universal": int(universal.sum()),
            "models": len(labels),
            "layers": len(models),
            "layers_counted": int(counted.sum()),
            "layers_agree": int((counted & ((by_layer < 0) if side == "lower" else (by_layer > 0))).sum()),
            "by_model": {str(label): _number(value) for label, value in zip(labels, statistic(alone), strict=True)},
            "resamples": len(drawn),
        }


def claims(
    neurons: pd.DataFrame,
    matches: pd.DataFrame,
    *,
    n_layers: Mapping[str, int] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge the five claims of Gurnee et al. 2024 about universal neurons, and that best partners sit at similar depth.

    The effect of the five is Cliff's delta (Cliff 1993; 2 AUC - 1) of percentiles within the layer, universal neurons of all layers against all others. That
    of depth is 1 - mean |d - d'| / E |d - d'|, see `clusters.distances`. Intervals are percentile intervals of a bootstrap over models and layers, see
    `clusters`. A claim "holds" where its whole interval lies on the claimed side of 0; it "does not hold" where the interval lies on the other side, or holds
    0 and nothing beyond a negligible effect (0.147, Romano et al. 2006); else it is "undecided", as it is where there is too little to judge. There is no
    p-value: that of a few models resampled cannot be small for reasons that have nothing to do with the claim, and the interval says more.

    Args:
        neurons: the neuron table: index (model, layer, neuron); columns universal, mean_corr and the keys of `CLAIMS`.
        matches: columns model, layer, neuron, other, rank, partner_layer; rank 0 is the best partner.
        n_layers: layers of each model; without it, a model is as deep as its last layer in the table.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        What JSON can hold, None for what is not a number. `claims` lists, for the keys of `CLAIMS` and for "depth": name, claim (a sentence), statistic, value,
        low, high, level, direction, universal and others (neurons compared; None of others for depth), models, layers (of all models together),
        layers_counted (with at least 5 universal neurons), layers_agree (of these, how many point in the claimed direction), by_model (model -> value),
        resamples (that could be computed: a resample may hold no universal neuron), seed, verdict, reason. Depth has all_neurons: value, low and high over all
        neurons, universal or not. Beside the claims stand level, negligible, resamples and seed.

    Raises:
        InputError: a model of the table is not in `n_layers`, or there is nothing to resample.
    """
    if resamples < 1 or not len(neurons):
        raise InputError(f"claims need neurons and at least one resample, not {len(neurons)} and {resamples}")
    layer, cells = pd.factorize(neurons.index.droplevel("neuron"))  # [neurons], (model, layer) of each layer
    cells = pd.MultiIndex.from_tuples(cells, names=quantities.LAYER)
    bootstrap = _Bootstrap(cells, draw_clusters(cells, resamples=resamples, seed=seed))
    universal = neurons["universal"].to_numpy(dtype=bool)
    partners = quantities.has_partners(neurons)
    ranks = quantities.percentiles(neurons, list(CLAIMS))

    def row(name: str, sentence: str, statistic: str, effect: dict[str, Any], own: np.ndarray) -> dict[str, Any]:
        return {"name": name, "claim": sentence, "statistic": statistic, **_judged(effect, own, cells, partners=partners), "seed": seed}

    found = []
    for name, (side, sentence) in CLAIMS.items():
        pairs = dominance(ranks[name].to_numpy(), universal, layer, len(cells))
        effect = bootstrap.effect(pairs.delta, pairs.by_layer(), pairs.universal, side) | {"others": int(pairs.others.sum())}
        found.append(row(name, sentence, "Cliff's delta", effect, pairs.universal))
    own = np.bincount(layer[universal], minlength=len(cells))  # [layers]
    effect = _depth(neurons, matches, bootstrap, own, n_layers or {})
    found.append(row("depth", DEPTH, "1 - distance / chance", effect, own))
    return {"claims": found, "level": LEVEL, "negligible": NEGLIGIBLE, "resamples": resamples, "seed": seed}


def _depth(neurons: pd.DataFrame, matches: pd.DataFrame, bootstrap: _Bootstrap, universal: np.ndarray, n_layers: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of depth, over universal neurons, of which there are `universal` [layers], and over all."""
    deepest = neurons.index.to_frame(index=False).groupby("model", sort=False)["layer"].max() + 1
    if missing := [model for model in deepest.index if n_layers and model not in n_layers]:
        raise InputError(f"n_layers has no {missing[0]!r}, a model of the table; it has {', '.join(n_layers)}")
    n_layers = n_layers or deepest.to_dict()
    best = matches[matches["rank"] == 0]
    everyone = best.groupby(["model", "other", "layer", "partner_layer"], observed=True).size().rename("neurons").reset_index()
    effects = []
    for table in (quantities.universal_partners(neurons, best), everyone):
        sums = distances(table, bootstrap.cells, n_layers)
        effects.append(bootstrap.effect(sums.likeness, sums.by_layer(), universal, "higher"))
    return effects[0] | {"others": None, "all_neurons": {key: effects[1][key] for key in ("value", "low", "high")}}


def _judged(effect: dict[str, Any], universal: np.ndarray, cells: pd.MultiIndex, *, partners: bool) -> dict[str, Any]:
    """The effect with its verdict and the reason; without an interval where there is too little to resample."""
    if reason := _too_little(effect, universal, partners=partners):
        return effect | {"low": None, "high": None, "verdict": "undecided", "reason": reason}
    verdict, reason = judge(effect["low"], effect["high"], effect["direction"])
    models = cells.get_level_values("model")[universal > 0].nunique()
    if models <= FEW_MODELS:
        reason += f"; universal neurons of {models} model{'' if models == 1 else 's'} do not show how models differ"
    return effect | {"verdict": verdict, "reason": reason}


def _too_little(effect: dict[str, Any], universal: np.ndarray, *, partners: bool) -> str:
    """Why nothing can be judged, in words; empty if it can."""
    count = effect["universal"]
    if not partners:
        return "one model alone has no partners, hence no universal neurons"
    if effect["others"] == 0:
        return "the table holds no other neurons to compare universal ones with"
    if count < FEWEST:
        return f"{count or 'no'} universal neuron{'' if count == 1 else 's'}: at least {FEWEST} are needed"
    if (universal > 0).sum() == 1:
        return "all universal neurons lie in one layer of one model: there is nothing to resample"
    if effect["value"] is None:
        return "all best partners lie in one layer, or none is known: there is no depth to compare"
    if effect["low"] is None:
        return "no resample holds anything to compare"
    return ""


def judge(low: float, high: float, direction: str) -> tuple[str, str]:
    """Verdict and reason of an interval.

    Args:
        low: its lower end.
        high: its upper end.
        direction: the claimed side of 0, "lower" or "higher".

    Returns:
        "holds", "does not hold" or "undecided", and the reason in words.
    """
    side = {"lower": -1, "higher": 1}[direction]
    near, far = sorted((side * low, side * high))
    negligible = max(abs(low), abs(high)) < NEGLIGIBLE
    if near > 0:
        return "holds", f"the whole interval lies {'above' if side > 0 else 'below'} 0" + (", though the effect is negligible" if negligible else "")
    if far < 0:
        return "does not hold", f"the whole interval lies {'below' if side > 0 else 'above'} 0, against the claim"
    if negligible:
        return "does not hold", f"the interval holds 0 and nothing beyond ±{NEGLIGIBLE}, a negligible effect"
    return "undecided", f"the interval holds 0 and reaches beyond ±{NEGLIGIBLE}"


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
