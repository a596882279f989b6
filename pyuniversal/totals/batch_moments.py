"""Count, mean and M2 of neurons by batches of documents: update, merge, save, load, and all batches but one."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ._state import damaged, load_state, save_state
from .moments import Moments


class BatchMoments:
    """Count, mean and M2 = sum (x - mean)^2 of each neuron in each of several batches of documents, in float64.

    A neuron that has one value in a batch has M2 = 0 there and exactly that value for its mean, so that one which never varies has M2 = 0 however its
    batches are joined.

    Args:
        batches: how many.
        neurons: number of columns.
        device: that of the activations.

    Attributes:
        state: float64 [batches, 3, neurons].
    """

    def __init__(self, batches: int, neurons: int, *, device: torch.device | str = "cpu") -> None:
        self.state = torch.zeros(batches, 3, neurons, dtype=torch.float64, device=device)

    @property
    def counts(self) -> Tensor:
        """Tokens of each batch, float64 [batches]."""
        return self.state[:, 0].amax(1) if self.state.shape[2] else self.state.new_zeros(len(self.state))

    def update(self, batch: int, x: Tensor) -> None:
        """Add tokens of one batch: x [tokens, neurons].

        Raises:
            InputError: x has other neurons, or there is no such batch.
        """
        moments = Moments(x.shape[1], device=x.device)
        moments.update(x)
        self.add(batch, moments)

    def add(self, batch: int, moments: Moments) -> None:
        """Add the tokens that `moments` (its first set) holds to one batch.

        Raises:
            InputError: it is of other neurons, or there is no such batch.
        """
        if not 0 <= batch < len(self.state) or moments.neurons != self.state.shape[2]:
            raise InputError(
                f"cannot add {moments.neurons} neurons to batch {batch} of moments of {self.state.shape[2]} neurons in batches 0 to {len(self.state) - 1}"
            )
        low, high = moments.field("minimum"), moments.field("maximum")
        mean = torch.where(low == high, low, moments.field("mean"))  # the mean of equal values is inexact
        self.state[batch] = join_moments(self.state[batch], torch.stack([moments.field("count"), mean, moments.field("M2")]))

    def merge(self, other: BatchMoments) -> None:
        """Add the tokens that `other` holds, batch by batch.

        Raises:
            InputError: it has other neurons or batches.
        """
        if other.state.shape != self.state.shape:
            (b, _, n), (batches, _, neurons) = other.state.shape, self.state.shape
            raise InputError(f"cannot merge moments of {n} neurons in {b} batches into {neurons} neurons in {batches} batches")
        self.state = join_moments(self.state, other.state.to(self.state.device))

    def whole(self) -> Tensor:
        """Count, mean and M2 over all batches, float64 [3, neurons]."""
        total = torch.zeros_like(self.state[0])
        for part in self.state:
            total = join_moments(total, part)
        return total

    def without_each(self) -> Tensor:
        """Count, mean and M2 over all batches but one, for each of them: float64 [batches, 3, neurons]."""
        return all_but_one(self.state, join_moments)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        save_state(path, "moments of batches", {"state": self.state}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> BatchMoments:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not moments of batches.
        """
        state = load_state(path, "moments of batches", device, tensors={"state": ((torch.float64,), 3)})[0]["state"]
        if state.shape[1] != 3 or not ((state[:, 0] >= 0) & (state[:, 0] < 2**53)).all():
            raise damaged(path, f"its moments are {list(state.shape)}, not [batches, 3, neurons], or it counts tokens in numbers that are none")
        moments = cls(0, 0)
        moments.state = state
        return moments


def join_moments(a: Tensor, b: Tensor) -> Tensor:
    """Count, mean and M2 of two sets of tokens together, float64 [..., 3, neurons] (Chan, Golub & LeVeque 1982). Empty ones are neutral on either side.

    Two sets in which a neuron has one and the same value give M2 = 0 and that value to the bit.
    """
    (na, ma, a2), (nb, mb, b2) = a.unbind(-2), b.unbind(-2)
    n = na + nb
    d, share = mb - ma, nb / n.clamp(min=1)
    return torch.stack([n, torch.where(na == 0, mb, ma + d * share), a2 + b2 + d**2 * na * share], dim=-2)


def all_but_one(parts: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For each of the parts [batches, ...], all others joined; zeros must be neutral to `join`.

    From the left and from the right, never the whole less one part: where a neuron fires in one batch alone, nothing but rounding would be left of the rest.
    """
    before, after = torch.zeros_like(parts), torch.zeros_like(parts)
    for b in range(1, len(parts)):
        before[b] = join(before[b - 1], parts[b - 1])
        after[-b - 1] = join(after[-b], parts[-b])
    return join(before, after)
