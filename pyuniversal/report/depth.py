"""In which layer of another model the best partners lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import canvas, quantities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

NUMBERED = 12  # up to so many layers the cells hold their numbers


def depth(depth_table: pd.DataFrame, neurons: pd.DataFrame | None = None, matches: pd.DataFrame | None = None) -> Figure:
    """Heat maps of best partners: the neuron's layer against its best partner's, in per cent of the row, summed over ordered pairs of models.

    Args:
        depth_table: columns model, other, layer, partner_layer, neurons (count of best partners).
        neurons: the neuron table; with `matches` it adds a panel of universal neurons alone.
        matches: the matches table; only its rank 0 is read.

    Returns:
        The figure, a panel for each combination of layers (models of one depth give one); a page that says why there is nothing to draw where the table is
        empty, as that of a single model is.
    """
    from matplotlib.colors import PowerNorm

    if not len(depth_table):
        return canvas.note("One model alone has no partners:\nno layers of best partners to draw.")
    tables = quantities.partner_layers(depth_table)
    panels = [(_label("all neurons", table, tables), table) for table in tables]
    if neurons is not None and matches is not None:
        universal = quantities.universal_partners(neurons, matches)
        panels += [(_label("universal neurons", table, tables), quantities.same_pairs(universal, table)) for table in tables]
    columns = min(4, len(panels) if len(tables) == 1 else len(tables))
    rows = math.ceil(len(panels) / columns)
    deepest = max(max(table.shape) for table in tables)
    cell = min(0.55, 4.2 / deepest)
    # Inches, by hand: matplotlib's layouts do not keep square cells and their labels inside the page.
    slot_width, slot_height = max(2.2, cell * max(len(table.columns) for table in tables)) + 0.9, cell * max(map(len, tables)) + 0.95
    width, height = columns * slot_width + 0.8, rows * slot_height + 0.35
    figure = canvas.page(width, height, layout="none")
    largest = max(float(np.nanmax(quantities.row_shares(table).to_numpy())) for _, table in panels if table.to_numpy().any())
    norm = PowerNorm(0.5, 0.0, largest)
    for number, (label, table) in enumerate(panels):
        row, column = divmod(number, columns)
        left, bottom = 0.8 + column * slot_width, height - 0.35 - (row + 1) * slot_height + 0.45
        axis = figure.add_axes((left / width, bottom / height, cell * len(table.columns) / width, cell * len(table) / height))
        mesh = _panel(axis, table, label, norm)
    long = min(3.0, height - 1.4)
    bar = figure.colorbar(mesh, cax=figure.add_axes(((width - 0.75) / width, (height - long) / 2 / height, 0.14 / width, long / height)))
    bar.set_label("best partners (% of the row)", fontsize=canvas.NORMAL)
    bar.ax.tick_params(labelsize=canvas.SMALL)
    figure.text(0.5, 1 - 0.1 / height, "Layer of the best partner in another model", ha="center", va="top", fontsize=canvas.LARGE)
    return figure


def _label(neurons: str, table: pd.DataFrame, tables: list[pd.DataFrame]) -> str:
    return neurons if len(tables) == 1 else f"{neurons}, from {len(table.index)} to {len(table.columns)} layers"


def _panel(axis: Axes, table: pd.DataFrame, label: str, norm: Normalize) -> Any:
    """One heat map; numbers in the cells where there is room, none where no neuron is; a row without neurons stays grey."""
    shares = quantities.row_shares(table).to_numpy()  # [layers, partner layers], NaN in rows without neurons
    fine = len(table.columns) > NUMBERED
    axis.set_facecolor("#DDDDDD")
    mesh = axis.pcolormesh(np.ma.masked_invalid(shares), cmap="viridis", norm=norm, edgecolors="face" if fine else "white", linewidth=0.3)
    for (row, column), share in np.ndenumerate(shares):
        if not fine and share > 0:
            colour = "white" if norm(share) < 0.6 else "black"
            axis.text(column + 0.5, row + 0.5, f"{share:.0f}" if share >= 0.5 else "<1", ha="center", va="center", fontsize=canvas.SMALL, color=colour)
    rows = [f"{layer} ({count:,})" if count < 100_000 else f"{layer} ({count // 1000:,}k)" for layer, count in zip(table.index, table.sum(axis=1), strict=True)]
    for set_ticks, names in ((axis.set_xticks, [str(layer) for layer in table.columns]), (axis.set_yticks, rows)):
        step = math.ceil(len(names) / 24)
        set_ticks(np.arange(0, len(names), step) + 0.5, names[::step])
    axis.tick_params(labelsize=canvas.SMALL, length=0)
    axis.set_xlabel("layer of the best partner", fontsize=canvas.NORMAL)
    axis.set_ylabel("layer of the neuron (partners)", fontsize=canvas.NORMAL)
    pairs, partners = len(table.attrs["pairs"]), int(table.to_numpy().sum())
    axis.set_title(
        f"{label}\n{partners:,} best partners in {pairs} ordered pair{'' if pairs == 1 else 's'}\nchance: {100.0 / len(table.columns):.1f} % in a cell",
        fontsize=canvas.SMALL,
    )
    return mesh
