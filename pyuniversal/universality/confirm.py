"""What the chosen partners are worth on other documents: their r there, and its standard error over documents.

Partners are chosen as the best of many, so their r in the run is too high by the luck of the choice; on documents that had no part in it, it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import InputError
from ..totals import Confirmation
from .jackknife import jackknife_se
from .partners import label

OVER_MODELS = ("max", "mean", "min")
CONFIRMED_COLUMNS = (*(f"{name}_corr_confirmed" for name in OVER_MODELS), *(f"{name}_corr_se" for name in OVER_MODELS), "excess_confirmed", "excess_se")


def correlation(total: Tensor, x: Tensor, y: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """r from sums about fixed centres: (total - n shift_x shift_y) / sqrt(M2_x M2_y), float64 [...]; NaN where a side never varies; not clamped.

    `total` is the sum over tokens of (x - centre_x)(y - centre_y), [...]; `x` and `y` are count, mean and M2 of the two neurons, [3, ...]; the shifts are
    mean - centre, [...].
    """
    r = (total - x[0] * (shift_x * shift_y)) / (x[2].sqrt() * y[2].sqrt())
    return r.where((x[2] > 0) & (y[2] > 0), torch.nan)


@dataclass(frozen=True)
class Replicates:
    """An estimate of each neuron over all batches of documents, float64 [neurons], and without each of them, float64 [batches, neurons]."""

    whole: Tensor
    without: Tensor

    def se(self, sizes: Tensor) -> Tensor:
        """Standard error over documents, float64 [neurons]; see `jackknife_se`."""
        return jackknife_se(self.whole, self.without, sizes)


def replicates(state: Confirmation, i: int, j: int, *, candidate: int = 0) -> Replicates:
    """r of the neurons of source i with one of their candidates in source j, clamped to [-1, 1]; NaN where there is none or where a side never varies."""
    pair = state.pairs[i, j]
    partner = pair.partner[:, candidate]
    there = partner.clamp(min=0)
    centre = (pair.centre[0], pair.centre[1][there])

    def r(total: Tensor, x: Tensor, y: Tensor) -> Tensor:
        y = y[:, there]
        return correlation(total, x, y, x[1] - centre[0], y[1] - centre[1]).clamp(-1, 1).where(partner >= 0, torch.nan)

    x, y = state.moments[i], state.moments[j]
    without = torch.stack([r(*parts) for parts in zip(pair.without_each(candidate), x.without_each(), y.without_each(), strict=True)])
    return Replicates(r(pair.whole()[:, candidate], x.whole(), y.whole()), without)


def confirmed(state: Confirmation, baselines: Mapping[tuple[int, int], Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The correlations of the chosen partners on the documents of `state`, by pair and by neuron.

    The same documents stand behind all pairs of a neuron, so the error of its mean over models is taken from the means without each batch, and is larger than
    independent pairs would have it; those of the largest and smallest likewise. `excess_confirmed` is mean_corr_confirmed less the mean of the baseline over
    pairs and draws; `excess_se` joins to the jackknife of the mean the spread of the baseline over draws (standard deviation of its mean over pairs, ddof 1,
    over the square root of the draws). The baseline is that of the run: it is not made again on these documents, nor without each batch.

    Args:
        state: a complete `confirm_pass`.
        baselines: as `baseline` gives them: (i, j) -> [draws, columns of i].

    Returns:
        A row for each neuron and partner: model, layer, neuron, other, r_confirmed, r_se (to join to the rows of `matches` of rank 0). And a row for each
        neuron, index (model, layer, neuron), with `CONFIRMED_COLUMNS`. NaN: all of a neuron that never varies on these documents or has a partner that does
        not; errors where that is so without one batch, or with fewer than two batches; excess_se with fewer than two draws.

    Raises:
        InputError: batches of documents are missing.
    """
    if missing := state.missing():
        raise InputError(f"{len(missing)} of {state.batches} batches of documents are not confirmed yet: repeat the command that started it")
    pairs, neurons = [], []
    for i in range(len(state.sources)):
        others = [j for k, j in state.pairs if k == i]
        found = [replicates(state, i, j) for j in others]
        sizes = state.moments[i].counts
        pairs += [_pair_table(state, i, j, one, sizes) for j, one in zip(others, found, strict=True)]
        neurons.append(_neuron_table(state, i, found, sizes, [baselines[i, j] for j in others]))
    return pd.concat(pairs, ignore_index=True) if pairs else _empty(), pd.concat(neurons)


def _pair_table(state: Confirmation, i: int, j: int, found: Replicates, sizes: Tensor) -> pd.DataFrame:
    names = [s.name for s in state.sources]
    layer, neuron = label(state.sources[i], np.arange(state.sources[i].columns))
    table = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(np.full(len(layer), i), names),
            "layer": layer.astype(np.int16),
            "neuron": neuron.astype(np.int32),
            "other": pd.Categorical.from_codes(np.full(len(layer), j), names),
            "r_confirmed": found.whole.cpu().numpy(),
            "r_se": found.se(sizes).cpu().numpy(),
        }
    )
    return table[(state.pairs[i, j].partner[:, 0] >= 0).cpu().numpy()]


def _neuron_table(state: Confirmation, i: int, found: list[Replicates], sizes: Tensor, baselines: list[Tensor]) -> pd.DataFrame:
    source = state.sources[i]
    layer, neuron = label(source, np.arange(source.columns))
    index = pd.MultiIndex.from_arrays([np.full(source.columns, source.name, dtype=object), layer, neuron], names=["model", "layer", "neuron"])
    table = pd.DataFrame(index=index, columns=[*CONFIRMED_COLUMNS], dtype=float)
    if not found:
        return table
    whole, without = torch.stack([f.whole for f in found]), torch.stack([f.without for f in found])  # [pairs, neurons], [pairs, batches, neurons]
    over: dict[str, Callable[[Tensor, int], Tensor]] = {"max": torch.amax, "mean": torch.mean, "min": torch.amin}
    for name in OVER_MODELS:
        joint = Replicates(over[name](whole, 0), over[name](without, 0))
        table[f"{name}_corr_confirmed"], table[f"{name}_corr_se"] = joint.whole.cpu().numpy(), joint.se(sizes).cpu().numpy()
    chance = torch.stack([b.clamp(-1, 1) for b in baselines]).mean(0).cpu().numpy()  # [draws, neurons]
    spread = chance.std(0, ddof=1) / np.sqrt(len(chance)) if len(chance) > 1 else np.nan
    table["excess_confirmed"] = table["mean_corr_confirmed"] - chance.mean(0)
    table["excess_se"] = np.hypot(table["mean_corr_se"], spread)
    return table


def _empty() -> pd.DataFrame:
    kinds = {"model": "str", "layer": "int16", "neuron": "int32", "other": "str", "r_confirmed": "float64", "r_se": "float64"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
