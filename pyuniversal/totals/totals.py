"""All sums of a run in one value: what has been seen of every source, every block of Z^T Z, and the ledger of the chunks they hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError, InputError
from ..files import read_json, write_json
from ._state import load_state, save_state
from .histogram import Histogram
from .moments import Moments
from .product import Product

FORMAT = 2
SETS = ("r", "test", "all")
# Files of any generation, and what a kill left of one that was being written; whatever else lies in the folder is the user's.
OWN = re.compile(
    r"(?:(?:site|pre|histogram)-\d+|(?:cross|within)-\d+-\d+|centre)\.\d+\.safetensors|\.(?:site|pre|histogram|cross|within|centre)[-.\d]*safetensors\.\w+\.tmp"
)


@dataclass(frozen=True)
class SourceInfo:
    """What a block of columns is: one site of one model, some of its layers.

    name: the model's label. site: "mlp.post", ... layers: indices in the model. width: neurons a layer. hash: of the weights.
    """

    name: str
    site: str
    layers: tuple[int, ...]
    width: int
    hash: str

    @property
    def columns(self) -> int:
        """Neurons in all: layers x width; column c is neuron c % width of layers[c // width]."""
        return len(self.layers) * self.width


class Totals:
    """Streaming state of a run.

    Attributes:
        identity: what the sums are of (token hash, options that change a bit of them); totals merge only with equals.
        sources: the blocks of columns.
        site: per source, moments of the correlated site over the token sets r, test and all.
        pre: per source, moments of the pre-activation over all.
        histogram: per source, the 257 bins of the pre-activation over all.
        centre: per source, float32 [columns]: what the products subtract.
        cross: (i, j), i < j -> product of source i with source j.
        within: (i, l) -> product of layer number l of source i with itself (its diagonal is not a variance: see `product_`).
        chunks: ids of the chunks held; n_chunks: how many there are in all.
    """

    def __init__(
        self,
        sources: Sequence[SourceInfo],
        *,
        identity: dict[str, Any],
        n_chunks: int,
        centre: Sequence[Tensor],
        precision: str = "int8",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.identity, self.sources, self.n_chunks = identity, list(sources), n_chunks
        self.centre = list(centre)
        self.chunks: set[int] = set()
        self.site = [Moments(s.columns, sets=SETS, device=device) for s in self.sources]
        self.pre = [Moments(s.columns, device=device) for s in self.sources]
        self.histogram = [Histogram(s.columns, device=device) for s in self.sources]
        self.cross: dict[tuple[int, int], Product] = {}
        self.within: dict[tuple[int, int], Product] = {}
        if len(self.sources) > 1:
            for i, a in enumerate(self.sources):
                for j in range(i + 1, len(self.sources)):
                    self.cross[i, j] = Product(a.columns, self.sources[j].columns, precision=precision, seed=seed, device=device)
                for layer in range(len(a.layers)):
                    self.within[i, layer] = Product(a.width, a.width, precision=precision, seed=seed, device=device)

    @property
    def complete(self) -> bool:
        """Whether every chunk of the run is held."""
        return len(self.chunks) == self.n_chunks

    @property
    def tokens(self) -> int:
        """Tokens of the set r seen so far."""
        return self.site[0].count("r") if self.sources else 0

    def missing(self) -> list[int]:
        """Chunk ids not held yet, rising."""
        return sorted(set(range(self.n_chunks)) - self.chunks)

    def merge(self, other: Totals) -> None:
        """Add the chunks of another part of the same run.

        Raises:
            InputError: it is of another run, or holds a chunk that this one holds too.
        """
        if other.identity != self.identity or other.sources != self.sources or other.n_chunks != self.n_chunks:
            differing = [k for k in self.identity | other.identity if self.identity.get(k) != other.identity.get(k)]
            raise InputError(f"cannot merge totals of different runs: they differ in {', '.join(differing) or 'their models'}")
        if overlap := sorted(self.chunks & other.chunks):
            raise InputError(f"cannot merge: both totals hold chunk {overlap[0]}" + (f" and {len(overlap) - 1} more" if len(overlap) > 1 else ""))
        if not all(torch.equal(a, b.to(a.device)) for a, b in zip(self.centre, other.centre, strict=True)):
            raise InputError("cannot merge totals whose products have different centres: the parts of one run take theirs from the same first totals")
        theirs = dict(other._parts())
        for name, mine in self._parts():
            mine.merge(theirs[name])
        self.chunks |= other.chunks

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write everything: new files beside the old ones, then the ledger that names them, then the old ones go. A kill at any moment leaves a whole state.

        Raises:
            FileError: the folder cannot be written; what it held before is still whole.
        """
        folder = Path(folder)
        old = read_json(folder / "ledger.json") if (folder / "ledger.json").exists() else {"generation": 0}
        generation = old["generation"] + 1
        files = {}
        for name, part in self._parts():
            files[name] = f"{name}.{generation}.safetensors"
            part.save(folder / files[name])
        files["centre"] = f"centre.{generation}.safetensors"
        save_state(folder / files["centre"], "centre", {str(i): c for i, c in enumerate(self.centre)}, {})
        ledger = {
            "format": FORMAT,
            "generation": generation,
            "identity": self.identity,
            "sources": [asdict(s) for s in self.sources],
            "n_chunks": self.n_chunks,
            "chunks": sorted(self.chunks),
            "files": files,
        }
        write_json(folder / "ledger.json", ledger)
        for path in folder.iterdir():
            if OWN.fullmatch(path.name) and path.name not in files.values():
                path.unlink()

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Totals:
        """Read what `save` wrote.

        Raises:
            FileError: no ledger, a ledger of another format, or a file that is absent, damaged or of other neurons; names it.
        """
        folder = Path(folder)
        ledger = read_json(folder / "ledger.json")
        if ledger.get("format") != FORMAT:
            raise FileError(f"{folder / 'ledger.json'} has format {ledger.get('format')}; this version of pyuniversal reads {FORMAT}")
        sources = [SourceInfo(**(s | {"layers": tuple(s["layers"])})) for s in ledger["sources"]]
        names = _Named({name: folder / Path(file).name for name, file in ledger["files"].items()})
        centre, _ = load_state(names["centre"], "centre")
        totals = cls(sources, identity=ledger["identity"], n_chunks=ledger["n_chunks"], centre=[centre[str(i)].to(device) for i in range(len(sources))])
        totals.chunks = set(ledger["chunks"])
        totals._load_parts(names, device)
        return totals

    def _load_parts(self, names: dict[str, Path], device: torch.device | str) -> None:
        every = range(len(self.sources))
        self.site = [Moments.load(names[f"site-{i}"], device=device) for i in every]
        self.pre = [Moments.load(names[f"pre-{i}"], device=device) for i in every]
        self.histogram = [Histogram.load(names[f"histogram-{i}"], device=device) for i in every]
        self.cross = {key: Product.load(names[_product_name("cross", key)], device=device) for key in self.cross}
        self.within = {key: Product.load(names[_product_name("within", key)], device=device) for key in self.within}
        for i, j in self.cross:
            expected = (self.sources[i].columns, self.sources[j].columns)
            if self.cross[i, j].total.shape != expected:
                raise FileError(
                    f"{names[_product_name('cross', (i, j))]} holds {tuple(self.cross[i, j].total.shape)} neurons, not {expected}: it belongs to another run"
                )
        for i, source in enumerate(self.sources):
            if self.site[i].neurons != source.columns or self.pre[i].neurons != source.columns:
                raise FileError(f"{names[f'site-{i}']} holds {self.site[i].neurons} neurons, not {source.columns}: it belongs to another run")

    def _parts(self) -> Iterable[tuple[str, Any]]:
        for field in ("site", "pre", "histogram"):
            for i, part in enumerate(getattr(self, field)):
                yield f"{field}-{i}", part
        for field in ("cross", "within"):
            for key, part in getattr(self, field).items():
                yield _product_name(field, key), part


class _Named(dict[str, Path]):
    """The files of a ledger; a part without one is an error in words."""

    def __missing__(self, name: str) -> Path:
        raise FileError(f"the ledger in {next(iter(self.values())).parent if self else '?'} names no file for {name}; it is damaged")


def _product_name(field: str, key: tuple[int, int]) -> str:
    return f"{field}-{key[0]}-{key[1]}"
