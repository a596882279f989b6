"""`quantize` to int8: round stochastically and lay out for the product, against the same in eager torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyuniversal.ops import Packed, absmax_about, quantize, unpack
from pyuniversal.ops.quantize import scales

from .data import activations, keys
from .trial import Contender, Setting, Trial, implementations, within


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons = (2048, 512) if setting.quick else (16_384, 8192)
    for dtype in (torch.float32, torch.float16):
        yield _trial(setting, activations(tokens, neurons, seed=0, device=setting.device, dtype=dtype))


def _trial(setting: Setting, x: Tensor) -> Trial:
    tokens, neurons = x.shape
    centre = x.mean(0, dtype=torch.float32)
    absmax = absmax_about(centre, x.amin(0), x.amax(0))
    arguments = (x, centre, absmax, *keys(tokens, neurons, source=0, device=setting.device))
    truth = quantize(*arguments, precision="int8", backend="reference")
    name = str(x.dtype).removeprefix("torch.")

    def verify(_: str, result: Packed | Tensor) -> dict[str, float]:
        if isinstance(result, Packed):
            rounding = ((result.added_variance - truth.added_variance).abs() / truth.added_variance).max()
            return within({"unequal": 0, "added_variance": 1e-5}, unequal=(unpack(result) != unpack(truth)).sum(), added_variance=rounding)
        error = result.T - (x.float() - centre) * scales(absmax)[1]  # in steps; other random numbers, so only their law can be checked
        bias = error.mean(dtype=torch.float64).abs() * (2 * error.numel() ** 0.5)  # in standard errors at most
        return within({"steps": 1 + 1e-4, "bias": 6}, steps=error.abs().max(), bias=bias)

    def ours(backend: str) -> Any:
        return quantize(*arguments, precision="int8", backend=backend)

    return Trial(
        op="quantize",
        case=f"{name} [{tokens}, {neurons}] to int8",
        shape={"tokens": tokens, "neurons": neurons},
        ours=implementations(quantize, setting, ours, *arguments, precision="int8"),
        opponents={
            "eager": Contender(
                lambda: eager(x, centre, absmax),
                does="((x - centre) / step + torch.rand).floor().to(int8).T.contiguous(), all tokens at once; without the variance of the rounding",
            )
        },
        verify=verify,
        bytes=x.numel() * (x.element_size() + 1),
        counting="bytes: x read once, int8 written once (the read of a line before it is written is not counted)",
        work=x.numel(),
        unit="elements/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def eager(x: Tensor, centre: Tensor, absmax: Tensor) -> Tensor:
    """int8 [neurons, tokens]. Blocks of 32 to 2,048 tokens were tried: no faster, the transposed writes take what the cache saves."""
    return ((x.float() - centre) * scales(absmax)[1] + torch.rand(x.shape, device=x.device)).floor().to(torch.int8).T.contiguous()
