"""Where the products of a run live: all in memory, in the host's memory or on disk and visited once a chunk, or some at a time, in sweeps over the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..totals import Key

BYTES = {"int8": 1, "bf16": 2, "float32": 4, "float64": 8}
DTYPE_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "tf32": 4}
# A neuron's streaming state: float64 moments (8 fields; 3 token sets of the site and one of the pre-activation) and 257 counts.
STATE_BYTES = 4 * 8 * 8 + 257 * 8
WORDS = {
    "resident": "all in memory",
    "host": "in the host's memory; each visits the device once a chunk",
    "disk": "on disk; each is read and written once a chunk",
    "sweeps": "some at a time, in {n} sweeps over the tokens",
}


def size(count: float) -> str:
    """Bytes as people write them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


@dataclass(frozen=True)
class SourceShape:
    """The shape of one source: a model's parameters (all, and those of the blocks alone), how many layers take part, neurons a layer, d_model, d_vocab."""

    name: str
    parameters: int
    block_parameters: int
    layers: int
    width: int
    d_model: int = 0
    d_vocab: int = 0

    @property
    def columns(self) -> int:
        """Neurons in all."""
        return self.layers * self.width


@dataclass(frozen=True)
class Shapes:
    """What the memory of a pass depends on."""

    sources: tuple[SourceShape, ...]
    precision: str
    dtype: str
    site: str
    chunk_tokens: int
    batch_tokens: int

    @property
    def cell_bytes(self) -> int:
        """Of one number of a product."""
        return 8 if self.precision == "float64" else 4

    def product_keys(self) -> list[Key]:
        """Products of the run, as `Totals.product_keys` has them, pair by pair: so a group of neighbours has few sources."""
        n = len(self.sources)
        pairs = [(i, j) for i in range(n) for j in range(i, n)] if n > 1 else []
        return [(i, layer, j) for i, j in pairs for layer in range(self.sources[i].layers)]

    @property
    def totals_bytes(self) -> float:
        """Of all products."""
        return float(sum(self.block_bytes(key) for key in self.product_keys()))

    def block_bytes(self, key: Key) -> int:
        """Of one product."""
        i, _, j = key
        return self.cell_bytes * self.sources[i].width * (self.sources[j].columns if i != j else self.sources[i].width)

    def chunk_bytes(self, involved: Sequence[int] | None = None) -> float:
        """Of the pass beside the products, while these sources run: activations of one, operands of all, a batch on its way through, the moments."""
        running = [self.sources[i] for i in involved] if involved is not None else list(self.sources)
        widest = max(s.columns for s in running)
        sites = 1 if self.site == "mlp.pre" else 2
        activations = self.chunk_tokens * sites * DTYPE_BYTES[self.dtype] * widest
        operands = self.chunk_tokens * BYTES[self.precision] * sum(s.columns for s in running) if len(self.sources) > 1 else 0
        # Of all sources since the start; of those that run, once more for the chunk.
        state = STATE_BYTES * (sum(s.columns for s in self.sources) + sum(s.columns for s in running))
        return float(activations + self.batch_bytes(running) + operands + state)

    def batch_bytes(self, running: Sequence[SourceShape]) -> float:
        """Of a batch on its way through one of these: all recorded layers at once, and what a block makes on the way."""
        widest = max(s.columns for s in running)
        return float(self.batch_tokens * DTYPE_BYTES[self.dtype] * (2 * widest + 3 * max(s.width for s in running) + 8 * max(s.d_model for s in running)))


@dataclass(frozen=True)
class Layout:
    """One way to keep the products of a pass.

    Attributes:
        storage: "resident", "host", "disk" or "sweeps".
        memory_bytes: peak on the device, models not counted. host_bytes: in the host's memory besides, where that is another.
        disk_bytes: of the totals' folder at its fullest, where the disk has no room for a third generation of them.
        sweeps: groups of products, one for each time the tokens go through the models.
        runs: how many times a model goes over the tokens, summed over the models.
        moved_bytes: between memory and disk (or device) in every chunk.
    """

    storage: str
    memory_bytes: float
    host_bytes: float
    disk_bytes: float
    runs: int
    moved_bytes: float = 0.0
    sweeps: tuple[tuple[Key, ...], ...] = field(default=(), repr=False)

    @property
    def words(self) -> str:
        """How a person is told."""
        return WORDS[self.storage].format(n=len(self.sweeps))

    def lack(self, *, memory: float, host: float, disk: float) -> str | None:
        """What it needs and these free bytes do not give, in words; None if it fits."""
        for needs, free, where in ((self.memory_bytes, memory, "memory"), (self.host_bytes, host, "memory of the host"), (self.disk_bytes, disk, "disk")):
            if needs > free:
                return f"{size(needs)} of {where} ({size(max(free, 0))} free)"
        return None


def layouts(shapes: Shapes, *, memory: float, cuda: bool) -> Iterator[Layout]:
    """Every way to keep the products, the fastest usual one first; sweeps as few as fit in `memory` free bytes, or one product each."""
    keys = shapes.product_keys()
    sizes = {key: shapes.block_bytes(key) for key in keys}
    total, largest = float(sum(sizes.values())), float(max(sizes.values(), default=0))
    chunk, n = shapes.chunk_bytes(), len(shapes.sources)
    yield Layout("resident", total + chunk, 0.0, 2 * total, n)
    if not keys:
        return
    if cuda:
        yield Layout("host", largest + chunk, total, 2 * total, n, moved_bytes=2 * total)
    groups = _groups(shapes, sizes, memory)
    needs = max(sum(sizes[key] for key in group) + shapes.chunk_bytes(_involved(group)) for group in groups)
    fullest = total + max(float(sum(sizes[key] for key in group)) for group in groups)
    yield Layout("sweeps", needs, 0.0, fullest, sum(len(_involved(group)) for group in groups), sweeps=tuple(tuple(group) for group in groups))
    yield Layout("disk", largest + chunk, largest if cuda else 0.0, 2 * total, n, moved_bytes=2 * total)


def _groups(shapes: Shapes, sizes: dict[Key, int], memory: float) -> list[list[Key]]:
    """Neighbouring products together as long as they fit in `memory` bytes."""
    groups: list[list[Key]] = []
    held = 0.0
    for key, size in sizes.items():
        if groups and held + size + shapes.chunk_bytes(_involved([*groups[-1], key])) <= memory:
            groups[-1].append(key)
            held += size
        else:
            groups.append([key])
            held = float(size)
    return groups


def _involved(group: Sequence[Key]) -> list[int]:
    return sorted({i for key in group for i in (key[0], key[2])})
