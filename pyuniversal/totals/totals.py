"""All sums of a run in one value: what has been seen of every source, every block of Z^T Z, and the ledger of the chunks they hold."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError, InputError
from ..files import check_fields, read_json
from ..ops import PRECISIONS, Packed
from ._state import check_sources, load_state, save_state
from .histogram import Histogram
from .ledger import AGAIN, CURRENT, PREVIOUS, Ledger, from_ranges
from .moments import Moments
from .product import Product

log = logging.getLogger(__name__)
SEEN: dict[str, Any] = {"site": Moments, "pre": Moments, "histogram": Histogram}  # what is kept of every source, a file each
SETS = ("r", "test", "all")
MOST_CHUNKS = 1 << 22  # 69 billion tokens by default; their ids are kept in sets
Key = tuple[int, int, int]  # (i, number of a layer of source i, j)


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
        products: (i, l, j) -> product of layer number l of source i with source j > i, or, where j is i, with itself (whose diagonal is not a variance: see
            `product_`). One that nothing was added to yet is absent. Those of loaded totals are mapped from their files: they take memory where they change.
        observed: per source, ids of the chunks that its moments and histogram hold.
        added: key of a product -> ids of the chunks that it holds. A run that sweeps over the tokens several times fills products one after another.
        n_chunks: how many chunks there are in all.
        device: of the moments and histograms, that of the activations. home: of the products, which may be the host's memory.
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
        home: torch.device | str | None = None,
    ) -> None:
        self.identity, self.sources, self.n_chunks = identity, list(sources), n_chunks
        self.precision, self.seed, self.device, self.home = precision, seed, device, home or device
        self.centre = list(centre)
        self.site = [Moments(s.columns, sets=SETS, device=device) for s in self.sources]
        self.pre = [Moments(s.columns, device=device) for s in self.sources]
        self.histogram = [Histogram(s.columns, device=device) for s in self.sources]
        self.observed: list[set[int]] = [set() for _ in self.sources]
        self.products: dict[Key, Product] = {}
        self.added: dict[Key, set[int]] = {key: set() for key in self.product_keys()}
        self._ledger: Ledger | None = None
        self._dirty: set[str] = set()

    def product_keys(self) -> list[Key]:
        """Keys of all products of the run, by first source, layer and second source; none for a single source."""
        n = len(self.sources)
        return [(i, layer, j) for i, s in enumerate(self.sources) for layer in range(len(s.layers)) for j in range(i, n)] if n > 1 else []

    def pairs(self) -> list[tuple[int, int]]:
        """(i, j), i < j: the pairs of sources that are correlated."""
        return [(i, j) for i in range(len(self.sources)) for j in range(i + 1, len(self.sources))]

    def block(self, i: int, j: int) -> Tensor:
        """Sum over r of (x - centre_x)(y - centre_y) for all neurons of two sources, i < j: [columns of i, columns of j], a copy."""
        return torch.cat([self.product((i, layer, j)).total for layer in range(len(self.sources[i].layers))])

    def product(self, key: Key) -> Product:
        """The product `key`, made of zeros where there is none yet."""
        if key not in self.products:
            self.products[key] = Product(*self._shape(key), precision=self.precision, seed=self.seed, device=self.home)
        return self.products[key]

    def _shape(self, key: Key) -> tuple[int, int]:
        i, _, j = key
        return self.sources[i].width, self.sources[j].columns if i != j else self.sources[i].width

    @property
    def chunks(self) -> set[int]:
        """Ids of the chunks that are in every sum."""
        return set.intersection(*self.observed, *self.added.values()) if self.sources else set()

    @property
    def complete(self) -> bool:
        """Whether every sum holds every chunk of the run."""
        return all(len(held) == self.n_chunks for held in (*self.observed, *self.added.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the products there are."""
        return sum(product.total.nbytes for product in self.products.values())

    @property
    def unsaved(self) -> bool:
        """Whether something was added since the last `save`."""
        return bool(self._dirty) or (self._ledger is not None and self._ledger.opened)

    @property
    def tokens(self) -> int:
        """Tokens of the set r seen so far."""
        return self.site[0].count("r") if self.sources else 0

    def missing(self) -> list[int]:
        """Ids of the chunks that some sum does not hold yet, rising."""
        return sorted(set(range(self.n_chunks)) - self.chunks)

    def observe(self, i: int, chunk: int, site: Moments, pre: Moments, histogram: Histogram) -> None:
        """Add what one chunk says of source i."""
        self.site[i].merge(site)
        self.pre[i].merge(pre)
        self.histogram[i].merge(histogram)
        self.observed[i].add(chunk)
        self._dirty.update(f"{field}-{i}" for field in SEEN)

    def add(self, key: Key, chunk: int, operands: tuple[Packed, Packed] | None) -> None:
        """Add one chunk to the product `key`; None where the chunk has no token to correlate."""
        product = self.product(key)
        if operands is not None:
            product.add(*operands)
        self._hold(key, {chunk})

    def _hold(self, key: Key, chunks: set[int]) -> None:
        self.added[key] |= chunks
        self._dirty.add(_product_name(key))

    def merge(self, other: Totals, *, settle: bool = False) -> None:
        """Add the chunks of another part of the same run; `settle` writes every product (see there) before the next one is read.

        Machines of two kinds may differ in the last bits of their pilot means: products about other centres are brought to those of these, by the moments.

        Raises:
            InputError: it is of another run, or holds a chunk that this one holds too; or its centres differ and its products lack chunks of its moments.
        """
        self.check_mergeable(other)
        for i in range(len(self.sources)):
            for field in SEEN:
                getattr(self, field)[i].merge(getattr(other, field)[i])
                self._dirty.add(f"{field}-{i}")
            self.observed[i] |= other.observed[i]
        for key in self.product_keys():
            if key in other.products:
                self.product(key).merge(other.products[key].about(self.centre_of(key), other._sums(key)))
                self._hold(key, other.added[key])
            if settle:
                self.settle([key])

    def hold(self, observed: Sequence[set[int]], added: dict[Key, set[int]]) -> None:
        """Say which chunks were added to the sums from outside: of every source and every product."""
        for i, chunks in enumerate(observed):
            self.observed[i] |= chunks
            self._dirty.update(f"{field}-{i}" for field in SEEN)
        for key, chunks in added.items():
            self._hold(key, chunks)

    def contains(self, other: Totals) -> bool:
        """Whether every chunk that another part of this run holds is in the same sum here."""
        mine, theirs = ([*t.observed, *t.added.values()] for t in (self, other))
        return all(b <= a for a, b in zip(mine, theirs, strict=True))

    def centre_of(self, key: Key) -> tuple[Tensor, Tensor]:
        """What the product `key` subtracts: float32 [neurons] of either side."""
        i, layer, j = key
        width = self.sources[i].width
        left = self.centre[i][layer * width : (layer + 1) * width].to(self.home)
        return left, left if i == j else self.centre[j].to(self.home)

    def _sums(self, key: Key) -> tuple[Tensor, Tensor]:
        """Sums over r of x - centre of the product `key`, float64 [neurons] of either side: of its tokens, if it holds the chunks of the moments."""
        i, layer, j = key
        width = self.sources[i].width
        whole = [(m.field("count", "r") * (m.field("mean", "r") - c.double())).to(self.home) for m, c in zip(self.site, self.centre, strict=True)]
        left = whole[i][layer * width : (layer + 1) * width]
        return left, left if i == j else whole[j]

    def check_mergeable(self, other: Totals) -> None:
        """Raise what `merge` would, and change nothing."""
        if other.identity != self.identity or other.sources != self.sources or other.n_chunks != self.n_chunks:
            differing = [k for k in self.identity | other.identity if self.identity.get(k) != other.identity.get(k)]
            raise InputError(f"cannot merge totals of different runs: they differ in {', '.join(differing) or 'their models'}")
        mine, theirs = ([*t.observed, *t.added.values()] for t in (self, other))
        if overlap := sorted(set().union(*(a & b for a, b in zip(mine, theirs, strict=True)))):
            raise InputError(f"cannot merge: both totals hold chunk {overlap[0]}" + (f" and {len(overlap) - 1} more" if len(overlap) > 1 else ""))
        same = all(torch.equal(a, b.to(a.device)) for a, b in zip(self.centre, other.centre, strict=True))
        if not same and any(chunks != other.observed[i] for key, chunks in other.added.items() for i in (key[0], key[2])):
            raise InputError(
                "cannot merge: the parts have different centres, and products of one hold other chunks than its moments, which would make them alike: let the "
                "command that made it come to its end"
            )

    def open(self, folder: str | os.PathLike[str]) -> None:
        """Name the folder that `settle` and `save` write to. What is in it already counts where these totals were loaded from it."""
        if self._ledger is None or self._ledger.folder != Path(folder):
            self._ledger = Ledger(Path(folder))
            self._dirty.update(name for name, _, _ in self._parts())
            self._dirty.add("centre")
        elif self.complete and not self.unsaved:  # no save will do it
            self._ledger.tidy(final=True)

    def settle(self, keys: Iterable[Key]) -> None:
        """Write products to the folder that was opened and map them from there, so that they take no memory; they count from the next `save` on.

        Raises:
            FileError: a file cannot be written; what the folder held before is whole.
        """
        if self._ledger is None:
            raise RuntimeError("settle without a folder: call open first")
        for key in keys:
            name = _product_name(key)
            if key in self.products and name in self._dirty:
                path = self._ledger.write(name, self.products[key].save, self.added[key])
                self._dirty.discard(name)
                self.products[key] = Product.load(path, device=self.home)

    def save(self, folder: str | os.PathLike[str], *, final: bool = False) -> None:
        """Write every part that changed since the last save, then the ledger that names them all. A kill at any moment leaves a whole state.

        `final`: nothing is to come, though chunks are missing (the part of one process), so that the state before goes; it does where all are there.

        Raises:
            FileError: the folder cannot be written; what it held before is still whole.
        """
        self.open(folder)
        ledger = self._ledger
        assert ledger is not None
        for name, part, chunks in self._parts():
            if name in self._dirty:
                ledger.write(name, part.save, chunks)
        if "centre" in self._dirty:
            tensors = {str(i): c for i, c in enumerate(self.centre)}
            ledger.write("centre", lambda path: save_state(path, "centre", tensors, {}), [])
        head = {"identity": self.identity, "sources": [asdict(s) for s in self.sources], "n_chunks": self.n_chunks}
        ledger.commit(head | {"precision": self.precision, "seed": self.seed}, final=final or self.complete)
        self._dirty.clear()

    def saved(self, folder: str | os.PathLike[str]) -> int:
        """How many chunks every sum of the last save in a folder holds, as its ledger alone has it: a stop may come in the middle of a save."""
        if not (path := Path(folder) / CURRENT).exists():
            return 0
        parts = read_json(path)["parts"]
        names = [*(f"site-{i}" for i in range(len(self.sources))), *map(_product_name, self.product_keys())]
        return len(set.intersection(*(from_ranges(parts[name]["chunks"], self.n_chunks) if name in parts else set() for name in names)))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", home: torch.device | str | None = None, hashes: bool = True) -> Totals:
        """Read what `save` wrote; where a file of the last save is damaged, what the save before it left, with a warning that names the file.

        Without `hashes` the content of the files is not read for them: for those that another process wrote or checked just now.

        Raises:
            FileError: no ledger, a ledger of another format, or a file that is absent, damaged or of other neurons; names it.
        """
        folder = Path(folder)
        try:
            return cls._load(folder / CURRENT, device, home, hashes)
        except FileError as error:
            if not (folder / PREVIOUS).exists():
                raise
            try:
                totals = cls._load(folder / PREVIOUS, device, home, hashes)
            except FileError:
                raise error from None
            log.warning("%s. Going back to the checkpoint before it, which holds %d of %d chunks.", error, len(totals.chunks), totals.n_chunks)
            return totals

    @classmethod
    def _load(cls, path: Path, device: torch.device | str, home: torch.device | str | None, hashes: bool) -> Totals:
        ledger = Ledger.read(path, hashes=hashes)
        head = ledger.head
        try:
            check_fields(head, {"identity": "an object", "n_chunks": "a whole number", "precision": "text", "seed": "an integer"}, path)
            if head["precision"] not in PRECISIONS or head["n_chunks"] > MOST_CHUNKS:
                raise FileError(f"{path} is damaged: there is no precision {head['precision']!r}, or nobody makes {head['n_chunks']:,} chunks; {AGAIN}")
            sources = [SourceInfo(**s) for s in check_sources(head.get("sources"), path)]
            centre, _ = load_state(ledger.path("centre"), "centre", tensors={str(i): ((torch.float32,), 1) for i in range(len(sources))})
            for i, source in enumerate(sources):  # before memory is taken for so many columns
                if len(centre[str(i)]) != source.columns:
                    raise FileError(f"{ledger.path('centre')} holds {len(centre[str(i)])} neurons of {source.name}, not {source.columns}; {AGAIN}")
            totals = cls(
                sources,
                identity=head["identity"],
                n_chunks=head["n_chunks"],
                centre=[centre[str(i)].to(device) for i in range(len(sources))],
                precision=head["precision"],
                seed=head["seed"],
                device=device,
                home=home,
            )
            totals._load_parts(ledger)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is damaged ({error!r}); {AGAIN}") from error
        counts = {_product_name(key): product.tokens for key, product in totals.products.items()} if totals.complete else {}
        if len(set(counts.values())) > 1:
            least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            there = f"{ledger.path(least)} is of {counts[least]:,} tokens, {ledger.path(most)} of {counts[most]:,}"
            raise FileError(f"{there}: one belongs to another run; {AGAIN}")
        totals._ledger = ledger
        return totals

    def _load_parts(self, ledger: Ledger) -> None:
        for i, source in enumerate(self.sources):
            for field, kind in SEEN.items():
                name = f"{field}-{i}"
                part = kind.load(ledger.path(name), device=self.device)
                if part.neurons != source.columns:
                    raise FileError(f"{ledger.path(name)} holds {part.neurons} neurons, not {source.columns}: it belongs to another run")
                if isinstance(part, Moments) and part.sets != (due := getattr(self, field)[i].sets):
                    raise FileError(f"{ledger.path(name)} is damaged: it holds the token sets {', '.join(part.sets)}, not {', '.join(due)}; {AGAIN}")
                getattr(self, field)[i] = part
            self.observed[i] = from_ranges(ledger.entries[f"site-{i}"].chunks, self.n_chunks)
        for key in self.product_keys():
            name = _product_name(key)
            if name in ledger.entries:
                self.products[key] = Product.load(ledger.path(name), device=self.home)
                if (found := tuple(self.products[key].total.shape)) != self._shape(key):
                    raise FileError(f"{ledger.path(name)} holds {found} neurons, not {self._shape(key)}: it belongs to another run")
                self.added[key] = from_ranges(ledger.entries[name].chunks, self.n_chunks)

    def _parts(self) -> Iterable[tuple[str, Any, set[int]]]:
        """Name, state and chunks of every part there is."""
        for field in SEEN:
            for i, part in enumerate(getattr(self, field)):
                yield f"{field}-{i}", part, self.observed[i]
        for key, product in self.products.items():
            yield _product_name(key), product, self.added[key]


def _product_name(key: Key) -> str:
    i, layer, j = key
    return f"within-{i}-{layer}" if i == j else f"cross-{i}-{layer}-{j}"
