"""Universal neurons by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from . import canvas, quantities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 11.0  # inches of a page


def layer_distribution(neurons: pd.DataFrame) -> Figure:
    """Universal neurons by layer, a panel a model: bars of their share of the layer in per cent, their number on the bar.

    Args:
        neurons: the neuron table: index (model, layer, neuron); columns universal, mean_corr.

    Returns:
        The figure; for the table of a single model a page that says why there is nothing to draw.
    """
    if not quantities.has_partners(neurons):
        return canvas.note("One model alone has no partners:\nno universal neurons to count by layer.")
    counts = quantities.layer_counts(neurons)
    models = list(dict.fromkeys(counts.index.get_level_values("model")))
    deepest = int(counts.groupby(level="model").size().max())
    width = max(2.5, 0.8 + 0.19 * deepest)
    rows = math.ceil(len(models) / max(1, min(len(models), int(WIDEST // width))))
    columns = math.ceil(len(models) / rows)  # as even as the number of models allows
    figure = canvas.page(max(columns * width, 4.8), rows * (2.2 if rows <= 4 else 1.7) + 0.6)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for unused in axes[len(models) :]:
        unused.remove()
    top = max(float(counts["share"].max()), 0.1)
    for axis, model, colour in zip(axes, models, canvas.colours(len(models)), strict=False):
        _panel(axis, str(model), counts.loc[model], colour, crowded=deepest > 32)
        axis.set_ylim(0, 1.15 * top)
    figure.supxlabel("layer", fontsize=canvas.NORMAL)
    figure.supylabel("universal neurons (% of the layer)", fontsize=canvas.NORMAL)
    figure.suptitle(f"Universal neurons by layer ({canvas.RULE})", fontsize=canvas.LARGE)
    return figure


def _panel(axis: Axes, model: str, rows: pd.DataFrame, colour: object, *, crowded: bool) -> None:
    """Bars of one model; `rows` by layer: neurons, universal, share."""
    universal, neurons = int(rows["universal"].sum()), int(rows["neurons"].sum())
    bars = axis.bar(range(len(rows)), rows["share"], color=colour, width=0.8)
    axis.bar_label(bars, labels=[f"{count:,}" for count in rows["universal"]], fontsize=5.5 if crowded else canvas.SMALL, padding=1.5, color=canvas.INK)
    axis.set_xticks(range(len(rows)), [str(layer) for layer in rows.index])
    axis.set_xlim(-0.7, len(rows) - 0.3)
    axis.set_title(f"{canvas.short(model)}\n{universal:,} of {neurons:,} neurons ({100.0 * universal / neurons:.2f} %)", fontsize=canvas.SMALL)
    axis.grid(axis="y", color=canvas.PALE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=5.5 if crowded else canvas.SMALL)
    axis.spines[["top", "right"]].set_visible(False)
