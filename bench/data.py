"""Activations to measure on: neither zeros nor noise, since power, branches and rounding depend on the values."""

from __future__ import annotations

import torch
from torch import Tensor

from pyuniversal.ops._dither import neuron_keys, token_keys


def activations(tokens: int, neurons: int, *, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[tokens, neurons]: GELU of a heavy-tailed factor model. The factors depend on the tokens alone, so that matrices of two seeds are correlated."""
    factors = _student(tokens, 64, torch.Generator(device).manual_seed(-1 % 2**31), device)  # [tokens, 64]
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.empty(tokens, neurons, dtype=dtype, device=device)
    weights = torch.randn(64, neurons, generator=generator, device=device) / 8  # [64, neurons]
    for start in range(0, tokens, 4096):
        block = slice(start, start + 4096)
        noise = torch.randn(x[block].shape, generator=generator, device=device)
        x[block] = torch.nn.functional.gelu(factors[block] @ weights + 0.5 * noise - 0.3).to(dtype)
    return x


def _student(tokens: int, columns: int, generator: torch.Generator, device: str) -> Tensor:
    """Student's t with 5 degrees of freedom and variance 1."""
    draws = torch.randn(6, tokens, columns, generator=generator, device=device)
    return draws[0] / draws[1:].square().mean(0).sqrt() * (3 / 5) ** 0.5


def keys(tokens: int, neurons: int, *, source: int, device: str) -> tuple[Tensor, Tensor]:
    """Dither keys of tokens 0, 1, 2 ... and of the neurons of a source: int32 [tokens], int32 [neurons]."""
    return token_keys(0, torch.arange(tokens, device=device)), neuron_keys(0, source, neurons).to(device)
