"""`dyadic_histogram_`: bins that widen by themselves, against torch with the range known in advance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyuniversal.ops import dyadic_histogram_
from pyuniversal.ops.dyadic_histogram import LOWEST_EXPONENT

from .data import activations
from .trial import Contender, Setting, Trial, implementations, within

BINS = 256


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons = (1024, 256) if setting.quick else (16_384, 8192)
    for dtype in (torch.float32, torch.float16):
        yield _trial(setting, activations(tokens, neurons, seed=0, device=setting.device, dtype=dtype))


def _trial(setting: Setting, x: Tensor) -> Trial:
    tokens, neurons = x.shape
    name = str(x.dtype).removeprefix("torch.")

    def empty() -> tuple[Tensor, Tensor]:
        return torch.zeros(neurons, BINS, dtype=torch.int64, device=x.device), torch.full((neurons,), LOWEST_EXPONENT, dtype=torch.int32, device=x.device)

    def ours(backend: str) -> Tensor:
        counts, exponent = empty()
        dyadic_histogram_(counts, exponent, x, backend=backend)
        return counts

    truth, exponent = empty()
    dyadic_histogram_(truth, exponent, x, backend="reference")
    return Trial(
        op="dyadic_histogram_",
        case=f"{name} [{tokens}, {neurons}], {BINS} bins",
        shape={"tokens": tokens, "neurons": neurons, "bins": BINS},
        ours=implementations(dyadic_histogram_, setting, ours, truth, exponent, x),
        opponents={
            "floor and bincount": Contender(
                lambda: floor_and_bincount(x, exponent),
                does="floor(x / width), then one bincount over neuron and bin, 4,096 tokens at a time; is told the widths",
            )
        },
        verify=lambda name, counts: within(0, unequal=(counts != truth).sum()),
        bytes=x.numel() * x.element_size() + 2 * 8 * truth.numel(),
        counting="bytes: x read once, the int64 counts read and written once",
        work=x.numel(),
        unit="elements/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def floor_and_bincount(x: Tensor, exponent: Tensor) -> Tensor:
    """int64 [neurons, BINS]."""
    neurons = x.shape[1]
    scale = torch.exp2(-exponent.float())
    offset = torch.arange(neurons, dtype=torch.int32, device=x.device) * BINS + BINS // 2
    counts = torch.zeros(neurons * BINS, dtype=torch.int64, device=x.device)
    for block in x.split(4096):
        index = (block.float() * scale).floor_().to(torch.int32)
        counts += torch.bincount((index + offset).flatten(), minlength=neurons * BINS)
    return counts.view(neurons, BINS)
