"""Memory of what a run does after the pass, from its models' shapes: the sums of candidates, the confirmation, the null, the rotations of the tables."""

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
ROTATED_ROWS = 4_096  # of a product that are rotated at once
ROTATED_SHARE = 0.25  # of the free memory, for rotations of products that do not fit in it
# On a GPU the summary of a product takes, for each of its numbers, 1 byte for the largest r of groups and 1/4 + 1/8 for sums; for each partner that is kept of
# a neuron of either side, at both ends, 32 for values, places and their sorted copies.
SUMMARY_BYTES, PARTNER_BYTES = 1.375, 64
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


def rotation_room(totals_bytes: float, free: float) -> float:
    """Bytes for rotations where `free` ones are. Products that fit in memory stay there once they are read: layers are rotated one by one then."""
    return ROTATED_SHARE * free if totals_bytes > free else 0.0


def rotated_together(layers: int, width: int, *, draws: int, cell_bytes: int, room_bytes: float) -> int:
    """How many layers the baseline rotates at once."""
    return max(1, min(layers, int(room_bytes // _rotated_bytes(width, draws, cell_bytes))))


def _rotated_bytes(width: int, draws: int, cell_bytes: int) -> int:
    """Of a layer's rotations, and of the part of a product that meets them."""
    return (draws * width + ROTATED_ROWS) * width * cell_bytes


def _layers_rotated(shapes: Shapes, draws: int, room: float) -> list[int]:
    rotations = rotation_room(shapes.totals_bytes, room)
    return [rotated_together(s.layers, s.width, draws=draws, cell_bytes=shapes.cell_bytes, room_bytes=rotations) for s in shapes.sources]


def rotating_bytes(shapes: Shapes, *, draws: int, room: float) -> float:
    """Of the baseline where `room` bytes are free; 0 for a single source."""
    if len(shapes.sources) < 2:
        return 0.0
    needs = []
    for source, layers in zip(shapes.sources, _layers_rotated(shapes, draws, room), strict=True):
        making = 5 * 8 * source.width**2  # float64 matrices on the way to a rotation
        at_work = 3 * ROTATED_ROWS * source.width * shapes.cell_bytes
        needs.append(layers * _rotated_bytes(source.width, draws, shapes.cell_bytes) + making + at_work)
    return float(max(needs))


def visiting_bytes(shapes: Shapes, *, top_k: int) -> float:
    """Of the summaries of the products on a GPU, which they visit one by one: the largest; 0 for a single source."""
    needs = [0.0]
    for i, layer, j in ((i, layer, j) for i, layer, j in shapes.product_keys() if i != j):
        product, neurons = shapes.block_bytes((i, layer, j)), shapes.sources[i].width + shapes.sources[j].columns
        needs.append(product * (1 + SUMMARY_BYTES / shapes.cell_bytes) + PARTNER_BYTES * top_k * neurons)
    return max(needs)


def rotations_read(shapes: Shapes, *, draws: int, room: float) -> float:
    """Bytes of products that the baseline reads from the disk where `room` bytes are free, 0 where they stay in memory.

    Once for the neurons of the second source, and for those of the first once for all layers of the second that are rotated together.
    """
    if shapes.totals_bytes <= room:
        return 0.0
    times = [-(-s.layers // together) for s, together in zip(shapes.sources, _layers_rotated(shapes, draws, room), strict=True)]
    return float(sum(shapes.block_bytes((i, layer, j)) * (1 + times[j]) for i, layer, j in shapes.product_keys() if i != j))
