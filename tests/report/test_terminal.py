"""What the terminal shows where a run has little to show."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pyuniversal.report.terminal import render_chance

DECILE = {"firing_low": 0.0, "firing_high": 0.1, "p50": 0.04, "p99": 0.11}


BEYOND = "layers; 12.3 % of the neurons have a mean best r beyond the 99 % point of their own layer and decile"


@pytest.mark.parametrize(("exceed", "told"), [(12.34, BEYOND), (None, "medians over models and layers")])
def test_chance_is_shown_without_a_single_99_percent_point(exceed, told):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_chance({"draws": 3, "tokens": 8192, "exceed": exceed, "deciles": {"1": DECILE}}))
    text = " ".join(console.export_text().split())
    assert "3 re-pairings of documents, 8,192 tokens" in text
    assert text.endswith(told)
