"""What universal neurons are like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import canvas, quantities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of the neuron table and how the paper's figure calls them. `sparsity` is P(pre-activation > 0): high means often active.
PROPERTIES = {
    "sparsity": "activation frequency",
    "mean": "mean",
    "skew": "skew",
    "kurt": "kurtosis",
    "input_bias": "input bias",
    "in_out_sim": "cos(w_in, w_out)",
    "l2_penalty": "L2 penalty",
    "vocab_kurt": "W_U kurtosis",
}
FEW = 20  # groups smaller than this are drawn neuron by neuron: a box alone would hide how few they are
FEWEST_FOR_A_BOX = 5
_JITTER = np.linspace(-0.25, 0.25, 5)  # fixed offsets, as shares of a box: the same table gives the same picture


def properties(neurons: pd.DataFrame) -> Figure:
    """Percentiles of eight properties of universal neurons within their layer, beside those of all other neurons.

    Box plots by model as in the paper's figure: the box from the 25th to the 75th percentile with the median, whiskers to the 5th and 95th. Fewer than 20
    neurons are drawn one by one as well, fewer than 5 without a box. The grey box holds the other neurons of all models.

    Args:
        neurons: the neuron table: index (model, layer, neuron); columns universal, mean_corr and the keys of `PROPERTIES`.

    Returns:
        The figure; for the table of a single model, which has no universal neurons, the properties themselves by layer.
    """
    if not quantities.has_partners(neurons):
        return _by_layer(neurons)
    ranks = quantities.percentiles(neurons, list(PROPERTIES))
    universal = neurons["universal"].to_numpy(dtype=bool)
    models = neurons.index.get_level_values("model")
    groups = {str(model): ranks[universal & (models == model)] for model in dict.fromkeys(models)} | {"all other neurons": ranks[~universal]}
    colours = [*canvas.colours(len(groups) - 1), canvas.REST]
    rows = 1 if len(groups) <= 4 else 2
    figure = canvas.page(10.0, 1.4 + 2.6 * rows)
    axes = figure.subplots(rows, 1, sharey=True, squeeze=False).ravel()
    for axis, columns in zip(axes, np.array_split(list(PROPERTIES), rows), strict=True):
        _row(axis, list(groups.values()), columns.tolist(), colours)
    figure.supylabel("percentile within the layer", fontsize=canvas.NORMAL)
    figure.suptitle(f"Universal neurons ({canvas.RULE}) within their layers", fontsize=canvas.LARGE)
    _legend(figure, {label: len(group) for label, group in groups.items()}, colours)
    return figure


def _row(axis: Axes, groups: list[pd.DataFrame], columns: list[str], colours: list[Any]) -> None:
    """One axis: for each property a box for each group, side by side."""
    width = 0.84 / len(groups)
    for place, column in enumerate(columns):
        for number, (group, colour) in enumerate(zip(groups, colours, strict=True)):
            x = place - 0.42 + (number + 0.5) * width
            values = group[column].dropna().to_numpy()
            if len(values) >= FEWEST_FOR_A_BOX:
                _box(axis, values, x, 0.8 * width, colour)
            elif len(values) > 0:
                axis.hlines(np.median(values), x - 0.4 * width, x + 0.4 * width, colors=canvas.INK, linewidth=1.2)
            if 0 < len(values) < FEW:
                axis.scatter(x + width * np.resize(_JITTER, len(values)), values, s=7, color=colour, edgecolors=canvas.INK, linewidths=0.4, zorder=3)
    axis.axhline(50, color=canvas.INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    for boundary in range(1, len(columns)):
        axis.axvline(boundary - 0.5, color=canvas.PALE, linewidth=0.8, zorder=0.4)
    axis.set_xticks(range(len(columns)), [PROPERTIES[column] for column in columns])
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(-2, 102)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.tick_params(labelsize=canvas.SMALL)
    axis.tick_params(axis="x", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _box(axis: Axes, values: np.ndarray, x: float, width: float, colour: Any) -> None:
    """Box 25 to 75, median, whiskers 5 to 95. A small group gets a pale box, so that the points on it are seen."""
    axis.boxplot(
        [values],
        positions=[x],
        widths=width,
        whis=(5, 95),
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": (colour, 0.85 if len(values) >= FEW else 0.25), "edgecolor": canvas.INK, "linewidth": 0.6},
        medianprops={"color": canvas.INK, "linewidth": 1.2},
        whiskerprops={"color": canvas.INK, "linewidth": 0.6},
    )


def _legend(figure: Figure, sizes: dict[str, int], colours: list[Any]) -> None:
    from matplotlib.patches import Patch

    labels = [f"{canvas.short(label)} (n = {size:,})" if size else f"{canvas.short(label)} (n = 0: nothing to draw)" for label, size in sizes.items()]
    figure.legend(
        [Patch(facecolor=(colour, 0.85), edgecolor=canvas.INK, linewidth=0.6) for colour in colours],
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), 160 // (max(map(len, labels)) + 6))),
        fontsize=canvas.SMALL,
        frameon=False,
        title=f"box: 25th to 75th percentile and median; whiskers: 5th and 95th; dots: every neuron where n < {FEW}; dashed: the middle of the layer",
        title_fontsize=canvas.SMALL,
    )


def _by_layer(neurons: pd.DataFrame) -> Figure:
    """The properties of all neurons by layer, for the table of one model: there is no group to set against the rest."""
    layers = list(dict.fromkeys(neurons.index.get_level_values("layer")))
    model = neurons.index.get_level_values("model")[0]
    figure = canvas.page(11.0, 5.2)
    step = math.ceil(len(layers) / 16)
    for axis, (column, label) in zip(figure.subplots(2, 4).ravel(), PROPERTIES.items(), strict=True):
        for place, layer in enumerate(layers):
            values = neurons[column].xs(layer, level="layer").dropna().to_numpy(dtype=np.float64)
            if len(values):
                _box(axis, values, place, 0.7, canvas.colours(1)[0])
        axis.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axis.set_title(label, fontsize=canvas.NORMAL)
        axis.tick_params(labelsize=canvas.SMALL)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("layer (box: 25th to 75th percentile and median; whiskers: 5th and 95th)", fontsize=canvas.NORMAL)
    figure.suptitle(f"The {len(neurons):,} neurons of {canvas.short(str(model))} by layer (one model alone has no universal neurons)", fontsize=canvas.LARGE)
    return figure
