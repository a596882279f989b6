"""The partners of every neuron when the dense product saw a part of the tokens and only its best candidates were summed over the rest."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import FileError
from ..totals import Confirmation, Totals
from ..totals.confirmation import LEDGER
from .partners import Best, summaries, whole_side
from .pooled import r_pooled


def refined(totals: Totals, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> dict[tuple[int, int], Best] | None:
    """(i, j) -> the candidates of the neurons of source i in source j by their r over all tokens; None where the folder holds no such sums.

    Raises:
        FileError: the sums are not complete, damaged, or of other candidates than those of these totals.
    """
    if not (Path(folder) / LEDGER).exists():
        return None
    state = Confirmation.load(folder)
    if state.missing():
        raise FileError(f"{folder}: {len(state.missing())} of {state.batches} batches of documents are missing: repeat the command that started the run")
    if state.sources != totals.sources:
        raise FileError(f"{folder} is of other models than the totals beside it; remove it and repeat the command that started the run")
    every = range(len(totals.sources))
    if set(state.pairs) != {(i, j) for i in every for j in every if i != j}:
        raise FileError(f"{folder} lacks pairs of models that the totals beside it have; remove it and repeat the command that started the run")
    found = {}
    for i, j, dense in summaries(totals, top_k=max(pair.partner.shape[1] for pair in state.pairs.values()), device=device):
        pair, partner = state.pairs[i, j], dense.top_index
        if not torch.equal(pair.partner, partner):
            raise FileError(f"{folder} holds other candidates than the totals beside it choose; remove it and repeat the command that started the run")
        x, y = whole_side(totals, i), whole_side(totals, j)  # count, mean and M2, [3, neurons]
        centre, there = (totals.centre[i].double(), totals.centre[j].double()), partner.clamp(min=0)
        spread = x[2].sqrt()[:, None] * y[2].sqrt()[there]
        total = dense.top * spread + x[0][:, None] * (x[1] - centre[0])[:, None] * (y[1] - centre[1])[there]  # the entry of the product that r came from
        rest = (state.moments[i].whole(), state.moments[j].whole())
        pooled = r_pooled(total, dense.top_stderr, pair.whole(), partner, centre=centre, dense=(x, y), rest=rest)
        found[i, j] = Best(pooled.r, pooled.partner, pooled.stderr)
    return found
