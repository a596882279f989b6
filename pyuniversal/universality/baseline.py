"""The rotation baseline: how well do a neuron's best partners do if the other model's neurons are a random basis of their layer?

No second pass: cov(x, R y) = cov(x, y) R^T and var(R y) = diag(R S_YY R^T), S_YY the covariance of one layer, its diagonal from the exact moments.

    haar      R uniform over the orthogonal matrices: QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri 2007, Notices of the AMS
              54:592)
    gaussian  Gurnee et al. 2024: independent Gaussian entries, each row divided by its norm; rows are random directions, not orthogonal
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..ops import Columns
from ..totals import Totals
from .partners import sides

BASELINES = ("haar", "gaussian")
ROWS = 4096  # of a block that are rotated at once


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


def baseline(totals: Totals, *, kind: str = "haar", draws: int = 5, seed: int = 0, device: torch.device | str = "cpu") -> dict[tuple[int, int], Tensor]:
    """For every ordered pair (i, j): the largest r of each neuron of source i with all neurons of source j, each layer of j rotated.

    The rotations are made and multiplied on `device`, which the products visit in parts.

    Returns:
        (i, j) -> float64 [draws, columns of i] in host memory, NaN for a constant neuron.

    Raises:
        InputError: an unknown kind, or fewer than one draw.
    """
    if draws < 1:
        raise InputError(f"the baseline needs at least one draw, not {draws}")
    n = len(totals.sources)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    best = {(i, j): torch.full((draws, totals.sources[i].columns), -torch.inf, dtype=torch.float64) for i, j in pairs}
    for j, source in enumerate(totals.sources):
        for number, layer in enumerate(source.layers if n > 1 else ()):
            within = _covariance(totals, j, number).to(device)
            rotations = []  # [width, width] each, its rows divided by the spread of the rotated neurons
            for draw in range(draws):
                r = rotation(kind, source.width, seed=seed, source=j, layer=layer, draw=draw, device=within.device)
                spread = torch.sqrt(((r @ within) * r).sum(1).clamp(min=0))  # [width]
                rotations.append((r / spread[:, None]).to(totals.products[j, number, j].total.dtype))
            for i in (i for i in range(n) if i != j):
                for rows, scores in _rotated_best(totals, i, j, number, rotations):
                    best[i, j][:, rows] = torch.fmax(best[i, j][:, rows], scores.cpu())
    return {pair: score.where(torch.isfinite(score), torch.nan) for pair, score in best.items()}


def _covariance(totals: Totals, source: int, number: int) -> Tensor:
    """Sum over r of (y - mean)(y - mean)^T of one layer, [width, width]; the diagonal is the exact M2, since that of the product carries the rounding."""
    product = totals.products[source, number, source]
    y, _ = sides(totals, (source, number, source))
    covariance = product.total.double() - product.tokens * y.shift[:, None] * y.shift
    covariance.diagonal().copy_(y.M2)
    return covariance


def _rotated_best(totals: Totals, i: int, j: int, number: int, rotations: list[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Some neurons of i, and their largest correlations with the rotated neurons of one layer of j: float64 [draws, neurons], NaN for a constant neuron.

    Every number of the totals is read once for all draws: they may lie on a disk.
    """
    for rows, total, tokens, x, y in _against_layer(totals, i, j, number):
        for start in range(0, total.shape[0], ROWS):
            some = slice(start, start + ROWS)
            device = rotations[0].device
            x_shift, y_shift, x_m2 = (field.to(device) for field in (x.shift[some], y.shift, x.M2[some]))
            block = total[some].to(device) - (tokens * x_shift[:, None] * y_shift).to(total.dtype)  # [rows, width]
            scores = torch.stack([_times_transpose(block, r).amax(1).double() / torch.sqrt(x_m2) for r in rotations])
            yield slice(rows.start + start, rows.start + start + block.shape[0]), scores.where(x_m2 > 0, torch.nan)


def _against_layer(totals: Totals, i: int, j: int, number: int) -> Iterator[tuple[slice, Tensor, int, Columns, Columns]]:
    """The block of source i with one layer of source j, in parts: (neurons of i, [these neurons, neurons of the layer], tokens, their columns, the layer's)."""
    if i > j:  # the layer is the first side of one product
        product = totals.products[j, number, i]
        y, x = sides(totals, (j, number, i))
        yield slice(0, totals.sources[i].columns), product.total.T, product.tokens, x, y
        return
    columns = slice(number * totals.sources[j].width, (number + 1) * totals.sources[j].width)
    for layer in range(len(totals.sources[i].layers)):
        product = totals.products[i, layer, j]
        x, y = sides(totals, (i, layer, j))
        start = layer * totals.sources[i].width
        yield slice(start, start + totals.sources[i].width), product.total[:, columns], product.tokens, x, y.some(columns)


def _times_transpose(a: Tensor, b: Tensor) -> Tensor:
    """a b^T. float32 on x86 by oneDNN: MKL, which `@` takes, uses half of the width of other makers' CPUs (370 against 210 Gflop/s on a Zen 5)."""
    if a.dtype == torch.float32 and a.is_cpu and platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available():
        return F.linear(a.contiguous().to_mkldnn(), b.contiguous().to_mkldnn()).to_dense()
    return a @ b.T
