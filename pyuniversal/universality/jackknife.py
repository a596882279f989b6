"""Standard errors and intervals that take documents, not tokens, as independent."""

from __future__ import annotations

import scipy.stats
import torch
from torch import Tensor


def jackknife_se(whole: Tensor, without: Tensor, sizes: Tensor, *, by_tokens: bool = False) -> Tensor:
    """Standard error of an estimate from those that leave out one batch of documents each.

    By default the delete-one jackknife of Tukey: (B - 1) / B times the sum over batches of (without_j - their mean)^2, batches being draws of one kind whose
    sizes are chance too. With `by_tokens` the delete-m_j jackknife of Busing, Meijer & van der Leeden 1999 (Statistics and Computing 9:3), for batches of
    given sizes m_j whose estimates have variances in proportion to 1 / m_j: h_j = n / m_j, pseudo-values h_j whole - (h_j - 1) without_j, their mean weighted
    by 1 / h_j, and the mean over batches of (pseudo-value - mean)^2 / (h_j - 1). For equal sizes they are one.

    Documents are no such batches: the mean of a long one errs nearly as much as that of a short one, since what it is about is one draw. On real text
    (documents of 128 to 12,416 tokens in 13 subsets, 300 pairs of GPT-2 neurons, samples from a known population) the stated error over the true one, and what
    the intervals of nominal 95 % covered, were

        documents       60            160           600           160, a batch each
        default         1.11  86 %    1.05  90 %    1.01  93 %    1.06  90 %
        by_tokens       0.76  79 %    0.90  88 %    0.99  92 %    0.57  71 %

    A batch without tokens says nothing and counts for nothing.

    Args:
        whole: float64 [...], the estimate over all batches.
        without: float64 [batches, ...].
        sizes: float64 [batches], tokens of each batch.
        by_tokens: trust a batch in proportion to its tokens.

    Returns:
        float64 [...]; NaN where a replicate is NaN, and everywhere with fewer than two batches that hold tokens.
    """
    some = sizes > 0
    if int(some.sum()) < 2:
        return torch.full_like(whole, torch.nan)
    without, h = without[some], (sizes.sum() / sizes[some]).view(-1, *[1] * whole.ndim)  # [batches, ...], [batches, 1, ...]
    if not by_tokens:
        # The spread is never taken about `whole`, yet where that is NaN there is nothing to state the error of.
        return (without.var(0, correction=0) * (len(without) - 1)).sqrt().where(~torch.isnan(whole), torch.nan)
    pseudo = h * whole - (h - 1) * without
    centre = (pseudo / h).sum(0)
    return ((pseudo - centre) ** 2 / (h - 1)).mean(0).sqrt()


def interval(r: Tensor, se: Tensor, batches: int, *, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Confidence interval of correlations, or of means of them, from the jackknife over `batches` batches: low and high, float64 [...].

    Student's t with batches - 1 degrees of freedom, on Fisher's scale z = atanh(r), whose standard error is se / (1 - r^2). NaN where `se` is.

    It covers less than it says where few documents decide. Measured at nominal 95 %, 32 batches: on synthetic documents with weak topics 93 to 95 % (60 to 600
    documents), with strong ones 89, 91, 93 % (60, 150, 600), for neurons that fire rarely there 86, 89, 92 %; on the real text of `jackknife_se` 86, 90, 93 %
    (60, 160, 600). Taking tokens as independent covers 65 to 69, 27 to 29, 27 to 30 and 10 to 11 %.
    """
    # r +- t se covers as much (within 0.4 points in all of these, to either side), but ends above 1 for up to 13 % of the pairs with r in 0.8-0.9.
    t = scipy.stats.t.ppf((1 + level) / 2, batches - 1) if batches > 1 else torch.nan
    z = torch.atanh(r)
    margin = t * se / (1 - r**2)
    exact = (r.abs() == 1) & (se == 0)
    return torch.where(exact, r, torch.tanh(z - margin)), torch.where(exact, r, torch.tanh(z + margin))
