"""Streaming moments of neurons over nested token sets: update, merge, save, load."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import merge_moments_, moments_
from ..ops.moments import FIELDS, empty
from ._state import damaged, load_state, save_state


def first_bad(values: Tensor) -> int:
    """Place of the first NaN or Inf in [tokens]; where there is none, of the largest value, whose powers overflow."""
    bad = ~torch.isfinite(values)
    return int(bad.nonzero()[0]) if bad.any() else int(values.abs().argmax())


class Moments:
    """Count, mean, central sums to order 4, firing count, minimum and maximum of each neuron, in float64, over one or more nested token sets.

    Args:
        neurons: number of columns.
        sets: names of the token sets, smallest first; each contains the one before it.
        device: where the state lives; that of the activations.

    Example:
        >>> m = Moments(3)
        >>> m.update(torch.tensor([[0.0, 1.0, 2.0], [4.0, 1.0, 0.0]]))
        >>> m.mean().tolist()
        [2.0, 1.0, 1.0]
    """

    def __init__(self, neurons: int, *, sets: Sequence[str] = ("all",), device: torch.device | str = "cpu") -> None:
        self.sets = tuple(sets)
        self.state = empty(len(self.sets), neurons, device)  # [sets, 8, neurons]

    @property
    def neurons(self) -> int:
        """Number of columns."""
        return self.state.shape[2]

    def update(self, x: Tensor, ends: Sequence[int] | None = None) -> None:
        """Add the tokens of x, [tokens, neurons]; set s takes the first ends[s] of them (all of them where `ends` is not given).

        Raises:
            InputError: x has other neurons, or `ends` does not increase.
        """
        moments_(self.state, x, [x.shape[0]] * len(self.sets) if ends is None else list(ends))

    def merge(self, other: Moments) -> None:
        """Add the tokens that `other` holds.

        Raises:
            InputError: it has other neurons or token sets.
        """
        if other.sets != self.sets or other.neurons != self.neurons:
            raise InputError(f"cannot merge moments of {other.neurons} neurons over {other.sets} into {self.neurons} neurons over {self.sets}")
        merge_moments_(self.state, other.state.to(self.state.device))

    def field(self, name: str, token_set: str | None = None) -> Tensor:
        """One field of the state (`pyuniversal.ops.moments.FIELDS`), float64 [neurons]; the first set unless another is named."""
        return self.state[self.sets.index(token_set) if token_set else 0, FIELDS.index(name)]

    def count(self, token_set: str | None = None) -> int:
        """How many tokens the set holds."""
        return int(self.field("count", token_set).max().item()) if self.neurons else 0

    def mean(self, token_set: str | None = None) -> Tensor:
        """Mean, float64 [neurons]; NaN over no token."""
        return self.field("mean", token_set).where(self.field("count", token_set) > 0, torch.nan)

    def var(self, token_set: str | None = None) -> Tensor:
        """Variance (ddof 0), float64 [neurons]."""
        return self.field("M2", token_set) / self.field("count", token_set)

    def skew(self, token_set: str | None = None) -> Tensor:
        """Skewness, float64 [neurons]; NaN for a constant neuron."""
        return self.field("M3", token_set) / self.field("count", token_set) / self.var(token_set) ** 1.5

    def kurt(self, token_set: str | None = None) -> Tensor:
        """Raw kurtosis (3 = Gaussian), float64 [neurons]; NaN for a constant neuron."""
        return self.field("M4", token_set) / self.field("count", token_set) / self.var(token_set) ** 2

    def firing(self, token_set: str | None = None) -> Tensor:
        """Share of tokens with x > 0, float64 [neurons]."""
        return self.field("positive", token_set) / self.field("count", token_set)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        save_state(path, "moments", {"state": self.state}, {"sets": self.sets})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Moments:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not moments.
        """
        tensors, meta = load_state(path, "moments", device, tensors={"state": ((torch.float64,), 3)}, meta={"sets": "a list"})
        state, sets = tensors["state"], meta["sets"]
        if state.shape[:2] != (len(sets), len(FIELDS)) or not all(isinstance(name, str) for name in sets) or len(set(sets)) < len(sets) or not sets:
            raise damaged(path, f"its state is {list(state.shape)}, not [sets, {len(FIELDS)}, neurons] for the sets {sets}")
        count = state[:, FIELDS.index("count")]
        if not ((count >= 0) & (count < 2**53) & (count == count.round())).all():
            raise damaged(path, "it counts tokens in numbers that are none")
        moments = cls(0, sets=sets)
        moments.state = state
        return moments
