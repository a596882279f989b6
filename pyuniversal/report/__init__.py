"""From tables to what people look at: figures, a summary, and tables for a terminal."""

from .claims import claims
from .depth import depth
from .differences import render_differences
from .figures import draw, save_figures
from .forest import COLOURS as VERDICTS
from .forest import NAMES as CLAIM_NAMES
from .forest import forest
from .layers import layer_distribution
from .null_by_firing import null_by_firing
from .properties import properties
from .summary import summary
from .terminal import render, render_claims, render_plan

__all__ = [
    "CLAIM_NAMES",
    "VERDICTS",
    "claims",
    "depth",
    "draw",
    "forest",
    "layer_distribution",
    "null_by_firing",
    "properties",
    "render",
    "render_claims",
    "render_differences",
    "render_plan",
    "save_figures",
    "summary",
]
