"""Memory of what a run does with its models after the pass, from their shapes: the sums of candidates, the confirmation, the null."""

from __future__ import annotations

from .confirmation import BATCHES, CANDIDATES, STEPS
from .layout import BYTES, DTYPE_BYTES, Shapes
from .repairing import part_rows, ring

MOST_PARTS = 32  # of the null's products: each costs a run of the models
NULL_BUDGET = 4e9  # bytes of the null's products in all, so that its sample is a property of the run
DRAWS, DECILES, PER_STRATUM = 3, 10, 40  # of the null, as `universality.nulls` has them
# A batch on its way through a model, and what batches before it left to the allocator. Measured: the null of three models took 1.36 GB (1.36 planned, 1.17 with
# one batch), in four parts 1.04 GB (1.01, 0.81); candidates of six models, whose chunk is one batch, 0.63 to 0.66 GB (0.66, 0.58).
BATCHES_HELD, OF_PAIRING = 2, 1.5
PAIRING_TOKENS = 2_048  # whose activations of all sources `confirm_pass` holds


def candidates_bytes(shapes: Shapes) -> float:
    """Of the sums of the candidates and the pass that makes them; 0 for a single source."""
    return _pairing(shapes, candidates=CANDIDATES, batches=STEPS)


def confirm_bytes(shapes: Shapes) -> float:
    """Of the confirmation; 0 for a single source."""
    return _pairing(shapes, candidates=1, batches=BATCHES)


def sums_bytes(shapes: Shapes, *, candidates: int, batches: int) -> float:
    """Of `Confirmation`: float64 sums of every ordered pair with the partners' int64 indices, and count, mean and M2 of every neuron."""
    columns = sum(s.columns for s in shapes.sources)
    return float(columns * ((len(shapes.sources) - 1) * candidates * (8 * batches + 8) + batches * 3 * 8))


def _pairing(shapes: Shapes, *, candidates: int, batches: int) -> float:
    if len(shapes.sources) < 2:
        return 0.0
    activations = PAIRING_TOKENS * DTYPE_BYTES[shapes.dtype] * sum(s.columns for s in shapes.sources)
    moments = 2 * 8 * 8 * max(s.columns for s in shapes.sources)
    return sums_bytes(shapes, candidates=candidates, batches=batches) + activations + moments + OF_PAIRING * shapes.batch_bytes(shapes.sources)


def null_products(shapes: Shapes, *, parts: int = 1) -> float:
    """Of the null's products, those of the largest of so many parts of the sampled neurons."""
    return _products(shapes, sampled(shapes), parts)


def sampled(shapes: Shapes) -> list[int]:
    """How many neurons of each source the null samples: halved until their products keep the budget."""
    per_stratum = PER_STRATUM
    while _products(shapes, chosen := _at_most(shapes, per_stratum), 1) > NULL_BUDGET and per_stratum > 1:
        per_stratum //= 2
    return chosen


def _at_most(shapes: Shapes, per_stratum: int) -> list[int]:
    return [s.layers * min(s.width, DECILES * per_stratum) for s in shapes.sources]


def _products(shapes: Shapes, chosen: list[int], parts: int) -> float:
    return float(DRAWS * shapes.cell_bytes * sum(part_rows(chosen[i], parts) * shapes.sources[j].columns for i, j in ring(len(chosen))))


def null_work(shapes: Shapes) -> float:
    """Of the null beside its products: the activations of half a chunk and a reordered copy, operands of all draws, moments; 0 for one source."""
    if len(shapes.sources) < 2:
        return 0.0
    tokens, columns, chosen = shapes.chunk_tokens // 2, [s.columns for s in shapes.sources], _at_most(shapes, PER_STRATUM)
    activations = DTYPE_BYTES[shapes.dtype] * 2 * (max(columns) + max(chosen))
    # All of the first source to the end of the ring, one of the others, and the chosen of two neighbours.
    operands = BYTES[shapes.precision] * (DRAWS * (columns[0] + 2 * max(chosen)) + max(columns))
    moments = 8 * 8 * DRAWS * (sum(columns) + sum(chosen) + columns[0])
    return float(tokens * (activations + operands) + moments + BATCHES_HELD * shapes.batch_bytes(shapes.sources))


def null_bytes(shapes: Shapes, room: float) -> float:
    """Of the null where `room` bytes are free: in as few parts as fit; 0 where none do, since it is left out then."""
    if len(shapes.sources) < 2:
        return 0.0
    return next((needs for parts in range(1, MOST_PARTS + 1) if (needs := null_work(shapes) + null_products(shapes, parts=parts)) <= room), 0.0)
