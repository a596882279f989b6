"""`histogram_`: the study's 257 bins, against bucketize and bincount."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyuniversal.ops import PAPER_EDGES, histogram_

from .data import activations
from .trial import Contender, Setting, Trial, implementations, within


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons = (1024, 256) if setting.quick else (16_384, 8192)
    for dtype in (torch.float32, torch.float16):
        yield _trial(setting, activations(tokens, neurons, seed=0, device=setting.device, dtype=dtype))


def _trial(setting: Setting, x: Tensor) -> Trial:
    tokens, neurons = x.shape
    edges = PAPER_EDGES.to(x.device)
    name = str(x.dtype).removeprefix("torch.")

    def ours(backend: str) -> Tensor:
        counts = torch.zeros(neurons, len(edges) + 1, dtype=torch.int64, device=x.device)
        histogram_(counts, x, edges, backend=backend)
        return counts

    truth = ours("reference")
    return Trial(
        op="histogram_",
        case=f"{name} [{tokens}, {neurons}], 257 bins",
        shape={"tokens": tokens, "neurons": neurons, "bins": len(edges) + 1},
        ours=implementations(histogram_, setting, ours, truth, x, edges),
        opponents={
            "bucketize": Contender(lambda: bucketize(x, edges), does="torch.bucketize to int32, then one bincount over neuron and bin; 4,096 tokens at a time")
        },
        verify=lambda name, counts: within(0, unequal=(counts != truth).sum()),
        bytes=x.numel() * x.element_size() + 2 * 8 * truth.numel(),
        counting="bytes: x read once, the int64 counts read and written once",
        work=x.numel(),
        unit="elements/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def bucketize(x: Tensor, edges: Tensor) -> Tensor:
    """int64 [neurons, bins]."""
    neurons, bins = x.shape[1], len(edges) + 1
    offset = torch.arange(neurons, dtype=torch.int32, device=x.device) * bins
    counts = torch.zeros(neurons * bins, dtype=torch.int64, device=x.device)
    for block in x.split(4096):
        index = torch.bucketize(block.float(), edges, out_int32=True)
        counts += torch.bincount((index + offset).flatten(), minlength=neurons * bins)
    return counts.view(neurons, bins)
