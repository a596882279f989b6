"""Streaming histogram of neurons between fixed edges: update, merge, save, load."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import PAPER_EDGES, histogram_
from ._state import load_state, save_state


class Histogram:
    """Counts of each neuron's activations between edges that all neurons share; by default the 257 bins of Gurnee et al. 2024.

    Args:
        neurons: number of columns.
        edges: float32 [edges], increasing; bin i is (edges[i-1], edges[i]], the first and last bins are open.
        device: that of the activations.
    """

    def __init__(self, neurons: int, *, edges: Tensor = PAPER_EDGES, device: torch.device | str = "cpu") -> None:
        self.edges = edges.to(device)
        self.counts = torch.zeros(neurons, len(edges) + 1, dtype=torch.int64, device=device)  # [neurons, bins]

    def update(self, x: Tensor) -> None:
        """Add the tokens of x, [tokens, neurons]."""
        histogram_(self.counts, x, self.edges)

    def merge(self, other: Histogram) -> None:
        """Add the tokens that `other` holds.

        Raises:
            InputError: it has other neurons or edges.
        """
        if other.counts.shape != self.counts.shape or not torch.equal(other.edges.cpu(), self.edges.cpu()):
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
        tensors, _ = load_state(path, "histogram", device)
        histogram = cls(tensors["counts"].shape[0], edges=tensors["edges"], device=device)
        histogram.counts = tensors["counts"]
        return histogram
