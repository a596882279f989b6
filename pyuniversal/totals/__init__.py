"""Streaming state: what is kept of the tokens seen so far. Each class has update, merge, save and load."""

from .histogram import Histogram
from .moments import Moments, first_bad
from .product import Product, pack
from .totals import SETS, SourceInfo, Totals

__all__ = ["SETS", "Histogram", "Moments", "Product", "SourceInfo", "Totals", "first_bad", "pack"]
