"""The operations that everything is built of; see `_op` for what an op is."""

from .histogram import PAPER_EDGES, histogram_
from .moments import merge_moments_, moments_
from .product import product_
from .quantize import PRECISIONS, Packed, absmax_about, quantize, unpack
from .summarize_correlation import Columns, Correlations, correlations, summarize_correlation

OPS = (moments_, quantize, product_, summarize_correlation, histogram_)

__all__ = [
    "OPS",
    "PAPER_EDGES",
    "PRECISIONS",
    "Columns",
    "Correlations",
    "Packed",
    "absmax_about",
    "correlations",
    "histogram_",
    "merge_moments_",
    "moments_",
    "product_",
    "quantize",
    "summarize_correlation",
    "unpack",
]
