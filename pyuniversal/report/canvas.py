"""What all pictures share: sizes of type, colours, a page without pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..universality import THRESHOLD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PALE, REST = "#222222", "#E5E5E5", "#BDBDBD"
SMALL, NORMAL, LARGE = 7, 8, 10  # points
RULE = f"mean r − mean baseline > {THRESHOLD}"

# Okabe and Ito's colours, told apart by colour-blind readers (yellow and black left out, a brown added).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F")


def page(width: float, height: float, *, layout: str = "constrained") -> Figure:
    """An empty figure of width x height inches that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def note(text: str) -> Figure:
    """A page that says why there is no picture."""
    figure = page(5.5, 2.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=LARGE, color=INK)
    return figure


def colours(models: int) -> list[Any]:
    """A colour for each model; beyond seven, steps of viridis from dark to bright, to be drawn in the order of the legend."""
    from matplotlib import colormaps

    if models <= len(_COLOURS):
        return list(_COLOURS[:models])
    return [colormaps["viridis"](value) for value in np.linspace(0.0, 0.95, models)]


def short(label: str, longest: int = 36) -> str:
    """A model's label that fits over a panel: a long one keeps its two ends, where models of one family differ."""
    if len(label) <= longest:
        return label
    return f"{label[: longest // 2 - 1]}…{label[-longest // 2 :]}"
