"""What the chosen partners do on further documents: moments of every source and sums of every ordered pair, by batches of documents, and their files.

confirmation.json         format, identity, sources, batches
pairs.safetensors         partners of every ordered pair, centre of every source
batch-N.safetensors       moments and sums of one batch of documents, written once, when it is finished
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError, InputError
from ..files import check_fields, read_json, sha256, tidy, write_json
from ._state import check_sources, damaged, load_state, save_state
from .batch_moments import BatchMoments
from .pair_sums import PairSums
from .totals import SourceInfo

FORMAT = 1
MOST_BATCHES = 10_000  # each is a file
LEDGER, PAIRS = "confirmation.json", "pairs.safetensors"

Partners = Mapping[tuple[int, int], Tensor]


class Confirmation:
    """Streaming state of the confirmation of partners, by batches of documents.

    Args:
        sources: the blocks of columns.
        partners: (i, j) -> int64 [columns of i, candidates], columns of j or -1.
        centre: per source, [columns].
        batches: of documents.
        identity: what else the sums are of (token hash, rows); JSON-able.
        device: that of the activations.

    Attributes:
        moments: per source.
        pairs: (i, j) -> sums of source i with its partners in source j.
        done: batches that are finished.
        identity: as given, and hashes of partners and centres.
    """

    def __init__(
        self,
        sources: Sequence[SourceInfo],
        *,
        partners: Partners,
        centre: Sequence[Tensor],
        batches: int,
        identity: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.sources, self.batches, self.done = list(sources), batches, set[int]()
        self.centre = [c.to(device).double() for c in centre]
        self.moments = [BatchMoments(batches, s.columns, device=device) for s in self.sources]
        self.pairs: dict[tuple[int, int], PairSums] = {}
        for (i, j), partner in sorted(partners.items()):
            self._check(i, j, partner)
            self.pairs[i, j] = PairSums(partner, centre_x=self.centre[i], centre_y=self.centre[j], batches=batches, device=device)
        parts = [part for (i, j), pair in self.pairs.items() for part in (f"{i},{j}", *_bytes(pair.partner))]
        self.identity = {**identity, "partners": sha256(*parts), "centres": sha256(*(part for c in self.centre for part in _bytes(c)))}

    def _check(self, i: int, j: int, partner: Tensor) -> None:
        columns = [s.columns for s in self.sources]
        if [len(c) for c in self.centre] != columns:
            raise InputError(f"the centres are of {[len(c) for c in self.centre]} neurons, the sources of {columns}")
        if partner.dtype != torch.int64 or partner.ndim != 2 or partner.shape[0] != columns[i]:
            raise InputError(f"partners of source {i} in {j} must be int64 [{columns[i]}, candidates], not {partner.dtype} {list(partner.shape)}")
        if partner.numel() and not -1 <= int(partner.min()) <= int(partner.max()) < columns[j]:
            raise InputError(f"partners of source {i} in {j} must be neurons of it, 0 to {columns[j] - 1}, or -1")

    def missing(self) -> list[int]:
        """Batches that are not finished, rising."""
        return sorted(set(range(self.batches)) - self.done)

    def start(self, folder: str | os.PathLike[str]) -> None:
        """Write what the batches' files will be of.

        Raises:
            FileError: the folder cannot be written.
        """
        folder = Path(folder)
        tensors = {f"partner-{i}-{j}": pair.partner for (i, j), pair in self.pairs.items()}
        save_state(folder / PAIRS, "partners", tensors | {f"centre-{i}": c.clone() for i, c in enumerate(self.centre)}, {})
        ledger = {"format": FORMAT, "identity": self.identity, "sources": [asdict(s) for s in self.sources], "batches": self.batches}
        write_json(folder / LEDGER, ledger)  # the last, so that a folder that has it is whole

    def finish(self, batch: int, folder: str | os.PathLike[str] | None) -> None:
        """Mark a batch as finished and write its part to `folder`, if there is one.

        Raises:
            FileError: it cannot be written; the batch counts as not finished.
        """
        if folder is not None:
            tensors = {f"moments-{i}": m.state[batch] for i, m in enumerate(self.moments)}
            tensors |= {f"sums-{i}-{j}": p.sums[batch] for (i, j), p in self.pairs.items()}
            counts = [int(p.tokens[batch]) for p in self.pairs.values()]
            save_state(_batch_file(folder, batch), "confirmed batch", tensors, {"identity": self.identity, "tokens": counts})
        self.done.add(batch)
        if folder is not None and not self.missing():
            tidy(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Confirmation:
        """Read what `start` and `finish` wrote; `done` tells which batches there are.

        Raises:
            FileError: no such state, one of another format, or a file that is damaged or of another run; names it.
        """
        folder = Path(folder)
        ledger = check_fields(read_json(folder / LEDGER), {"format": "a whole number"}, folder / LEDGER)
        if ledger["format"] != FORMAT:
            raise FileError(f"{folder / LEDGER} has format {ledger['format']}; this version of pyuniversal reads {FORMAT}")
        check_fields(ledger, {"identity": "an object", "batches": "a whole number"}, folder / LEDGER)
        sources = [SourceInfo(**s) for s in check_sources(ledger.get("sources"), folder / LEDGER)]
        if not 0 < ledger["batches"] <= MOST_BATCHES:
            raise damaged(folder / LEDGER, f"it has {ledger['batches']} batches, not 1 to {MOST_BATCHES:,}")
        centres = {f"centre-{i}": ((torch.float64,), 1) for i in range(len(sources))}
        tensors, _ = load_state(folder / PAIRS, "partners", device, tensors=centres)
        every = range(len(sources))
        partners = {(i, j): tensors[f"partner-{i}-{j}"] for i in every for j in every if f"partner-{i}-{j}" in tensors}
        centre = [tensors[name] for name in centres]
        for (i, j), partner in partners.items():
            if partner.dtype != torch.int64 or partner.ndim != 2 or (partner < -1).any() or (partner >= sources[j].columns).any():
                raise damaged(folder / PAIRS, f"partners of source {i} in {j} are none of it")
        if [len(c) for c in centre] != [s.columns for s in sources] or any(len(p) != sources[i].columns for (i, _), p in partners.items()):
            raise damaged(folder / PAIRS, "its neurons are not those of the ledger")
        state = cls(sources, partners=partners, centre=centre, batches=ledger["batches"], identity=ledger["identity"], device=device)
        if state.identity != ledger["identity"]:
            raise FileError(f"{folder / PAIRS} and {folder / LEDGER} are of different runs; make the confirmation again")
        for batch in range(state.batches):
            if _batch_file(folder, batch).exists():
                state._read(batch, _batch_file(folder, batch), device)
        return state

    def _read(self, batch: int, path: Path, device: torch.device | str) -> None:
        tensors, meta = load_state(path, "confirmed batch", device, meta={"identity": "an object", "tokens": "a list"})
        places = {f"moments-{i}": m.state[batch] for i, m in enumerate(self.moments)} | {f"sums-{i}-{j}": p.sums[batch] for (i, j), p in self.pairs.items()}
        if meta["identity"] != self.identity or {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in places.items()}:
            raise FileError(f"{path} belongs to another confirmation than the other files of its folder; remove it, and its documents are run again")
        if len(meta["tokens"]) != len(self.pairs) or any(type(count) is not int or not 0 <= count < 2**53 for count in meta["tokens"]):
            raise damaged(path, "it counts tokens in numbers that are none")
        if any(tensor.dtype != torch.float64 for tensor in tensors.values()):
            raise damaged(path, "its sums are not in float64")
        for name, place in places.items():
            place.copy_(tensors[name])
        for pair, count in zip(self.pairs.values(), meta["tokens"], strict=True):
            pair.tokens[batch] = count
        self.done.add(batch)


def _batch_file(folder: str | os.PathLike[str], batch: int) -> Path:
    return Path(folder) / f"batch-{batch}.safetensors"


def _bytes(tensor: Tensor) -> tuple[str, bytes]:
    return str(list(tensor.shape)), tensor.cpu().contiguous().numpy().tobytes()
