from __future__ import annotations

import itertools
import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from scipy.stats import percentileofscore

from pyuniversal.errors import FileError, InputError
from pyuniversal.report import canvas, claims, depth, draw, figures, layer_distribution, properties, save_figures
from pyuniversal.universality import empty_matches, empty_nulls

SMALL = [222, 244, 101, 110, 71, 72, 56, 112, 101, 142, 125, 177]
PYTHIA = [64, 14, 19, 5, 27, 34, 43, 39, 67, 50, 50, 53]
EMPTY = pd.DataFrame({"model": [], "other": [], "layer": [], "partner_layer": [], "neurons": []})
WHOLE = ["model", "layer", "neuron", "other", "rank", "partner_layer"]


def everything(make, layers, **options):
    """All that `draw` takes, without a null."""
    neurons, matches, table = tables(make, layers, **options)
    return neurons, matches.assign(r=0.5), table, claims(neurons, matches), empty_nulls()


def tables(make, layers, **options):
    """A neuron table, matches where neuron n of layer l has its partner in layer (l + n) mod the other's layers, and their depth table."""
    neurons = make(layers, **options)
    rows = [(*key, other, 0, (key[1] + key[2]) % layers[other]) for key in neurons.index for other in layers if other != key[0]]
    matches = pd.DataFrame(rows, columns=WHOLE)
    return neurons, matches, matches.groupby(["model", "other", "layer", "partner_layer"]).size().rename("neurons").reset_index()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_layer_distribution_draws_the_published_counts(paper):
    figure = layer_distribution(paper)
    assert len(figure.axes) == 2
    for axis, model, counts in zip(figure.axes, ("stanford-gpt2-small-a", "pythia-160m"), (SMALL, PYTHIA), strict=True):
        assert [bar.get_height() for bar in axis.patches] == pytest.approx([100 * count / 3072 for count in counts])
        assert [text.get_text() for text in axis.texts] == [str(count) for count in counts]
        assert [tick.get_text() for tick in axis.get_xticklabels()] == [str(layer) for layer in range(12)]
        assert axis.get_title().startswith(model)
    assert "1,533 of 36,864 neurons (4.16 %)" in figure.axes[0].get_title()
    assert "465 of 36,864 neurons (1.26 %)" in figure.axes[1].get_title()
    assert "mean baseline > 0.5" in figure.get_suptitle()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim(), "bars of models are compared: one scale"
    assert figure.axes[0].get_ylim() == pytest.approx((0, 1.15 * 100 * 244 / 3072)), "room for the number on the tallest bar"


def test_layer_distribution_names_the_layers_that_were_run(make):
    neurons = make({"a": 12, "b": 12}, universal={"a": 30})
    figure = layer_distribution(neurons[neurons.index.get_level_values("layer").isin([0, 7, 11])])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "7", "11"]
    assert [bar.get_height() for bar in figure.axes[0].patches] == [100, 0, 0]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0, 0, 0]


def boxes(axis):
    """Of every box from left to right: (lower whisker, 25th, 75th, upper whisker, colour)."""
    found = []
    for patch in axis.patches:
        x, y = patch.get_path().vertices[:, 0], patch.get_path().vertices[:, 1]
        centre = (x.min() + x.max()) / 2
        ends = [line.get_ydata() for line in axis.lines if np.allclose(line.get_xdata(), centre)]
        found.append((centre, min(map(min, ends)), y.min(), y.max(), max(map(max, ends)), to_hex(patch.get_facecolor())))
    return [box[1:] for box in sorted(found)]


def test_properties_draws_scipys_percentiles(make):
    neurons = make({"a": 2, "b": 2}, d_mlp=60, universal={"a": 40, "b": 70})
    axis = properties(neurons).axes[0]
    drawn = iter(boxes(axis))
    for column in ("sparsity", "mean", "skew", "kurt", "input_bias", "in_out_sim", "l2_penalty", "vocab_kurt"):
        ranks = {key: percentileofscore(neurons.loc[key[:2], column], value, kind="rank") for key, value in neurons[column].items()}
        groups = [[rank for key, rank in ranks.items() if neurons.loc[key, "universal"] and key[0] == model] for model in ("a", "b")]
        groups.append([rank for key, rank in ranks.items() if not neurons.loc[key, "universal"]])
        assert list(map(len, groups)) == [40, 70, 130]
        for group, colour in zip(groups, [*canvas.colours(2), canvas.REST], strict=True):
            lower, first, third, upper, drawn_colour = next(drawn)
            assert [first, third] == pytest.approx(np.percentile(group, [25, 75]))
            # a whisker ends at the last neuron inside the 5th to 95th percentile
            low, high = np.percentile(group, [5, 95])
            assert lower == pytest.approx(min(rank for rank in group if rank >= low))
            assert upper == pytest.approx(max(rank for rank in group if rank <= high))
            assert drawn_colour == colour.lower()
    assert next(drawn, None) is None
    assert not axis.collections, "no single dots for groups of 20 and more"
    assert any(np.allclose(line.get_ydata(), 50) for line in axis.lines)


def test_properties_says_how_many_and_draws_few_neurons_one_by_one(make):
    neurons = make({"a": 1, "b": 1, "c": 1}, universal={"a": 19, "b": 3})
    figure = properties(neurons)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a (n = 19)", "b (n = 3)", "c (n = 0: nothing to draw)", "all other neurons (n = 68)"]
    assert "whiskers: 5th and 95th" in figure.legends[0].get_title().get_text()
    axis = figure.axes[0]
    assert len(axis.patches) == 8 * 2, "a box for a and for the rest, none for three neurons"
    dots = [collection for collection in axis.collections if isinstance(collection, PathCollection)]
    assert [len(collection.get_offsets()) for collection in dots] == [19, 3] * 8
    column = neurons.loc["b", "sparsity"]
    wanted = [percentileofscore(column, column[0, neuron], kind="rank") for neuron in range(3)]
    assert dots[1].get_offsets()[:, 1].tolist() == pytest.approx(wanted)
    assert axis.get_xticklabels()[0].get_text() == "activation frequency"


def test_a_property_that_is_nan_everywhere_leaves_its_place_empty(make):
    neurons = make({"a": 1, "b": 1}, universal={"a": 25, "b": 25})
    neurons["vocab_kurt"] = np.nan
    assert len(properties(neurons).axes[0].patches) == 7 * 3


def test_depth_draws_shares_of_rows(make):
    neurons, matches, table = tables(make, {"a": 2, "b": 2, "c": 2}, d_mlp=5, universal={"a": 3})
    everything, universal = depth(table, neurons, matches).axes[:2]
    # of 5 neurons 0, 2 and 4 keep their layer, in 6 ordered pairs; the universal ones are a's first three of layer 0
    assert everything.collections[0].get_array().tolist() == [[60.0, 40.0], [40.0, 60.0]]
    assert sorted(text.get_text() for text in everything.texts) == ["40", "40", "60", "60"]
    assert "60 best partners in 6 ordered pairs\nchance: 50.0 % in a cell" in everything.get_title()
    assert [tick.get_text() for tick in everything.get_yticklabels()] == ["0 (30)", "1 (30)"]
    assert [tick.get_text() for tick in universal.get_yticklabels()] == ["0 (6)", "1 (0)"]
    drawn = universal.collections[0].get_array()
    assert drawn[0].tolist() == pytest.approx([200 / 3, 100 / 3])
    assert drawn.mask[1].all(), "no universal neuron in layer 1: grey, not zero"
    assert "6 best partners" in universal.get_title()
    assert len(depth(table).axes) == 2, "one panel and the colour bar"


def test_depth_says_that_a_share_is_small_and_leaves_out_zeros():
    table = pd.DataFrame([("a", "b", 0, 0, 399), ("a", "b", 0, 1, 1), ("b", "a", 1, 1, 5), ("b", "a", 0, 0, 1)], columns=EMPTY.columns)
    assert sorted(text.get_text() for text in depth(table).axes[0].texts) == ["100", "100", "<1"]


def test_depth_gives_models_of_another_depth_their_own_panels(make):
    neurons, matches, table = tables(make, {"a": 2, "b": 2, "c": 3}, d_mlp=6, universal={"a": 3})
    panels = depth(table, neurons, matches).axes[:-1]
    assert [axis.collections[0].get_array().shape for axis in panels] == [(2, 2), (2, 3), (3, 2)] * 2
    assert "from 2 to 3 layers\n24 best partners in 2 ordered pairs\nchance: 33.3 %" in panels[1].get_title()


def test_one_model_alone_says_why_pictures_are_absent(single):
    assert texts(layer_distribution(single)) == ["One model alone has no partners:\nno universal neurons to count by layer."]
    assert texts(depth(EMPTY, single, EMPTY)) == ["One model alone has no partners:\nno layers of best partners to draw."]
    figure = properties(single)
    assert "The 90 neurons of alone by layer (one model alone has no universal neurons)" in figure.get_suptitle()
    assert [axis.get_title() for axis in figure.axes][:2] == ["activation frequency", "mean"]
    values = single["mean"].xs(2, level="layer")
    _, first, third, _, _ = boxes(figure.axes[1])[2]
    assert [first, third] == pytest.approx(np.percentile(values, [25, 75]))


def test_saving_one_model_alone_draws_its_properties_and_logs_the_rest(single, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert save_figures(single, empty_matches(), EMPTY, claims(single, empty_matches()), empty_nulls(), tmp_path) == [tmp_path / "neuron_properties.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["neuron_properties.png"]
    assert "one model alone has no partners" in caplog.text


def test_save_figures(make, tmp_path):
    run = everything(make, {"a": 2, "b": 2}, universal={"a": 9})
    paths = save_figures(*run, tmp_path / "figures")
    assert [path.name for path in paths] == [f"{name}.png" for name in figures.NAMES]
    assert sorted(tmp_path.glob("figures/*")) == sorted(paths), "nothing half-written stays"
    for path in paths:
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.info["Title"] == path.stem
            assert image.info["Software"] == "pyuniversal"


def test_the_same_tables_give_the_same_bytes(make, tmp_path):
    run = everything(make, {"a": 2, "b": 2}, universal={"a": 9})
    for first, second in zip(save_figures(*run, tmp_path / "1"), save_figures(*run, tmp_path / "2"), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_folder_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file: .*Choose another one"):
        save_figures(*everything(make, {"a": 1, "b": 1}), tmp_path / "file")


def test_draw_by_name(make):
    run = everything(make, {"a": 2, "b": 2}, universal={"a": 9})
    names = ["layer_distribution", "universal_neurons_properties", "depth"]
    assert [draw(name, *run).axes[0].get_title()[:7] for name in names] == ["a\n9 of ", "", "all neu"]
    assert texts(draw("null_by_firing", *run))[0].startswith("There is no null to draw")
    assert any("L2 penalty" in text or "l2_penalty" in text for text in texts(draw("claims", *run)))
    with pytest.raises(InputError, match="no figure 'heat'; choose one of layer_distribution, universal_neurons_properties, depth, claims, null_by_firing"):
        draw("heat", *run)


def visible(figure):
    """The box of every text of a drawn figure, in pixels."""
    renderer = figure.canvas.get_renderer()
    return {text: text.get_window_extent(renderer) for text in figure.findobj(Text) if text.get_text() and text.get_visible()}


@pytest.mark.parametrize(
    "layers",
    [
        {"stanford-crfm_alias-gpt2-small-x21-with-a-long-name": 12, "stanford-crfm_battlestar-gpt2-small-x49": 12},
        {f"seed-{number}": 4 for number in range(5)},
        {f"seed-{number}": 24 for number in range(12)},
        {"deep-0": 48, "deep-1": 48, "deep-2": 48},
        {"a": 2, "b": 3, "c": 7},
    ],
    ids=["two of 12 layers", "five of 4", "twelve of 24", "three of 48", "three depths"],
)
def test_nothing_is_cut_off_and_no_titles_collide(make, layers):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    run = everything(make, layers, d_mlp=2, universal=dict.fromkeys(layers, 3))
    for name in figures.NAMES:
        figure = draw(name, *run)
        FigureCanvasAgg(figure).draw()
        drawn = visible(figure)
        for text, box in drawn.items():
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside, f"{name}: {text.get_text()!r} is cut off"
        titles = [drawn[axis.title] for axis in figure.axes if axis.title in drawn]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2)), f"{name}: titles collide"


def test_colours_are_distinct_for_any_number_of_models():
    for models in (1, 7, 8, 12):
        assert len({to_hex(colour) for colour in [*canvas.colours(models), canvas.REST]}) == models + 1


def test_a_long_label_keeps_both_ends():
    assert canvas.short("EleutherAI_pythia-160m-seed1") == "EleutherAI_pythia-160m-seed1"
    assert canvas.short("a" * 30 + "b" * 30) == "a" * 17 + "…" + "b" * 18


def test_drawing_touches_no_global_state():
    code = """
import sys
import pyuniversal.report
assert "matplotlib" not in sys.modules, "importing the report imports matplotlib"
from pyuniversal.report import canvas
canvas.note("x").savefig(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
"""
    result = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
