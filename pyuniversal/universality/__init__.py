"""Which neurons of a model have partners in the others, and how much better these are than chance."""

from .baseline import BASELINES, baseline, rotation
from .confirm import CONFIRMED_COLUMNS, Replicates, confirmed, replicates
from .correlate import Correlation, correlate
from .jackknife import interval, jackknife_se
from .nulls import NULL_COLUMNS, empty_nulls, firing_deciles, null_p99, nulls
from .partners import Best, best_partners, depth, empty_matches, label, matches, summaries, whole_side
from .pooled import Pooled, r_pooled
from .refine import refined
from .rules import CORRELATION_COLUMNS, RULES, THRESHOLD, combine, is_universal

__all__ = [
    "BASELINES",
    "CONFIRMED_COLUMNS",
    "CORRELATION_COLUMNS",
    "NULL_COLUMNS",
    "RULES",
    "THRESHOLD",
    "Best",
    "Correlation",
    "Pooled",
    "Replicates",
    "baseline",
    "best_partners",
    "combine",
    "confirmed",
    "correlate",
    "depth",
    "empty_matches",
    "empty_nulls",
    "firing_deciles",
    "interval",
    "is_universal",
    "jackknife_se",
    "label",
    "matches",
    "null_p99",
    "nulls",
    "r_pooled",
    "refined",
    "replicates",
    "rotation",
    "summaries",
    "whole_side",
]
