"""Correlations over tokens of two kinds: first all neurons with all, then the best candidates alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..totals.batch_moments import join_moments
from .confirm import correlation


class Pooled(NamedTuple):
    """Candidates in the order of their r over all tokens, best first; what has no r comes last.

    r: float64 [neurons, candidates], raw: rounding noise may carry it beyond 1; NaN for no candidate, and where a side never varies.
    partner: int64 [neurons, candidates]; -1 where r is NaN.
    stderr: float64 [neurons, candidates], standard error of r from the rounding of the dense product.
    """

    r: Tensor
    partner: Tensor
    stderr: Tensor


def r_pooled(
    total: Tensor,
    stderr: Tensor,
    sums: Tensor,
    partner: Tensor,
    *,
    centre: tuple[Tensor, Tensor],
    dense: tuple[Tensor, Tensor],
    rest: tuple[Tensor, Tensor],
) -> Pooled:
    """r of each candidate over the tokens of a dense product and of pair sums together: (T + S - n shift_x shift_y) / sqrt(M2_x M2_y), all over both.

    Args:
        total: [neurons, candidates], the entries of the dense product: sums of (x - centre_x)(y - centre_y) over its tokens.
        stderr: [neurons, candidates], standard error of the dense r from rounding (`Correlations.top_stderr`); it shrinks as exact tokens join.
        sums: float64 [neurons, candidates], the same sums over the further tokens, about the same centres.
        partner: int64 [neurons, candidates], columns of y, or -1.
        centre: of x and of y, [neurons of either].
        dense: of x and of y, count, mean and M2 over the tokens of the product, float64 [3, neurons of either].
        rest: the same over the further tokens.
    """
    there = partner.clamp(min=0)
    of_x, of_y = (join_moments(a, b) for a, b in zip(dense, rest, strict=True))
    x, y = of_x[:, :, None], of_y[:, there]  # [3, neurons, 1], [3, neurons, candidates]
    shift_x, shift_y = x[1] - centre[0].double()[:, None], y[1] - centre[1].double()[there]
    r = correlation(total.double() + sums, x, y, shift_x, shift_y).where(partner >= 0, torch.nan)
    # The error of the covariance stays what it was, and is divided by a larger spread.
    stderr = stderr * (dense[0][2][:, None] / x[2]).sqrt() * (dense[1][2][there] / y[2]).sqrt()
    order = r.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)
    r, partner = r.gather(1, order), partner.gather(1, order)
    return Pooled(r, partner.where(~torch.isnan(r), -1), stderr.gather(1, order).where(~torch.isnan(r), torch.nan))
