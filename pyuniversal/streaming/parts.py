"""The folder of a pass: what an earlier run left there, and the folders of ranks within it.

OUT/ has the totals of rank 0, and of a process alone; in the end those of all. OUT/rank-K/ has those of rank K, until they are added to those of rank 0.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..totals import SourceInfo, Totals
from ..totals.ledger import CURRENT, PREVIOUS
from .ranks import Ranks, held, reduce_

log = logging.getLogger(__name__)


def folder_of(out: Path, rank: int) -> Path:
    """Where a rank saves its totals."""
    return out / f"rank-{rank}" if rank else out


def rank_folders(out: Path) -> dict[int, Path]:
    """Folders of ranks that a run left, by number."""
    found = {int(match[1]): path for path in out.glob("rank-*") if (match := re.fullmatch(r"rank-([1-9]\d*)", path.name))}
    return dict(sorted(found.items()))


def begin(
    out: Path | None,
    infos: Sequence[SourceInfo],
    identity: dict[str, Any],
    *,
    ranks: Ranks,
    make: Callable[[list[Tensor] | None], Totals],
    home: Any,
    device: Any,
) -> Totals:
    """The totals of this rank, with what earlier runs left for it; complete ones are complete on every rank.

    `infos` and `identity`: what the totals in `out` must be of. `make` makes empty ones about a centre, or about one that it finds itself.

    Raises:
        InputError: `out` holds the totals of another run, or the ranks differ.
    """
    if out is None:
        if ranks.world > 1:
            raise InputError("several processes need a folder, out, where they leave their sums")
        return make(None)
    ranks.agree({"home": torch.device(home).type, "identity": identity, "sources": [(s.name, s.site, s.layers, s.width, s.hash) for s in infos]})
    totals = None
    if ranks.rank == 0:
        totals = resume(out, infos, identity, device=device, home=home) or make(None)
        if ranks.world > 1 and not totals.chunks:
            totals.save(out)  # the centre, which all parts of the run must share, whatever happens to this rank
    centre = [ranks.broadcast(totals.centre[i] if totals else torch.empty(s.columns, device=device)) for i, s in enumerate(infos)]
    if bool(ranks.broadcast(torch.tensor(totals is not None and totals.complete))):
        return _completed(totals, out, ranks, device=device, home=home)
    if totals is None:
        totals = resume(folder_of(out, ranks.rank), infos, identity, device=device, home=home) or make(centre)
    first = ranks.broadcast(held(totals))
    if ranks.rank and bool((held(totals) <= first).all()):  # rank 0 took it over, and was killed before the folder of this one was gone
        totals = make(centre)
    adopt(totals, out, ranks, device=device, home=home)
    return totals


def resume(folder: Path, infos: Sequence[SourceInfo], identity: dict[str, Any], *, device: Any, home: Any) -> Totals | None:
    """The totals in a folder, if there are any.

    Raises:
        InputError: they are of another run; says in what it differs.
    """
    if not any((folder / name).exists() for name in (CURRENT, PREVIOUS)):
        return None
    totals = Totals.load(folder, device=device, home=home)
    differing = [f"{k} ({totals.identity.get(k)} there, {v} asked for)" for k, v in identity.items() if totals.identity.get(k) != v]
    if totals.sources != list(infos):
        differing.append("models, layers or site")
    if differing:
        raise InputError(f"{folder} holds the totals of another run; it differs in {', '.join(differing)}. Choose another --out, or --overwrite.")
    if totals.chunks and not totals.complete:
        log.info("resuming: %d of %d chunks are done", len(totals.chunks), totals.n_chunks)
    elif totals.complete:
        log.info("the pass in %s is complete; its sums are taken as they are", folder)
    return totals


def adopt(totals: Totals, out: Path, ranks: Ranks, *, device: Any, home: Any) -> None:
    """Take over what other ranks of an earlier run left: of rank r by rank r modulo how many there are now.

    Raises:
        InputError: a folder holds the sums of another run.
    """
    own = folder_of(out, ranks.rank)
    for number, folder in rank_folders(out).items():
        if number % ranks.world != ranks.rank or folder == own:
            continue
        part = resume(folder, totals.sources, totals.identity, device=device, home=home)
        if part is not None and not totals.contains(part):  # it does where a kill came between the two next lines
            totals.open(own)
            totals.merge(part, settle=True)
            totals.save(own)
            log.info("took over %d chunks of an earlier rank %d", len(part.chunks), number)
        _discard(folder)


def _discard(folder: Path) -> None:
    """Remove the folder of a rank; the ledgers first, so that a kill leaves none that names files which are gone."""
    for name in (CURRENT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder)


def finish(totals: Totals, out: Path | None, ranks: Ranks, *, settle: bool, device: Any, home: Any) -> Totals:
    """The totals of all ranks, saved: the state of rank 0 counts them from one rename on, and only then the folders of ranks go."""
    if out is None or (ranks.world == 1 and totals.complete):
        return totals
    reduce_(totals, ranks, settle=settle)
    if ranks.rank == 0:
        totals.save(out, final=True)
    return _completed(totals if ranks.rank == 0 else None, out, ranks, device=device, home=home)


def _completed(totals: Totals | None, out: Path, ranks: Ranks, *, device: Any, home: Any) -> Totals:
    """What rank 0 has in `out`, on every rank."""
    ranks.wait()
    if totals is None:
        totals = Totals.load(out, device=device, home=home, hashes=False)  # rank 0 wrote or checked them just now
    for folder in rank_folders(out).values() if ranks.rank == 0 else ():
        _discard(folder)
    return totals
