"""The neuron table: what its siblings computed, joined; the paper's 22 columns first, under its names and in its order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .errors import InputError
from .files import atomic, unsafe
from .neurons import activation_columns, legacy_activation_columns
from .totals import Totals
from .universality import CORRELATION_COLUMNS, RULES, combine

# Gurnee et al. 2024, the columns of dataframes/neuron_dfs/*.csv after layer and neuron.
PAPER_COLUMNS = (
    *CORRELATION_COLUMNS,
    *("w_in_norm", "input_bias", "w_out_norm", "in_out_sim", "l2_penalty"),
    *("mean", "var", "skew", "kurt"),
    *("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt"),
    "sparsity",
)
OUR_COLUMNS = ("excess_corr", *RULES, "corr_stderr", "baseline_spread", "mutual", "constant")


def neuron_table(
    totals: Totals,
    matches: pd.DataFrame,
    weights: Mapping[str, pd.DataFrame],
    baselines: Mapping[tuple[int, int], Tensor],
    *,
    legacy: bool = False,
) -> pd.DataFrame:
    """One row a neuron of every model: index (model, layer, neuron), columns `PAPER_COLUMNS`, then `OUR_COLUMNS`.

    Args:
        totals: the sums of a run.
        matches: `universality.matches` of them.
        weights: model's label -> `neurons.weight_columns` of its layers in the run.
        baselines: `universality.baseline` of them.
        legacy: moments and sparsity from the histogram, as the study has them.
    """
    with torch.inference_mode():
        table = combine(totals, matches, baselines)
        parts = []
        for i, source in enumerate(totals.sources):
            activations = legacy_activation_columns(totals.histogram[i]) if legacy else activation_columns(totals.pre[i])
            parts.append(pd.concat([weights[source.name].reset_index(drop=True), activations], axis=1))
    for name, column in pd.concat(parts, ignore_index=True).items():
        table[name] = column.to_numpy()
    return table[[*PAPER_COLUMNS, *OUR_COLUMNS]]


def write_tables(neurons: pd.DataFrame, folder: str | os.PathLike[str]) -> list[Path]:
    """Write one CSV a model, `MODEL.csv`: layer, neuron, the paper's columns, ours; loads wherever the paper's files do.

    Raises:
        InputError: a model is called as no file can be; nothing is written.
        FileError: the folder cannot be written.
    """
    for model in neurons.index.unique("model"):
        if problem := unsafe(model):
            raise InputError(f"no table can be written for the model {model!r}, whose name {problem}; give it another label")
    paths = []
    for model, table in neurons.groupby(level="model", sort=False):
        path = Path(folder) / f"{model}.csv"
        with atomic(path) as temporary:
            table.droplevel("model").to_csv(temporary)
        paths.append(path)
    return paths
