"""`histogram_(counts, x, edges)`: count the tokens of every neuron between fixed edges, one set of edges for all neurons.

    counts  int64 [neurons, len(edges) + 1], contiguous, updated in place
    x       float16 / bfloat16 / float32 / float64 [tokens, neurons], unit stride along neurons
    edges   float32 [edges], increasing

Bin i is (edges[i-1], edges[i]]; bin 0 is everything up to the first edge, the last bin everything above the last one (and NaN). So `PAPER_EDGES` gives the 257
bins of Gurnee et al. 2024: torch.linspace(-10, 15, 256), searchsorted with right=False.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import FLOATING, Op, describe, require, require_device

PAPER_EDGES = torch.linspace(-10, 15, 256)


def check(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    require(x.ndim == 2 and x.dtype in FLOATING, "histogram_", f"x must be floating [tokens, neurons], not {describe(x)}")
    require(edges.ndim == 1 and edges.dtype == torch.float32 and len(edges) > 0, "histogram_", f"edges must be float32 [edges], not {describe(edges)}")
    shape = [x.shape[1], len(edges) + 1]
    require(
        counts.dtype == torch.int64 and list(counts.shape) == shape and counts.is_contiguous(),
        "histogram_",
        f"counts must be contiguous int64 {shape}, not {describe(counts)}",
    )
    require_device("histogram_", x.device, counts=counts, edges=edges)
    if edges.is_cpu:  # only where looking costs no wait for the GPU
        require(bool((edges[1:] > edges[:-1]).all()), "histogram_", "edges must increase")


def reference(counts: Tensor, x: Tensor, edges: Tensor) -> None:
    """searchsorted, then one bincount over neuron * bins + bin; blocks of tokens keep the indices small."""
    neurons, bins = counts.shape
    offset = torch.arange(neurons, device=x.device) * bins
    for block in x.split(1024):
        index = torch.bucketize(block.double(), edges.double()) + offset
        counts += torch.bincount(index.flatten(), minlength=neurons * bins).view(neurons, bins)


FASTER = {"cpu": "pyuniversal.ops._native:histogram_", "triton": "pyuniversal.ops._triton.histogram:histogram_"}
histogram_ = Op("histogram_", check=check, reference=reference, faster=FASTER)
