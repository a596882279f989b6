"""Best r against chance by firing decile: what is drawn is what the tables say."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text

from pyuniversal.report import canvas, null_by_firing
from pyuniversal.report.quantities import best_and_chance
from pyuniversal.universality import empty_nulls

LIFT = (0.01, 0.4, 0.03)  # by layer


def tables(layers: dict[str, int], *, width: int = 50, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Models in a ring; neuron n of every layer fires on (n + 1) / 100 of the tokens; chance of layer l and decile d is 0.5 / d + LIFT[l], its median half."""
    rng = np.random.default_rng(seed)
    names = list(layers)
    index = pd.MultiIndex.from_tuples([(m, layer, n) for m in names for layer in range(layers[m]) for n in range(width)], names=["model", "layer", "neuron"])
    neurons = pd.DataFrame({"sparsity": (index.get_level_values("neuron") + 1) / 100, "constant": False}, index=index)
    rows = [(*key, other, rank, rng.random() * 1.05) for key in index for other in names if other != key[0] for rank in (0, 1)]
    matches = pd.DataFrame(rows, columns=["model", "layer", "neuron", "other", "rank", "r"])
    matches[["model", "other"]] = matches[["model", "other"]].astype("category")
    points = [
        (m, names[(k + 1) % len(names)], layer, d, 0.5 / d + LIFT[layer]) for k, m in enumerate(names) for layer in range(layers[m]) for d in range(1, 11)
    ]
    nulls = pd.DataFrame(points, columns=["model", "other", "layer", "decile", "p99"])
    return neurons, nulls.assign(p50=nulls["p99"] / 2, tokens=65_432), matches


def test_best_r_and_chance_meet_in_the_model_of_the_null():
    neurons, nulls, matches = tables({"a": 2, "b": 1, "c": 1})
    neurons.loc[("a", 0, 3), "constant"] = True
    found = best_and_chance(neurons, nulls, matches)
    assert len(found) == len(neurons) - 1
    assert set(zip(found["model"], found["other"], strict=True)) == {("a", "b"), ("b", "c"), ("c", "a")}
    row = found[(found["model"] == "a") & (found["layer"] == 1) & (found["neuron"] == 21)].iloc[0]
    same = (matches["model"] == "a") & (matches["other"] == "b") & (matches["layer"] == 1) & (matches["neuron"] == 21) & (matches["rank"] == 0)
    assert row["r"] == min(1.0, matches.loc[same, "r"].item())
    assert row[["decile", "firing", "p99"]].tolist() == pytest.approx([5, 0.22, 0.5 / 5 + 0.4])
    assert row["p50"] == row["p99"] / 2


def test_boxes_steps_and_shares_are_those_of_the_tables():
    run = tables({"a": 3, "b": 3})
    found = best_and_chance(*run)
    figure = null_by_firing(*run)
    assert len(figure.axes) == 2
    for axis, model, colour in zip(figure.axes, "ab", canvas.colours(2), strict=True):
        own = found[found["model"] == model]
        assert len(axis.patches) == 10
        steps, dots = {}, {}
        for drawn in axis.collections:
            if isinstance(drawn, LineCollection):
                ((left, height), (right, _)) = drawn.get_segments()[0]
                steps.setdefault((left + right) / 2, []).append(height)
            elif isinstance(drawn, PathCollection):
                dots[drawn.get_offsets()[0, 0]] = drawn.get_offsets()[:, 1].tolist()
        for decile, patch in enumerate(axis.patches, 1):
            r = own.loc[own["decile"] == decile, "r"]
            vertices = patch.get_path().vertices
            assert [vertices[:, 1].min(), vertices[:, 1].max()] == pytest.approx(np.percentile(r, [25, 75]))
            assert to_hex(patch.get_facecolor()) == colour.lower()
            assert steps[decile] == pytest.approx([0.5 / decile + 0.03, 0.25 / decile + 0.015]), "the middle of three layers"
            assert dots[decile] == pytest.approx([0.5 / decile + lift for lift in LIFT])
            above = 100 * (r > own.loc[own["decile"] == decile, "p99"]).mean()
            assert axis.texts[decile - 1].get_text() == (f"{above:.0f}" if above > 9.95 else f"{above:.1f}")
        assert [tick.get_text() for tick in axis.get_xticklabels()][:4] == ["1\n3.0", "2\n8.0", "3\n13", "4\n18"]
        assert axis.get_title() == {"a": "a\nin b", "b": "b\nin a"}[model]
    assert "65,432 tokens" in figure.get_suptitle()


def test_no_null_says_why():
    neurons, _, matches = tables({"a": 1, "b": 1})
    assert "There is no null to draw" in null_by_firing(neurons, empty_nulls(), matches).findobj(Text)[0].get_text()


@pytest.mark.parametrize("models", [2, 5, 7])
def test_nothing_is_cut_off_and_no_labels_collide(models):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = null_by_firing(*tables({f"stanford-crfm_alias-gpt2-small-x{n}": 1 for n in range(models)}, width=20))
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside, text.get_text()
    legend = figure.legends[0].get_window_extent(renderer)
    for axis in figure.axes:
        assert not axis.get_tightbbox(renderer).overlaps(legend)
        for row in (axis.get_xticklabels(), axis.texts):
            boxes = [text.get_window_extent(renderer) for text in row]
            assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
