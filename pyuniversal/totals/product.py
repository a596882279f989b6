"""One streaming block of Z^T Z: the covariance sums of all neurons of one source with all of another."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import PRECISIONS, Packed, absmax_about, product_, quantize
from ..ops._dither import neuron_keys, token_keys
from ._state import damaged, load_state, save_state

TOTALS = (torch.float32, torch.float64)  # dtypes of a total, the second of the precision float64 alone


def pack(x: Tensor, centre: Tensor, tokens: Tensor, *, source: int, seed: int, precision: str, extremes: tuple[Tensor, Tensor] | None = None) -> Packed:
    """Make a product's operand of the activations of a chunk.

    Args:
        x: [tokens, neurons].
        centre: float32 [neurons].
        tokens: int64 [tokens], global indices that key the dither.
        source: place of the source in the run; sides of one product must differ.
        seed: of the dither.
        precision: "int8", "bf16", "float32" or "float64".
        extremes: minimum and maximum of x, [neurons] each, where known already.
    """
    if precision == "int8":
        low, high = extremes if extremes else (x.amin(0), x.amax(0))
        absmax = absmax_about(centre, low, high)
    else:
        absmax = torch.zeros_like(centre)
    return quantize(x, centre, absmax, token_keys(seed, tokens), neuron_keys(seed, source, x.shape[1], device=x.device), precision=precision)


# Libraries round a product otherwise where its total begins elsewhere in a cache line, as one does that is mapped from a file; int8 sums are exact before that.
ALIGNMENT = 64


class Product:
    """Sum over tokens of (x - centre_x)(y - centre_y) for all pairs of neurons.

    Args:
        x_neurons, y_neurons: columns of the two sides.
        precision: "int8" (unbiased, with a known standard error), "bf16", "float32" or "float64".
        seed: of the dither of int8.
        device: where the total lives.
    """

    def __init__(self, x_neurons: int, y_neurons: int, *, precision: str = "float32", seed: int = 0, device: torch.device | str = "cpu") -> None:
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.precision, self.seed, self.tokens = precision, seed, 0
        self.total = torch.zeros(x_neurons, y_neurons, dtype=dtype, device=device)
        self.centre: tuple[Tensor, Tensor] | None = None  # float32 [neurons] of either side, fixed by the first tokens
        # Of either side [2, neurons]: added_variance and added_fourth of `Packed`, summed over tokens.
        self.rounding = tuple(torch.zeros(2, n, dtype=torch.float64, device=device) for n in (x_neurons, y_neurons))

    def update(self, x: Tensor, y: Tensor, *, first_token: int | None = None) -> None:
        """Add tokens: x [tokens, x_neurons] and y [tokens, y_neurons] of the same tokens; at most 133,144 at a time for int8.

        The first tokens fix the centre (their mean). `first_token` is their index in the whole stream, which keys the dither; by default they follow those
        seen so far, so shards of one stream that will be merged must give it.

        Raises:
            InputError: the sides differ in tokens, or are not of this product's neurons.
        """
        if x.shape[0] != y.shape[0]:
            raise InputError(f"x has {x.shape[0]} tokens and y has {y.shape[0]}: both sides must hold the same tokens, in the same order")
        if not x.shape[0]:
            return
        centres = self.centre or (x.double().mean(0).float(), y.double().mean(0).float())
        start = self.tokens if first_token is None else first_token
        tokens = torch.arange(start, start + x.shape[0], device=x.device)
        sides = [
            pack(side, centre, tokens, source=source, seed=self.seed, precision=self.precision)
            for source, (side, centre) in enumerate(zip((x, y), centres, strict=True))
        ]
        self.add(*sides)

    def add(self, x: Packed, y: Packed) -> None:
        """Add one chunk of operands that are packed already.

        Raises:
            InputError: other tokens, neurons or precision, or another centre than that of the chunks before.
        """
        home = self.total.device
        centre = (x.centre.to(home), y.centre.to(home))
        if self.centre is not None and not all(_same(*both) for both in zip(self.centre, centre, strict=True)):
            raise InputError("these operands were centred otherwise than those already in the product: one centre serves a whole run")
        if self.precision != "int8" and self.total.data_ptr() % ALIGNMENT:
            self.total = self.total.clone()
        if home == x.data.device:
            product_(self.total, x, y)
        else:  # a block in the host's memory visits the device of its operands
            visitor = self.total.to(x.data.device)
            product_(visitor, x, y)
            self.total.copy_(visitor)
        self.centre = centre
        self.tokens += x.tokens
        for rounding, side in zip(self.rounding, (x, y), strict=True):
            rounding += (torch.stack([side.added_variance, side.added_fourth]) * side.tokens).to(home)

    def merge(self, other: Product) -> None:
        """Add the tokens that `other` holds: same neurons, precision and centre.

        Raises:
            InputError: they differ; says in what.
        """
        if other.total.shape != self.total.shape or other.precision != self.precision:
            raise InputError(
                f"cannot merge a product of {list(other.total.shape)} neurons in {other.precision} into one of {list(self.total.shape)} in {self.precision}"
            )
        if other.centre is None:
            return
        if self.centre is not None and not all(torch.equal(a, b) for a, b in zip(self.centre, other.centre, strict=True)):
            raise InputError("cannot merge products with different centres: give both the centre of the first (`product.centre`)")
        self.centre = other.centre
        self.total += other.total
        self.tokens += other.tokens
        for mine, theirs in zip(self.rounding, other.rounding, strict=True):
            mine += theirs

    def about(self, centre: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]) -> Product:
        """The same sums about another centre; itself where the centre is the same.

        (x - c)(y - d) = (x - a + u)(y - b + v) with u = a - c and v = b - d: outer products of vectors are added, in float64, to what was summed about a and b.
        The rounding of int8 is unbiased about any centre, and its variance stays.

        Args:
            centre: c and d, float32 [neurons] of either side.
            sums: of x - a and y - b over the tokens of this product, float64 [neurons] each; exact, from moments.
        """
        if self.centre is None or all(torch.equal(a, c) for a, c in zip(self.centre, centre, strict=True)):
            return self
        u, v = (a.double() - c.double() for a, c in zip(self.centre, centre, strict=True))
        moved = Product(0, 0, precision=self.precision, seed=self.seed)
        moved.total = (self.total.double() + torch.outer(u, sums[1] + self.tokens * v) + torch.outer(sums[0], v)).to(self.total.dtype)
        moved.centre, moved.tokens, moved.rounding = centre, self.tokens, self.rounding
        return moved

    def added(self, side: int) -> Tensor:
        """Means over all tokens of `added_variance` and `added_fourth` of one side (0: x, 1: y), float64 [2, neurons]; see `pyuniversal.ops.Packed`."""
        return self.rounding[side] / max(self.tokens, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        tensors = {"total": self.total, "rounding_x": self.rounding[0], "rounding_y": self.rounding[1]}
        if self.centre is not None:
            # A product of a source with itself has one centre twice, and safetensors refuses tensors that share memory.
            tensors |= {"centre_x": self.centre[0], "centre_y": self.centre[1].clone()}
        save_state(path, "product", tensors, {"tokens": self.tokens, "precision": self.precision, "seed": self.seed})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Product:
        """Read what `save` wrote, onto `device`.

        Raises:
            FileError: absent, damaged, or not a product.
        """
        known = {"total": (TOTALS, 2), "rounding_x": ((torch.float64,), 2), "rounding_y": ((torch.float64,), 2)}
        fields = {"tokens": "a whole number", "precision": "text", "seed": "an integer"}
        tensors, meta = load_state(path, "product", device, tensors=known, meta=fields)
        total, rounding = tensors["total"], (tensors["rounding_x"], tensors["rounding_y"])
        if meta["precision"] not in PRECISIONS or total.dtype != TOTALS[meta["precision"] == "float64"]:
            raise damaged(path, f"{total.dtype} sums are not of the precision {meta['precision']!r}")
        if [list(r.shape) for r in rounding] != [[2, n] for n in total.shape]:
            raise damaged(path, "the sums of its rounding do not fit its neurons")
        centre = (tensors["centre_x"], tensors["centre_y"]) if "centre_x" in tensors and "centre_y" in tensors else None
        if centre is not None and (
            [(c.dtype, *c.shape) for c in centre] != [(torch.float32, n) for n in total.shape] or not all(c.isfinite().all() for c in centre)
        ):
            raise damaged(path, "its centres do not fit its neurons")
        product = cls(0, 0, precision=meta["precision"], seed=meta["seed"])
        product.total, product.tokens, product.rounding, product.centre = total, meta["tokens"], rounding, centre
        return product


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two centres are equal; of one memory they are, and a GPU need not be waited for to know it."""
    return (a.data_ptr() == b.data_ptr() and a.shape == b.shape) or torch.equal(a, b)
