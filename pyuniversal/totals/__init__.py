"""Streaming state: what is kept of the tokens seen so far. Each class has update, merge, save and load."""

from .batch_moments import BatchMoments
from .confirmation import Confirmation
from .histogram import DyadicHistogram, Histogram
from .moments import Moments, first_bad
from .pair_sums import PairSums
from .product import Product, pack
from .token_sums import TokenSums
from .totals import SETS, Key, SourceInfo, Totals

__all__ = [
    "SETS",
    "BatchMoments",
    "Confirmation",
    "DyadicHistogram",
    "Histogram",
    "Key",
    "Moments",
    "PairSums",
    "Product",
    "SourceInfo",
    "TokenSums",
    "Totals",
    "first_bad",
    "pack",
]
