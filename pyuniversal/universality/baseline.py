"""The rotation baseline: how well do a neuron's best partners do if the other model's neurons are a random basis of their layer?

No second pass: cov(x, R y) = cov(x, y) R^T and var(R y) = diag(R S_YY R^T), S_YY the covariance of one layer, its diagonal from the exact moments.

    haar      R uniform over the orthogonal matrices: QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri 2007, Notices of the AMS
              54:592)
    gaussian  Gurnee et al. 2024: independent Gaussian entries, each row divided by its norm; rows are random directions, not orthogonal
"""

from __future__ import annotations

import platform

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..totals import Totals
from .partners import sides

BASELINES = ("haar", "gaussian")


def rotation(kind: str, width: int, *, seed: int, source: int, layer: int, draw: int, device: torch.device | str = "cpu") -> Tensor:
    """The draw-th random matrix of one layer of one source: float64 [width, width].

    Raises:
        InputError: an unknown kind.
    """
    if kind not in BASELINES:
        raise InputError(f"unknown baseline {kind!r}; choose one of {', '.join(BASELINES)}")
    gaussian = torch.from_numpy(np.random.default_rng([seed, 2, source, layer, draw]).standard_normal((width, width))).to(device)
    if kind == "gaussian":
        return gaussian / gaussian.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def baseline(totals: Totals, *, kind: str = "haar", draws: int = 5, seed: int = 0) -> dict[tuple[int, int], Tensor]:
    """For every ordered pair (i, j): the largest r of each neuron of source i with all neurons of source j, each layer of j rotated.

    Returns:
        (i, j) -> float64 [draws, columns of i], NaN for a constant neuron.

    Raises:
        InputError: an unknown kind, or fewer than one draw.
    """
    if draws < 1:
        raise InputError(f"the baseline needs at least one draw, not {draws}")
    pairs = [(i, j) for i in range(len(totals.sources)) for j in range(len(totals.sources)) if i != j and totals.cross]
    best = {(i, j): torch.full((draws, totals.sources[i].columns), -torch.inf, dtype=torch.float64) for i, j in pairs}
    for j, source in enumerate(totals.sources):
        others = [i for i, k in pairs if k == j]
        for number, layer in enumerate(source.layers):
            if not others:
                continue
            within = _covariance(totals, j, number)
            for draw in range(draws):
                r = rotation(kind, source.width, seed=seed, source=j, layer=layer, draw=draw, device=within.device)
                spread = torch.sqrt(((r @ within) * r).sum(1).clamp(min=0))  # [width]
                for i in others:
                    score = _rotated_best(totals, i, j, number, r, spread)
                    best[i, j][draw] = torch.fmax(best[i, j][draw], score.cpu())
    return {pair: score.where(torch.isfinite(score), torch.nan) for pair, score in best.items()}


def _covariance(totals: Totals, source: int, number: int) -> Tensor:
    """Sum over r of (y - mean)(y - mean)^T of one layer, [width, width]; the diagonal is the exact M2, since that of the product carries the rounding."""
    product = totals.within[source, number]
    columns = slice(number * totals.sources[source].width, (number + 1) * totals.sources[source].width)
    shift = (totals.site[source].field("mean", "r") - totals.centre[source].double())[columns]
    exact = totals.site[source].field("M2", "r")[columns]
    covariance = product.total.double() - product.tokens * shift[:, None] * shift
    covariance.diagonal().copy_(exact)
    return covariance


def _rotated_best(totals: Totals, i: int, j: int, number: int, r: Tensor, spread: Tensor) -> Tensor:
    """Largest correlation of each neuron of i with the rotated neurons of one layer of j: float64 [columns of i], NaN for a constant neuron."""
    total, flip = (totals.cross[i, j].total, False) if i < j else (totals.cross[j, i].total, True)
    x, y = sides(totals, min(i, j), max(i, j))
    if flip:
        total, x, y = total.T, y, x
    width = totals.sources[j].width
    columns = slice(number * width, (number + 1) * width)
    tokens = totals.cross[min(i, j), max(i, j)].tokens
    scaled = (r / spread[:, None]).to(total.dtype)
    parts = []
    for start in range(0, total.shape[0], 4096):
        rows = slice(start, start + 4096)
        block = total[rows, columns] - (tokens * x.shift[rows, None] * y.shift[columns]).to(total.dtype)
        parts.append(_times_transpose(block, scaled).amax(1).double() / torch.sqrt(x.M2[rows]))
    score = torch.cat(parts)
    return score.where(x.M2 > 0, torch.nan)


def _times_transpose(a: Tensor, b: Tensor) -> Tensor:
    """a b^T. float32 on x86 by oneDNN: MKL, which `@` takes, uses half of the width of other makers' CPUs (370 against 210 Gflop/s on a Zen 5)."""
    if a.dtype == torch.float32 and a.is_cpu and platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available():
        return F.linear(a.contiguous().to_mkldnn(), b.contiguous().to_mkldnn()).to_dense()
    return a @ b.T
