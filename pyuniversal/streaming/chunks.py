r"""The corpus cut into chunks of a fixed number of rows, and the order of the tokens inside one.

Inside a chunk tokens are ordered r, rest of test, rest of all (`pyuniversal.totals.SETS`), so that a token set is a shorter matrix and never a mask:

    r     no BOS, no padding, not the single token "\n"        correlations
    test  no BOS, no padding                                    families
    all   no padding                                            moments of the pre-activation, histograms, firing frequency
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..sources import Source
from ..tokens import Tokens


@dataclass(frozen=True)
class Batch:
    """Rows of a chunk that run together, and where their tokens go in the chunk's matrices.

    rows: their indices in the corpus. ids: int64 [rows, positions]. destination: int64 [rows x positions], row of the chunk's matrices; for padding the one
    after the last.
    """

    rows: np.ndarray
    ids: Tensor
    destination: Tensor


@dataclass(frozen=True)
class Chunk:
    """A unit of the ledger: its batches, the ends of the token sets (r, test, all), and the global index of every token in r, int64 [ends[0]]."""

    batches: list[Batch]
    ends: tuple[int, int, int]
    keys: Tensor


def choose_rows(tokens: Tokens, *, max_tokens: int | None, seed: int) -> np.ndarray:
    """Rows of the pass, in its order: a seeded shuffle of those whose documents are not held out.

    With `max_tokens`, as many whole rows from the first on as hold at most so many real tokens, BOS included.

    Raises:
        InputError: nothing is left.
    """
    candidates = np.flatnonzero(~tokens.held_out(seed)[tokens.documents])
    rows = np.random.default_rng(seed).permutation(candidates)
    if max_tokens is not None:
        reached = np.cumsum(tokens.lengths[rows])
        rows = rows[: int(np.searchsorted(reached, max_tokens, side="right"))]
    if tokens.lengths[rows].sum() - len(rows) < 2:
        raise InputError(
            f"{tokens.path}: {tokens.n_rows} rows of {tokens.n_documents} documents leave fewer than two tokens for the pass (one document in ten is held out "
            "for confirmation); give more text or allow more tokens"
        )
    return rows


def make_chunk(tokens: Tokens, rows: np.ndarray, *, batch_tokens: int, device: torch.device | str) -> Chunk:
    """Lay out one chunk: rows batched by similar length, every real token given its place in the order r, rest of test, rest of all."""
    rows = rows[np.argsort(tokens.lengths[rows], kind="stable")]
    ids, lengths = tokens.rows(rows)  # [rows, positions], [rows]
    keep = torch.arange(ids.shape[1]) < lengths[:, None]
    rank = torch.where(ids == tokens.bos, 2, 0)
    if tokens.newline is not None:
        rank = torch.where(ids == tokens.newline, 1, rank)
    rank = rank[keep]  # [kept tokens], row-major
    order = torch.argsort(rank, stable=True)
    destination = torch.empty_like(order)
    destination[order] = torch.arange(len(order))
    ends = tuple(int(n) for n in torch.bincount(rank, minlength=3).cumsum(0))
    keys = (torch.as_tensor(rows, dtype=torch.int64)[:, None] * tokens.row_tokens + torch.arange(ids.shape[1]))[keep][order][: ends[0]]
    place = torch.full(ids.shape, ends[2])  # [rows, positions]
    place[keep] = destination
    batches = []
    per_batch = max(1, batch_tokens // ids.shape[1])
    for start in range(0, len(rows), per_batch):
        some = slice(start, start + per_batch)
        longest = int(lengths[some].max())
        batches.append(Batch(rows[some], _sent(ids[some, :longest], device), _sent(place[some, :longest].flatten(), device)))
    return Chunk(batches, (ends[0], ends[1], ends[2]), _sent(keys, device))


def _sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device, which gets there when it has done what it was given before: the host does not wait, as it would if the memory were not pinned."""
    return x.contiguous().pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def gather(source: Source, chunk: Chunk, buffers: dict[str, Tensor] | None = None, *, sites: Collection[str] | None = None) -> dict[str, Tensor]:
    """Run a source over a chunk: site -> [tokens, columns], tokens in the chunk's order; of all sites that it yields, or of these alone.

    `buffers` is memory of an earlier call, used again where it fits, and holds that of this one afterwards: new memory of this size costs more time to get from
    the system than the activations to write. What an earlier call returned is then overwritten.
    """
    buffers = {} if buffers is None else buffers
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for batch in chunk.batches:
            for site, layers in source.activations(batch.ids).items():
                if sites is not None and site not in sites:
                    continue
                for number, x in enumerate(layers):
                    x = x.to(batch.destination.device).flatten(0, 1)  # a model that was handed in stays where it was
                    if site not in found:
                        found[site] = _reuse(buffers, site, chunk.ends[2] + 1, len(layers) * source.width, x)
                    _put(found[site][:, number * source.width : (number + 1) * source.width], batch.destination, x, f"{source.name}: {site}")
                del x, layers  # before the next batch runs: these are as large as all that it records of one site
    return {site: matrix[: chunk.ends[2]] for site, matrix in found.items()}


def _reuse(buffers: dict[str, Tensor], site: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """The buffer of a site, [rows or more, columns], made anew where it does not fit."""
    known = buffers.get(site)
    if known is None or known.shape[1] != columns or known.shape[0] < rows or known.dtype != like.dtype or known.device != like.device:
        buffers.pop(site, None)  # before the next one is made
        del known
        known = buffers[site] = torch.empty(rows, columns, dtype=like.dtype, device=like.device)
    return known


def _put(columns: Tensor, destination: Tensor, x: Tensor, name: str) -> None:
    """columns[destination[t]] = x[t]; on a CPU by numpy, which is six times as fast as index_copy_."""
    if x.shape != (len(destination), columns.shape[1]) or x.dtype != columns.dtype:
        due = f"{columns.dtype} {[len(destination), columns.shape[1]]}"
        raise InputError(f"{name} came as {x.dtype} {list(x.shape)}, not {due}: all layers of a source have its width and one dtype")
    if x.is_cpu:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]  # numpy knows no bfloat16
        columns.view(bits).numpy()[destination.numpy()] = x.view(bits).numpy()
    else:
        columns.index_copy_(0, destination, x)


def row_of(chunk: Chunk, place: int) -> tuple[int, int]:
    """Row of the corpus and position in it of one place in the chunk's matrices."""
    for batch in chunk.batches:
        hit = (batch.destination == place).nonzero()
        if len(hit):
            row, position = divmod(int(hit[0]), batch.ids.shape[1])
            return int(batch.rows[row]), position
    raise ValueError(f"no token at {place}")
