"""The operations that everything is built of; see `_op` for what an op is."""

import torch

from .dyadic_histogram import LOWEST_EXPONENT, dyadic_histogram_, power_of_two, widen_
from .histogram import PAPER_EDGES, histogram_
from .logit_stats import LogitStats, logit_stats
from .moments import empty, merge_moments_, moments_
from .pair_sums import pair_sums_
from .product import product_
from .quantize import PRECISIONS, Packed, absmax_about, quantize, unpack
from .summarize_correlation import Columns, Correlations, correlations, merge_correlations, summarize_correlation
from .token_sums import token_sums_


def backends(device: str, precision: str) -> dict[str, str]:
    """Which implementation each op of a run takes for float32 activations on a device: op -> backend; asks the op with the smallest arguments there are."""
    x, vector = torch.zeros(2, 1, device=device), torch.zeros(1, device=device)
    side = Columns(*(torch.ones(1, dtype=torch.float64, device=device),) * 4)
    keys = torch.zeros(2, dtype=torch.int32, device=device)
    packed = quantize(x, vector, vector, keys, keys[:1], precision=precision, backend="reference")
    total = torch.zeros(1, 1, dtype=torch.float64 if precision == "float64" else torch.float32, device=device)
    return {
        "moments_": moments_.choose(empty(1, 1, device), x, [2]),
        "quantize": quantize.choose(x, vector, vector, keys, keys[:1], precision=precision),
        "product_": product_.choose(total, packed, packed),
        "summarize_correlation": summarize_correlation.choose(total, 2, side, side),
        "histogram_": histogram_.choose(torch.zeros(1, 257, dtype=torch.int64, device=device), x, PAPER_EDGES.to(device)),
    }


OPS = (moments_, quantize, product_, summarize_correlation, histogram_, dyadic_histogram_, token_sums_, pair_sums_, logit_stats)

__all__ = [
    "LOWEST_EXPONENT",
    "OPS",
    "PAPER_EDGES",
    "PRECISIONS",
    "Columns",
    "Correlations",
    "LogitStats",
    "Packed",
    "absmax_about",
    "backends",
    "correlations",
    "dyadic_histogram_",
    "histogram_",
    "logit_stats",
    "merge_correlations",
    "merge_moments_",
    "moments_",
    "pair_sums_",
    "power_of_two",
    "product_",
    "quantize",
    "summarize_correlation",
    "token_sums_",
    "unpack",
    "widen_",
]
