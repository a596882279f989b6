"""Streaming state: what is kept of the tokens seen so far. Each class has update, merge, save and load."""

from .histogram import DyadicHistogram, Histogram
from .moments import Moments, first_bad
from .product import Product, pack
from .token_sums import TokenSums
from .totals import SETS, Key, SourceInfo, Totals

__all__ = ["SETS", "DyadicHistogram", "Histogram", "Key", "Moments", "Product", "SourceInfo", "TokenSums", "Totals", "first_bad", "pack"]
