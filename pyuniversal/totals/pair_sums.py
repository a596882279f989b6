"""Sums of products of the neurons of one source with chosen partners in another, by batches of documents: update, merge, save, load."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import pair_sums_
from ._state import damaged, load_state, save_state
from .batch_moments import all_but_one


class PairSums:
    """Sum over the tokens of each batch of (x - centre_x)(y - centre_y) of each neuron of x with its candidates in y, in float64.

    Args:
        partner: int64 [neurons, candidates], columns of y; -1 where there is none.
        centre_x, centre_y: [neurons of either side]; any fixed values, best close to the means.
        batches: of documents.
        device: that of the activations.

    Attributes:
        sums: float64 [batches, neurons, candidates]; 0 for a candidate -1.
        tokens: int64 [batches].

    Example:
        >>> s = PairSums(torch.tensor([[1], [0]]), centre_x=torch.zeros(2), centre_y=torch.zeros(2))
        >>> s.update(0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
        >>> s.sums.tolist()
        [[[30.0], [38.0]]]
    """

    def __init__(self, partner: Tensor, *, centre_x: Tensor, centre_y: Tensor, batches: int = 1, device: torch.device | str = "cpu") -> None:
        self.partner = partner.to(device).contiguous()
        self.centre = (centre_x.to(device).double(), centre_y.to(device).double())
        self.sums = torch.zeros(batches, *partner.shape, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(batches, dtype=torch.int64)

    def update(self, batch: int, x: Tensor, y: Tensor) -> None:
        """Add tokens of one batch: x [tokens, x neurons], y [tokens, y neurons], the same tokens in the same order.

        Raises:
            InputError: there is no such batch, or x and y do not fit each other, the partners or the centres; nothing is added.
        """
        if not 0 <= batch < len(self.sums):
            raise InputError(f"there is no batch {batch}: these pair sums have batches 0 to {len(self.sums) - 1}")
        pair_sums_(self.sums[batch], x, y, *self.centre, self.partner)
        self.tokens[batch] += x.shape[0]

    def merge(self, other: PairSums) -> None:
        """Add the tokens that `other` holds, batch by batch: same partners, centres and number of batches.

        Raises:
            InputError: they differ; says in what.
        """
        if other.sums.shape != self.sums.shape:
            raise InputError(f"cannot merge pair sums of [batches, neurons, candidates] = {list(other.sums.shape)} into {list(self.sums.shape)}")
        if not torch.equal(self.partner, other.partner.to(self.partner.device)):
            raise InputError("cannot merge pair sums of different partners: both must be of one table of matches")
        if not all(torch.equal(a, b.to(a.device)) for a, b in zip(self.centre, other.centre, strict=True)):
            raise InputError("cannot merge pair sums with different centres: give both the centre of the first (`pair_sums.centre`)")
        self.sums += other.sums.to(self.sums.device)
        self.tokens += other.tokens

    def whole(self) -> Tensor:
        """Sums over all batches, float64 [neurons, candidates]."""
        return self.sums.sum(0)

    def without_each(self, candidate: int) -> Tensor:
        """Sums of one candidate over all batches but one, for each of them: float64 [batches, neurons]."""
        return all_but_one(self.sums[..., candidate], torch.add)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        tensors = {"sums": self.sums, "tokens": self.tokens, "partner": self.partner}
        # A source with itself has one centre twice, and safetensors refuses tensors that share memory.
        save_state(path, "pair sums", tensors | {"centre_x": self.centre[0], "centre_y": self.centre[1].clone()}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> PairSums:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not pair sums.
        """
        known = {"partner": ((torch.int64,), 2), "tokens": ((torch.int64,), 1), "sums": ((torch.float64,), 3)}
        known |= dict.fromkeys(("centre_x", "centre_y"), ((torch.float64,), 1))
        tensors, _ = load_state(path, "pair sums", device, tensors=known)
        partner, tokens, sums, x, y = (tensors[name] for name in ("partner", "tokens", "sums", "centre_x", "centre_y"))
        if sums.shape != (len(tokens), *partner.shape) or len(x) != len(partner) or (tokens < 0).any():
            raise damaged(path, f"its sums are {list(sums.shape)}, not {[len(tokens), *partner.shape]} over {len(x)} neurons")
        if (partner < -1).any() or (partner >= len(y)).any():
            raise damaged(path, f"it has partners that are none of {len(y)} neurons")
        if not (x.isfinite().all() and y.isfinite().all()):
            raise damaged(path, "its centres are no numbers")
        pairs = cls(partner, centre_x=x, centre_y=y, batches=0, device=device)
        pairs.sums, pairs.tokens = sums, tokens.cpu()
        return pairs
