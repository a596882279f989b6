"""From tables to what people look at: figures, a summary, and tables for a terminal."""

from .depth import depth
from .figures import draw, save_figures
from .layers import layer_distribution
from .properties import properties
from .summary import summary
from .terminal import render, render_plan

__all__ = ["depth", "draw", "layer_distribution", "properties", "render", "render_plan", "save_figures", "summary"]
