"""The study's claims at a glance: a forest plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import canvas
from .properties import PROPERTIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = PROPERTIES | {"depth": "depth of best partners"}
CLAIMED = {"sparsity": "lower", "skew": "higher", "kurt": "higher", "input_bias": "more negative", "l2_penalty": "larger", "depth": "similar"}
# Blue and vermilion of Okabe and Ito, told apart by colour-blind readers; the words stand beside them.
COLOURS = {"holds": "#0072B2", "does not hold": "#D55E00", "undecided": "#7F7F7F"}
# Inches, by hand: matplotlib's layouts leave no room for text beside an axis.
WIDTH, LEFT, PLOT, ROW, ABOVE, BELOW = 8.4, 1.9, 3.6, 0.34, 0.58, 0.87
EFFECT, INTERVAL, VERDICT = 0.45, 1.5, 1.75  # right ends of the two numbers, left end of the verdict, from the end of the plot


def forest(claims: dict[str, Any]) -> Figure:
    """Effect and interval of every claim, its verdict at the right.

    The large dot is the effect over all models together, hollow where the claim is undecided, the bar its interval; small dots are the models one by one. The
    grey band holds effects that count as negligible. Depth is another statistic and stands below a line; its diamond is the effect over all neurons.

    Args:
        claims: what `pyuniversal.report.claims` returned.
    """
    from matplotlib.ticker import MultipleLocator

    rows = claims["claims"]
    height = ABOVE + ROW * len(rows) + BELOW
    figure = canvas.page(WIDTH, height, layout="none")
    axis = figure.add_axes((LEFT / WIDTH, BELOW / height, PLOT / WIDTH, ROW * len(rows) / height))
    axis.axvspan(-claims["negligible"], claims["negligible"], color=canvas.PALE, linewidth=0, zorder=0)
    axis.axvline(0, color=canvas.INK, linewidth=0.8, zorder=0.5)
    for place, claim in enumerate(rows):
        _row(axis, claim, place)
        if place and claim["statistic"] != rows[place - 1]["statistic"]:
            axis.plot(
                (-LEFT / PLOT + 0.02, (WIDTH - LEFT) / PLOT - 0.02), (place - 0.5,) * 2, transform=_across(axis), color=canvas.REST, lw=0.6, clip_on=False
            )
    for x, name, side in ((EFFECT, "effect", "right"), (INTERVAL, f"{claims['level']:.0%} interval", "right"), (VERDICT, "verdict", "left")):
        axis.text(1 + x / PLOT, -0.72, name, transform=_across(axis), va="center", ha=side, fontsize=canvas.SMALL, color=canvas.INK)
    axis.set_yticks(range(len(rows)), [f"{NAMES[claim['name']]}: {CLAIMED[claim['name']]}" for claim in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    drawn = [value for claim in rows for value in (claim["value"], claim["low"], *claim["by_model"].values()) if value is not None]
    axis.set_xlim(min(-1.0, *drawn, 0.0) - 0.05, 1.05)  # the statistic of depth has no lower bound
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    axis.tick_params(labelsize=canvas.NORMAL)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("Cliff's delta of percentiles within the layer (depth: 1 − distance / distance by chance)", fontsize=canvas.NORMAL)
    figure.text(0.5, 1 - 0.1 / height, f"Claims about universal neurons ({canvas.RULE})", ha="center", va="top", fontsize=canvas.LARGE)
    figure.text(0.5, 0.1 / height, _legend(claims), ha="center", va="bottom", fontsize=canvas.SMALL, color=canvas.INK)
    return figure


def _across(axis: Axes) -> Any:
    """Coordinates: x in shares of the plot, y in rows."""
    return axis.get_yaxis_transform()


def _row(axis: Axes, claim: dict[str, Any], place: int) -> None:
    """One claim at the height `place`."""
    colour = COLOURS[claim["verdict"]]
    alone = [value for value in claim["by_model"].values() if value is not None]
    if len(alone) > 1:
        axis.scatter(alone, [place + 0.26] * len(alone), s=9, color=colour, alpha=0.55, linewidths=0, zorder=2)
    if (everyone := claim.get("all_neurons", {}).get("value")) is not None:
        axis.scatter([everyone], [place - 0.26], s=16, marker="D", color=canvas.REST, edgecolors=canvas.INK, linewidths=0.5, zorder=2)
    words = ("–", "–") if claim["value"] is None else (_signed(claim["value"]), "–")
    if claim["value"] is not None:
        axis.scatter([claim["value"]], [place], s=42, color="white" if claim["verdict"] == "undecided" else colour, edgecolors=colour, linewidths=1.4, zorder=4)
    if claim["low"] is not None:
        axis.hlines(place, claim["low"], claim["high"], colors=colour, linewidth=2.2, zorder=3)
        words = words[0], f"{_signed(claim['low'])} to {_signed(claim['high'])}"
    for x, text in zip((EFFECT, INTERVAL), words, strict=True):
        axis.text(1 + x / PLOT, place, text, transform=_across(axis), va="center", ha="right", fontsize=canvas.NORMAL, color=canvas.INK)
    axis.text(1 + VERDICT / PLOT, place, claim["verdict"], transform=_across(axis), va="center", fontsize=canvas.NORMAL, color=colour, fontweight="bold")


def _legend(claims: dict[str, Any]) -> str:
    """What the marks mean."""
    first = claims["claims"][0]
    models = first["models"]
    marks = [f"bar: {'models and layers' if models > 1 else 'layers'} drawn anew", f"grey: negligible (below {claims['negligible']})"]
    if models > 1:
        marks.append("small dots: each model")
    if any(claim.get("all_neurons", {}).get("value") is not None for claim in claims["claims"]):
        marks.append("diamond: partners of all neurons")
    return f"{first['universal']:,} universal and {first['others']:,} other neurons of {models} model{'' if models == 1 else 's'}\n{'; '.join(marks)}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no −0.00
