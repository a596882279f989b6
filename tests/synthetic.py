"""Sources without a model: columns that are known functions of a row's tokens and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 64


class Synthetic:
    """One layer of neurons whose pre-activation is `rule(noise, ids, positions)`, [positions, width]; the post-activation is its positive part.

    The rule gets noise [positions, width] that is independent of everything but the row's tokens (and the salt), the row's ids and its positions.
    """

    site, layers = "mlp.post", (0,)

    def __init__(self, name: str, width: int, rule: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], *, salt: int, bos: int = 0) -> None:
        self.name, self.width, self.rule, self.salt, self.bos = name, width, rule, salt, bos
        self.hash = f"{name}-{salt}"

    def check(self, tokens: Any) -> None:
        """Everything fits."""

    def row(self, ids: np.ndarray) -> np.ndarray:
        """Pre-activations of one row without padding, float64 [positions, width]."""
        noise = np.random.default_rng([self.salt, *ids.tolist()]).standard_normal((LONGEST, self.width))[: len(ids)]
        return self.rule(noise, ids, np.arange(len(ids)))

    def activations(self, ids: Tensor) -> dict[str, list[Tensor]]:
        """See `pyuniversal.sources.Source`."""
        pre = torch.zeros(*ids.shape, self.width)
        for k, row in enumerate(ids.numpy()):
            length = int(np.flatnonzero(row != self.bos).max()) + 1
            pre[k, :length] = torch.from_numpy(self.row(row[:length])).float()
        return {"mlp.pre": [pre], "mlp.post": [pre.clamp(min=0)]}
