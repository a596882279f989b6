"""Activations summed by token id: update, merge, save, load."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import token_sums_
from ._state import damaged, load_state, save_state


class TokenSums:
    """Sum of each neuron's activations over the tokens of each id, and how many there were. Any statistic of a label that is a function of one token follows.

    Args:
        d_vocab: number of ids.
        neurons: number of columns.
        dtype: of the sums: float64, or float32 for half the memory, which is then rounded once per update and id (see `pyuniversal.ops.token_sums`).
        device: that of the activations.

    Attributes:
        sums: [d_vocab, neurons].
        counts: int64 [d_vocab].

    Example:
        >>> s = TokenSums(d_vocab=4, neurons=2)
        >>> s.update(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]), torch.tensor([1, 3, 1]))
        >>> s.counts.tolist()
        [0, 2, 0, 1]
        >>> s.mean(torch.tensor([1, 0])).tolist()
        [[3.0, 4.5], [nan, nan]]
    """

    def __init__(self, d_vocab: int, neurons: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(d_vocab, neurons, dtype=dtype, device=device)
        self.counts = torch.zeros(d_vocab, dtype=torch.int64, device=device)

    def update(self, x: Tensor, ids: Tensor) -> None:
        """Add tokens: x [tokens, neurons], ids int64 or int32 [tokens].

        Raises:
            InputError: x has other neurons, or an id is outside the vocabulary; nothing is added.
        """
        token_sums_(self.sums, self.counts, x, ids)

    def merge(self, other: TokenSums) -> None:
        """Add the tokens that `other` holds.

        Raises:
            InputError: it has another vocabulary, other neurons or another dtype.
        """
        if other.sums.shape != self.sums.shape or other.sums.dtype != self.sums.dtype:
            theirs, mine = ((list(s.sums.shape), str(s.sums.dtype).removeprefix("torch.")) for s in (other, self))
            raise InputError(f"cannot merge token sums of [d_vocab, neurons] = {theirs[0]} in {theirs[1]} into {mine[0]} in {mine[1]}")
        self.sums += other.sums.to(self.sums.device)
        self.counts += other.counts.to(self.counts.device)

    def mean(self, ids: Tensor | None = None) -> Tensor:
        """Mean activation on the tokens of each id, or of those in `ids`: float64 [ids, neurons]; NaN for an id that was never seen."""
        sums, counts = (self.sums, self.counts) if ids is None else (self.sums[ids], self.counts[ids])
        return sums.double() / counts[:, None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        save_state(path, "token sums", {"sums": self.sums, "counts": self.counts}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> TokenSums:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not token sums.
        """
        tensors, _ = load_state(path, "token sums", device, tensors={"sums": ((torch.float64, torch.float32), 2), "counts": ((torch.int64,), 1)})
        sums, counts = tensors["sums"], tensors["counts"]
        if len(sums) != len(counts) or (counts < 0).any():
            raise damaged(path, f"its sums are {list(sums.shape)} and its counts {list(counts.shape)}, or below 0")
        total = cls(0, 0, device=device)
        total.sums, total.counts = sums, counts
        return total
