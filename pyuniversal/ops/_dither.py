"""The dither of stochastic rounding: u(seed, source, row, position, neuron) in [0, 1), 24 bits, computed anywhere, stored nowhere.

u = lowbias32(key_n ^ key_t) with both keys mixed themselves. A cheaper hash of the two indices correlated the dither of two neurons by 0.15, which biases their
correlation by an amount that no number of tokens removes. lowbias32 (Wellons, "Prospecting for hash functions") is a bijection of 32-bit integers, so keys of
different neurons never collide, and those of different tokens only beyond 2^32 of them.

Keys are int32 tensors that hold 32 unsigned bits: torch has no unsigned arithmetic on every device, and int32 wraps around as unsigned does.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

NEURONS_PER_SOURCE = 1 << 22  # 4.2 million columns a source, 1,024 sources


def lowbias32(h: Tensor) -> Tensor:
    """Mix int32 (as unsigned) values; a new tensor."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * 0x7FEB352D
    h ^= (h >> 15) & 0x1FFFF
    h *= 0x846CA68B - (1 << 32)
    h ^= (h >> 16) & 0xFFFF
    return h


def _to_int32(value: Tensor) -> Tensor:
    """The low 32 bits of int64 values, as int32."""
    low = value & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


@lru_cache(maxsize=64)
def _scalar(value: int) -> int:
    """A mixed number that keys of any device are added to: a tensor would have to be sent there."""
    return int(lowbias32(_to_int32(torch.tensor(value & 0xFFFFFFFF, dtype=torch.int64))))


def neuron_keys(seed: int, source: int, neurons: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Keys of the columns of one source: int32 [neurons]. `source` is its place in the run, so that two sources never share a dither."""
    if not 0 <= source < 1024 or neurons > NEURONS_PER_SOURCE:
        raise ValueError(f"source {source} with {neurons} columns: at most 1,024 sources of {NEURONS_PER_SOURCE:,} columns have keys of their own")
    columns = torch.arange(neurons, dtype=torch.int64, device=device) + source * NEURONS_PER_SOURCE
    return lowbias32(lowbias32(_to_int32(columns)) + _scalar(2 * seed + 1))


def token_keys(seed: int, tokens: Tensor) -> Tensor:
    """Keys of tokens: int32 [tokens], from their global index row * row_tokens + position (int64 [tokens])."""
    return lowbias32(lowbias32(_to_int32(tokens)) + _scalar(2 * seed))


def dither(token_key: Tensor, neuron_key: Tensor) -> Tensor:
    """u in [0, 1): float32 [tokens, neurons] of two int32 key vectors; multiples of 2^-24, so exact in float32."""
    h = lowbias32(token_key[:, None] ^ neuron_key[None, :])
    return ((h >> 8) & 0xFFFFFF).float() * 2.0**-24
