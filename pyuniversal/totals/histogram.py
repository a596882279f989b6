"""Streaming histograms of neurons, between fixed edges or in bins that widen by themselves: update, merge, save, load."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import LOWEST_EXPONENT, PAPER_EDGES, dyadic_histogram_, histogram_, power_of_two, widen_
from ..ops.dyadic_histogram import HIGHEST_EXPONENT, MOST_BINS
from ._state import damaged, load_state, save_state


class Histogram:
    """Counts of each neuron's activations between edges that all neurons share; by default the 257 bins of Gurnee et al. 2024.

    Args:
        neurons: number of columns.
        edges: float32 [edges], increasing; bin i is (edges[i-1], edges[i]], the first and last bins are open.
        device: that of the activations.

    Raises:
        InputError: the edges do not increase; of those that are on a GPU already that is not asked.
    """

    def __init__(self, neurons: int, *, edges: Tensor = PAPER_EDGES, device: torch.device | str = "cpu") -> None:
        if edges.is_cpu and not (edges.diff() > 0).all():
            raise InputError("the edges of a histogram must increase")
        self.edges = edges.to(device)
        self.counts = torch.zeros(neurons, len(edges) + 1, dtype=torch.int64, device=device)  # [neurons, bins]

    @property
    def neurons(self) -> int:
        """Number of columns."""
        return self.counts.shape[0]

    def update(self, x: Tensor) -> None:
        """Add the tokens of x, [tokens, neurons]."""
        histogram_(self.counts, x, self.edges)

    def merge(self, other: Histogram) -> None:
        """Add the tokens that `other` holds.

        Raises:
            InputError: it has other neurons or edges.
        """
        same = other.edges is self.edges or torch.equal(other.edges.cpu(), self.edges.cpu())  # a GPU is not waited for where they are the very same
        if other.counts.shape != self.counts.shape or not same:
            raise InputError("cannot merge histograms of different neurons or edges")
        self.counts += other.counts.to(self.counts.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        save_state(path, "histogram", {"counts": self.counts, "edges": self.edges}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Histogram:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not a histogram.
        """
        tensors, _ = load_state(path, "histogram", device, tensors={"counts": ((torch.int64,), 2), "edges": ((torch.float32,), 1)})
        counts, edges = tensors["counts"], tensors["edges"]
        if counts.shape[1] != len(edges) + 1 or not (edges.isfinite().all() and (edges.diff() > 0).all()) or (counts < 0).any():
            raise damaged(path, f"its counts {list(counts.shape)} are not those of bins between {len(edges)} rising edges")
        histogram = cls(0, edges=edges, device=device)
        histogram.counts = counts
        return histogram


class DyadicHistogram:
    """Counts of each neuron's activations in equal bins whose width is a power of two of its own, the smallest for which all values so far fit.

    Needs no range in advance, loses nothing beyond it, and does not depend on the order of tokens, batches or merges. NaN and Inf are counted nowhere.

    Args:
        neurons: number of columns.
        bins: how many, even, 4 to 65,536; half of them are below 0.
        device: that of the activations.

    Attributes:
        counts: int64 [neurons, bins].
        exponent: int32 [neurons]: the bins of a neuron are 2^exponent wide; -126, the lowest, where nothing was seen.

    Example:
        >>> h = DyadicHistogram(1, bins=4)
        >>> h.update(torch.tensor([[0.5], [1.5], [-2.0]]))
        >>> h.edges(0).tolist(), h.counts[0].tolist()
        ([-2.0, -1.0, 0.0, 1.0, 2.0], [1, 0, 1, 1])
        >>> h.update(torch.tensor([[2.0]]))
        >>> h.edges(0).tolist(), h.counts[0].tolist()
        ([-4.0, -2.0, 0.0, 2.0, 4.0], [0, 1, 2, 1])
    """

    def __init__(self, neurons: int, *, bins: int = 256, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(neurons, bins, dtype=torch.int64, device=device)
        self.exponent = torch.full((neurons,), LOWEST_EXPONENT, dtype=torch.int32, device=device)

    def update(self, x: Tensor) -> None:
        """Add the tokens of x, [tokens, neurons].

        Raises:
            InputError: x has other neurons, or the number of bins is none of the allowed.
        """
        dyadic_histogram_(self.counts, self.exponent, x)

    def merge(self, other: DyadicHistogram) -> None:
        """Add the tokens that `other` holds, which stays as it is.

        Raises:
            InputError: it has other neurons or another number of bins.
        """
        if other.counts.shape != self.counts.shape:
            raise InputError(f"cannot merge a histogram of [neurons, bins] = {list(other.counts.shape)} into one of {list(self.counts.shape)}")
        counts, exponent = (t.to(self.counts.device, copy=True) for t in (other.counts, other.exponent))
        to = torch.maximum(exponent, self.exponent)
        widen_(counts, exponent, to)
        widen_(self.counts, self.exponent, to)
        self.counts += counts

    def edges(self, neuron: int) -> Tensor:
        """Bounds of one neuron's bins, float64 [bins + 1]: bin i holds edges[i] <= x < edges[i + 1]."""
        half = self.counts.shape[1] // 2
        return torch.arange(-half, half + 1) * power_of_two(self.exponent[neuron].cpu())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        save_state(path, "dyadic histogram", {"counts": self.counts, "exponent": self.exponent}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> DyadicHistogram:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not such a histogram.
        """
        tensors, _ = load_state(path, "dyadic histogram", device, tensors={"counts": ((torch.int64,), 2), "exponent": ((torch.int32,), 1)})
        counts, exponent = tensors["counts"], tensors["exponent"]
        bins = counts.shape[1]
        sound = len(exponent) == len(counts) and bins % 2 == 0 and 4 <= bins <= MOST_BINS
        if not sound or ((exponent < LOWEST_EXPONENT) | (exponent > HIGHEST_EXPONENT)).any() or (counts < 0).any():
            raise damaged(path, f"its counts {list(counts.shape)} and exponents {list(exponent.shape)} are none of a histogram")
        histogram = cls(0, device=device)
        histogram.counts, histogram.exponent = counts, exponent
        return histogram
