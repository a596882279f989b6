"""The rotation baseline: how well do a neuron's best partners do if the other model's neurons are a random basis of their layer?

No second pass: cov(x, R y) = cov(x, y) R^T and var(R y) = diag(R S_YY R^T), S_YY the covariance of one layer, its diagonal from the exact moments.

    haar      R uniform over the orthogonal matrices: QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri 2007, Notices of the AMS
              54:592)
    gaussian  Gurnee et al. 2024: independent Gaussian entries, each row divided by its norm; rows are random directions, not orthogonal
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..float32 import times_transpose
from ..ops import Columns
from ..streaming.afterwards import ROTATED_ROWS, rotated_together
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


def baseline(
    totals: Totals, *, kind: str = "haar", draws: int = 5, seed: int = 0, device: torch.device | str = "cpu", room_bytes: float = 0.0
) -> dict[tuple[int, int], Tensor]:
    """For every ordered pair (i, j): the largest r of each neuron of source i with all neurons of source j, each layer of j rotated.

    The rotations are made and multiplied on `device`, which the products visit in parts.

    Args:
        totals: sums of the run.
        kind: of `BASELINES`.
        draws: rotations of every layer.
        seed: of the rotations.
        device: where they live.
        room_bytes: what rotations and a part of a product may take there. Products on a disk are read once for all layers that are rotated together; one
            layer at a time where this is less than it needs.

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
    for j, source in enumerate(totals.sources if n > 1 else ()):
        layers = len(source.layers)
        step = rotated_together(layers, source.width, draws=draws, cell_bytes=totals.products[j, 0, j].total.element_size(), room_bytes=room_bytes)
        for start in range(0, layers, step):
            rotations = {k: _rotations(totals, j, k, kind=kind, draws=draws, seed=seed, device=device) for k in range(start, min(start + step, layers))}
            for i in (i for i in range(n) if i != j):
                for rows, scores in _rotated_best(totals, i, j, rotations):
                    best[i, j][:, rows] = torch.fmax(best[i, j][:, rows], scores.cpu())
    return {pair: score.where(torch.isfinite(score), torch.nan) for pair, score in best.items()}


def _rotations(totals: Totals, j: int, number: int, *, kind: str, draws: int, seed: int, device: torch.device | str) -> list[Tensor]:
    """Of one layer of source j: [width, width] for each draw, its rows divided by the spread of the rotated neurons."""
    source, dtype = totals.sources[j], totals.products[j, number, j].total.dtype
    within = _covariance(totals, j, number).to(device)
    made = []
    for draw in range(draws):
        r = rotation(kind, source.width, seed=seed, source=j, layer=source.layers[number], draw=draw, device=within.device)
        spread = torch.sqrt(((r @ within) * r).sum(1).clamp(min=0))  # [width]
        made.append((r / spread[:, None]).to(dtype))
    return made


def _covariance(totals: Totals, source: int, number: int) -> Tensor:
    """Sum over r of (y - mean)(y - mean)^T of one layer, [width, width]; the diagonal is the exact M2, since that of the product carries the rounding."""
    product = totals.products[source, number, source]
    y, _ = sides(totals, (source, number, source))
    covariance = product.total.double() - product.tokens * y.shift[:, None] * y.shift
    covariance.diagonal().copy_(y.M2)
    return covariance


def _rotated_best(totals: Totals, i: int, j: int, rotations: Mapping[int, list[Tensor]]) -> Iterator[tuple[slice, Tensor]]:
    """Some neurons of i, and their largest correlations with the rotated neurons of one layer of j: float64 [draws, neurons], NaN for a constant neuron."""
    for rows, number, total, tokens, x, y in _against_layers(totals, i, j, list(rotations)):
        drawn = rotations[number]
        x_shift, y_shift, x_m2 = (field.to(drawn[0].device) for field in (x.shift, y.shift, x.M2))
        block = total.to(drawn[0].device) - (tokens * x_shift[:, None] * y_shift).to(total.dtype)  # [rows, width]
        scores = torch.stack([times_transpose(block, r).amax(1).double() / torch.sqrt(x_m2) for r in drawn])
        yield rows, scores.where(x_m2 > 0, torch.nan)


def _against_layers(totals: Totals, i: int, j: int, numbers: list[int]) -> Iterator[tuple[slice, int, Tensor, int, Columns, Columns]]:
    """Source i with neighbouring layers of source j, in parts: neurons of i, number of the layer, [these neurons, neurons of the layer], tokens, both columns.

    A disk reads 64 KB and more around each number that is asked for. So a part is copied first, in pieces of rows as long as it has room for.
    """
    if i > j:  # a layer is the first side of one product
        for number in numbers:
            product = totals.products[j, number, i]
            y, x = sides(totals, (j, number, i))
            for part in _steps(totals.sources[i].columns, ROTATED_ROWS * len(numbers)):
                copied = product.total[:, part].clone()
                for rows in _steps(copied.shape[1], ROTATED_ROWS):
                    of_i = slice(part.start + rows.start, part.start + rows.stop)
                    yield of_i, number, copied[:, rows].T, product.tokens, x.some(of_i), y
        return
    width, height = totals.sources[j].width, totals.sources[i].width
    columns = slice(numbers[0] * width, (numbers[-1] + 1) * width)
    for layer in range(len(totals.sources[i].layers)):
        product = totals.products[i, layer, j]
        x, y = sides(totals, (i, layer, j))
        for rows in _steps(height, ROTATED_ROWS):
            copied = product.total[rows, columns].clone()
            of_i = slice(layer * height + rows.start, layer * height + rows.stop)
            for k, number in enumerate(numbers):
                of_j = slice(number * width, (number + 1) * width)
                yield of_i, number, copied[:, k * width : (k + 1) * width], product.tokens, x.some(rows), y.some(of_j)


def _steps(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
