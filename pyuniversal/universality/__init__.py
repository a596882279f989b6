"""Which neurons of a model have partners in the others, and how much better these are than chance."""

from .baseline import BASELINES, baseline, rotation
from .correlate import Correlation, correlate
from .partners import depth, empty_matches, matches, summaries
from .rules import CORRELATION_COLUMNS, RULES, THRESHOLD, combine, is_universal

__all__ = [
    "BASELINES",
    "CORRELATION_COLUMNS",
    "RULES",
    "THRESHOLD",
    "Correlation",
    "baseline",
    "combine",
    "correlate",
    "depth",
    "empty_matches",
    "is_universal",
    "matches",
    "rotation",
    "summaries",
]
