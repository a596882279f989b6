"""All correlations between the columns of two matrices: the library in one function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ActivationError, InputError
from ..ops import PRECISIONS, Columns, Correlations, correlations, summarize_correlation
from ..totals import Moments, Product, first_bad

CHUNK = 16_384


@dataclass(frozen=True)
class Correlation:
    """Pearson correlations of the neurons of x with those of y, best partners first.

    Attributes:
        r: float64 [x neurons, k], the k largest correlations of each neuron of x, falling, in [-1, 1]; NaN for a constant neuron.
        partner: int64 [x neurons, k], which neuron of y that is; -1 where there is none.
        stderr: float64 [x neurons, k], standard error of r from the precision of the product: known for "int8", 0 for the others. Not the sampling error.
        summary: histogram and moments of all correlations of each neuron, and the smallest k.
        tokens: how many tokens went in.
    """

    summary: Correlations
    product: Product
    sides: tuple[Columns, Columns]
    other: Correlations

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.product.tokens

    @cached_property
    def r(self) -> Tensor:
        """Largest correlations, float64 [x neurons, k]."""
        return self.summary.top.clamp(-1, 1)

    @property
    def partner(self) -> Tensor:
        """Columns of y, int64 [x neurons, k]."""
        return self.summary.top_index

    @property
    def stderr(self) -> Tensor:
        """Standard error of `r` from the precision, float64 [x neurons, k]."""
        return self.summary.top_stderr

    def full(self) -> Tensor:
        """All correlations: float64 [x neurons, y neurons], in [-1, 1], NaN where a neuron is constant. 8 bytes a pair."""
        return correlations(self.product.total, self.tokens, *self.sides).clamp(-1, 1)

    @property
    def transposed(self) -> Correlation:
        """The same with x and y exchanged: best partners of the neurons of y."""
        flipped = Product(0, 0, precision=self.product.precision, seed=self.product.seed)
        flipped.total, flipped.tokens = self.product.total.T, self.tokens
        flipped.rounding, flipped.centre = self.product.rounding[::-1], self.product.centre and self.product.centre[::-1]
        return Correlation(self.other, flipped, self.sides[::-1], self.summary)


def correlate(x: Tensor, y: Tensor, *, precision: str = "float32", top_k: int = 50, seed: int = 0) -> Correlation:
    """Correlate every column of x with every column of y.

    Args:
        x: activations, floating [tokens, x neurons].
        y: activations of the same tokens in the same order, floating [tokens, y neurons].
        precision: "float32", "float64", "bf16", or "int8" (unbiased stochastic rounding; the error it adds is `stderr`).
        top_k: how many partners to keep of each neuron.
        seed: of the rounding of "int8".

    Raises:
        InputError: the matrices do not have the same tokens, or fewer than two, or are not matrices; an unknown precision.
        ActivationError: NaN or Inf; names the matrix, the token and the neuron.

    Example:
        >>> x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
        >>> correlate(x, x.flip(1)).partner[:, 0].tolist()
        [7, 6, 5, 4, 3, 2, 1, 0]
    """
    x, y = (torch.as_tensor(side).detach() for side in (x, y))
    for name, side in (("x", x), ("y", y)):
        if side.ndim != 2 or not side.dtype.is_floating_point or not side.shape[1]:
            raise InputError(f"{name} must be a floating matrix [tokens, neurons], not {side.dtype} of shape {tuple(side.shape)}")
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and y has {y.shape[0]}: both must hold the activations of the same tokens, in the same order")
    if x.shape[0] < 2:
        raise InputError(f"a correlation needs at least two tokens (rows), not {x.shape[0]}")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    x, y = x.contiguous(), y.contiguous()
    moments = []
    for name, side in (("x", x), ("y", y)):
        m = Moments(side.shape[1], device=side.device)
        for chunk in side.split(CHUNK):
            m.update(chunk)
        _refuse_nonfinite(m, side, name)
        moments.append(m)
    product = Product(x.shape[1], y.shape[1], precision=precision, seed=seed, device=x.device)
    product.centre = (moments[0].mean().float(), moments[1].mean().float())
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        product.update(a, b)
    sides = tuple(Columns(m.field("M2"), m.mean() - c.double(), *product.added(i)) for i, (m, c) in enumerate(zip(moments, product.centre, strict=True)))
    rows, columns = summarize_correlation(product.total, product.tokens, *sides, top_k=top_k)
    return Correlation(rows, product, (sides[0], sides[1]), columns)


def _refuse_nonfinite(moments: Moments, x: Tensor, name: str) -> None:
    bad = ~torch.isfinite(moments.field("M2"))
    if bad.any():
        column = int(bad.nonzero()[0])
        row = first_bad(x[:, column])
        raise ActivationError(f"{name} is {x[row, column].item()} at token {row}, neuron {column}; {int(bad.sum())} neurons are affected. Drop or repair them.")
