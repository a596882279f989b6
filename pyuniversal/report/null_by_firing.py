"""Best correlations in the run against those that chance alone finds, from rare neurons to frequent ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import canvas, quantities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF = 0.36  # half of a box's width, in deciles
CHANCE = "#555555"
MOST_COLUMNS = 3


def null_by_firing(neurons: pd.DataFrame, nulls: pd.DataFrame, matches: pd.DataFrame) -> Figure:
    """Best r in the run and best r by chance, by decile of the firing frequency within the layer; a panel a model.

    The box holds a model's neurons of all layers: 25th to 75th percentile with the median, whiskers to the 5th and 95th. The steps are the document re-pairing
    null: its 99 % point (solid) and its median (dotted), both the median over layers; a dot is the 99 % point of one layer, which a few neurons that follow the
    position can carry far up. Above the boxes, how many per cent of the neurons exceed the 99 % point of their own layer and decile.

    Args:
        neurons: the neuron table: index (model, layer, neuron); columns sparsity, constant.
        nulls: the table of nulls.
        matches: the matches table; only its rank 0 is read.

    Returns:
        The figure; a page that says why there is nothing to draw where the table of nulls is empty, as that of a single model is.
    """
    found = quantities.best_and_chance(neurons, nulls, matches)
    if not len(found):
        return canvas.note("There is no null to draw: it was not made,\nor one model alone has no partners,\nor one document no other to be paired with.")
    models = list(dict.fromkeys(found["model"]))
    rows = math.ceil(len(models) / MOST_COLUMNS)
    columns = math.ceil(len(models) / rows)
    figure = canvas.page(max(3.4 * columns, 4.8), 2.6 * rows + 0.9)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for unused in axes[len(models) :]:
        unused.remove()
    low = min(0.0, float(np.quantile(found["r"], 0.02)))
    for number, (axis, model, colour) in enumerate(zip(axes, models, canvas.colours(len(models)), strict=False)):
        _panel(axis, found[found["model"] == model], colour)
        axis.set_ylim(low, 1.14)
        axis.set_yticks(np.linspace(0, 1, 6))
        if number + columns >= len(models):  # nothing stands below
            axis.set_xlabel("decile of the firing frequency in the layer\n(below: its median, % of the tokens)", fontsize=canvas.SMALL)
    tokens = int(nulls["tokens"].max())
    figure.supylabel("best r in the other model", fontsize=canvas.NORMAL)
    figure.suptitle(f"Best r in the run, and by chance on {tokens:,} tokens of re-paired documents", fontsize=canvas.LARGE)
    _legend(figure)
    return figure


def _panel(axis: Axes, found: pd.DataFrame, colour: Any) -> None:
    """One model: for each decile the box, the step of chance, and the share of neurons above it."""
    labels = []
    for decile, own in found.groupby("decile"):
        place = float(np.asarray(decile))
        axis.boxplot(
            [own["r"].to_numpy()],
            positions=[place],
            widths=2 * HALF,
            whis=(5, 95),
            showfliers=False,
            showcaps=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": (colour, 0.85), "edgecolor": canvas.INK, "linewidth": 0.6},
            medianprops={"color": canvas.INK, "linewidth": 1.2},
            whiskerprops={"color": canvas.INK, "linewidth": 0.6},
        )
        layers = own.groupby("layer")[["p50", "p99"]].first()
        chance = layers.median()
        for column, style in (("p99", "solid"), ("p50", (0, (1, 1)))):
            axis.hlines(chance[column], place - 0.5, place + 0.5, colors=CHANCE, linewidth=1.2, linestyles=[style], zorder=3)
        axis.fill_between([place - 0.5, place + 0.5], 0, chance["p99"], color=canvas.PALE, linewidth=0, zorder=0.5)
        axis.scatter(np.full(len(layers), place), layers["p99"], s=7, facecolors="white", edgecolors=CHANCE, linewidths=0.7, zorder=4)
        axis.text(place, 1.07, _percent(100.0 * float((own["r"] > own["p99"]).mean())), ha="center", va="center", fontsize=canvas.SMALL, color=canvas.INK)
        labels.append((place, f"{place:.0f}\n{_percent(100.0 * float(own['firing'].median()))}"))
    axis.set_xticks([place for place, _ in labels], [label for _, label in labels])
    axis.set_xlim(0.4, 10.6)
    axis.set_title(f"{canvas.short(str(found['model'].iloc[0]))}\nin {canvas.short(str(found['other'].iloc[0]))}", fontsize=canvas.SMALL)
    axis.tick_params(labelsize=5.5)
    axis.tick_params(axis="x", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _percent(value: float) -> str:
    """Per cent in few digits, without the sign, so that ten labels fit side by side."""
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.legend(
        [
            Patch(facecolor=(canvas.REST, 0.85), edgecolor=canvas.INK, linewidth=0.6),
            Line2D([], [], color=CHANCE, linewidth=1.2),
            Line2D([], [], color=CHANCE, linewidth=0, marker="o", markersize=2.6, markerfacecolor="white", markeredgewidth=0.7),
            Line2D([], [], color=CHANCE, linewidth=1.2, linestyle=(0, (1, 1))),
        ],
        [
            "in the run: 25th to 75th percentile and median; whiskers: 5th and 95th",
            "by chance: 99 % point, median of the layers",
            "by chance: 99 % point of each layer",
            "by chance: median",
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=canvas.SMALL,
        frameon=False,
        title="on top: % of the neurons that exceed the 99 % point of chance of their own layer and decile",
        title_fontsize=canvas.SMALL,
    )
