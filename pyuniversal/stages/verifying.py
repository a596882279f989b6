"""A finished run checked against itself.

Its sums and tables against their hashes, and a random thousandth of what it found against a second computation in float64.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import results, universality
from ..files import check_fields, file_sha256, safe_name
from ..streaming import choose_rows, confirm_pass
from ..totals import Confirmation, Totals
from .confirming import refined_of, refinement_rows
from .inputs import Inputs, reopen

log = logging.getLogger(__name__)

SHARE, FEWEST = 1000, 8  # one neuron in so many, and at least so many of a model
# Beyond six standard errors of the rounding: models run in other batches give other last bits, and bf16 rounds operands to eight.
NOISE = {"int8": 1e-4, "float32": 1e-4, "float64": 1e-4, "bf16": 3e-3}
# What the models compute in: r that it may change, and mean (in standard deviations) with variance (relative). Another machine adds in another order, and of a
# short mantissa other bits are lost in every layer. Measured of the embedded models, best r of 2,048 neurons against float32: bfloat16 4.1e-3 (mean and
# variance 3.2e-2), float16 3.8e-4 (2.1e-3), float64 1.5e-7 (6e-7). Two machines of one dtype differ by twice that at most, and deeper models by more.
ACTIVATIONS = {"float64": (1e-4, 1e-3), "float32": (1e-4, 1e-3), "tf32": (2e-3, 1e-2), "float16": (2e-3, 1e-2), "bfloat16": (2e-2, 1e-1)}


def verify(
    run: str | os.PathLike[str], models: Sequence[Any] | None, *, tokens: Any, seed: int, device: str, trust_remote_code: bool, progress: bool
) -> dict[str, Any]:
    """What was checked, and every difference that rounding does not explain."""
    finished = results.open_run(run)
    inputs = reopen(Path(run), models, tokens=tokens, device=device, trust_remote_code=trust_remote_code)
    totals = Totals.load(inputs.folder / "totals")  # every file against its hash
    log.info("the files are those that the ledger names; running the models again for a random thousandth of the neurons")
    chosen = {i: _sample(source.columns, seed=seed, source=i) for i, source in enumerate(totals.sources)}
    rows = choose_rows(inputs.corpus, max_tokens=inputs.dense_tokens, seed=inputs.options["seed"])
    refined = refined_of(inputs.folder, totals, inputs.options, device=inputs.options["device"]) is not None
    if refined:
        rows = np.concatenate([rows, refinement_rows(inputs, totals)])
    partners = {pair: _only(_partners(finished.matches, totals, *pair), chosen[pair[0]]) for pair in _ordered(len(totals.sources))}
    state = confirm_pass(
        inputs.sources,
        inputs.corpus,
        rows=rows,
        batch_of_row=np.zeros(len(rows), np.int64),
        partners=partners,
        centre=totals.centre,
        batch_tokens=inputs.options["batch_tokens"],
        device=inputs.options["device"],
        progress=progress,
        words="verify",
    )
    pairs = [_pair(state, finished, inputs, *pair, chosen[pair[0]]) for pair in partners]
    table = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame({"name": [], "r": [], "again": [], "difference": [], "allowed": []})
    wrong = table[~(table["difference"] <= table["allowed"])]
    failures = [f"{row['name']}: r is {row['r']:.6f} in the run and {row['again']:.6f} computed again" for _, row in wrong.iterrows()]
    return {
        "neurons": {source.name: len(chosen[i]) for i, source in enumerate(totals.sources)},
        "correlations": len(table),
        "tokens": int(state.moments[0].whole()[0].max()),
        "largest_difference": float(table["difference"].max()) if len(table) else None,
        "failures": _tables(finished) + _moments(state, totals, refined=refined, allowed=ACTIVATIONS[inputs.options["dtype"]][1]) + failures,
    }


def _tables(run: results.Run) -> list[str]:
    """Tables that are not those which the run wrote; none where it is of a version that kept no hashes of them."""
    wrong, manifest = [], run.path / "manifest.json"
    for name, digest in check_fields({"tables": {}} | run.manifest, {"tables": "an object"}, manifest)["tables"].items():
        path = run.path / "tables" / safe_name(name.removeprefix("tables/"), manifest) if name.startswith("tables/") else run.path / safe_name(name, manifest)
        problem = "is not there" if path.is_symlink() or not path.is_file() else "is not what the run wrote" if file_sha256(path) != digest else None
        if problem:
            wrong.append(f"{path} {problem}; `pyuniversal table {run.path}` makes it again")
    return wrong


def _ordered(sources: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(sources) for j in range(sources) if i != j]


def _sample(columns: int, *, seed: int, source: int) -> NDArray[np.int64]:
    """A thousandth of the neurons of a source, rising."""
    count = min(columns, max(FEWEST, -(-columns // SHARE)))
    return np.sort(np.random.default_rng([seed, 5, source]).choice(columns, count, replace=False))


def _column(totals: Totals, source: int, layer: pd.Series, neuron: pd.Series) -> NDArray[np.int64]:
    """Columns of neurons of a source."""
    info = totals.sources[source]
    return np.asarray(pd.Index(info.layers).get_indexer(layer) * info.width + neuron.to_numpy(np.int64))


def _partners(matches: pd.DataFrame, totals: Totals, i: int, j: int) -> Tensor:
    """The best partner of every neuron of source i in source j as the table has it, int64 [columns of i, 1], -1 where there is none."""
    names = [source.name for source in totals.sources]
    best = matches[(matches["rank"] == 0) & (matches["model"] == names[i]) & (matches["other"] == names[j])]
    partner = torch.full((totals.sources[i].columns, 1), -1)
    rows = _column(totals, i, best["layer"], best["neuron"])
    partner[torch.from_numpy(rows), 0] = torch.from_numpy(_column(totals, j, best["partner_layer"], best["partner_neuron"]))
    return partner


def _only(partner: Tensor, chosen: NDArray[np.int64]) -> Tensor:
    """The partners of the chosen neurons, -1 for the others."""
    kept = torch.full_like(partner, -1)
    kept[torch.from_numpy(chosen)] = partner[torch.from_numpy(chosen)]
    return kept


def _moments(state: Confirmation, totals: Totals, *, refined: bool, allowed: float) -> list[str]:
    """Differences of count, mean and variance over r; those of a run that refined its candidates are over fewer tokens than `state`."""
    failures = []
    for i, source in enumerate(totals.sources if not refined else []):
        again, there = state.moments[i].whole().cpu(), universality.whole_side(totals, i)
        spread = (there[2] / there[0]).sqrt()
        off = (again[1] - there[1]).abs() / spread.clamp(min=1e-12) + (again[2] / there[2].clamp(min=1e-30) - 1).abs() * (there[2] > 0)
        if not torch.equal(again[0], there[0]):
            failures.append(f"{source.name}: {int(again[0].max()):,} tokens are correlated, not {int(there[0].max()):,}")
        elif bool((off > allowed).any()):
            worst = int(off.argmax())
            failures.append(f"{source.name}: mean or variance of column {worst} differ from those of the run ({float(off[worst]):.2g} standard deviations)")
    return failures


def _pair(state: Confirmation, finished: results.Run, inputs: Inputs, i: int, j: int, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """A row for each chosen neuron of source i: r as the table has it and again, their difference, and what rounding allows."""
    sources, matches = state.sources, finished.matches
    layer, neuron = universality.label(sources[i], chosen)
    best = matches[(matches["rank"] == 0) & (matches["model"] == sources[i].name) & (matches["other"] == sources[j].name)].set_index(["layer", "neuron"])
    best = best.reindex(pd.MultiIndex.from_arrays([layer, neuron]))
    again = universality.replicates(state, i, j).whole.cpu().numpy()[chosen]
    r = best["r"].clip(-1, 1).to_numpy()
    there = zip(layer, neuron, best["partner_layer"], best["partner_neuron"], strict=True)
    names = [f"L{a}.{b} of {sources[i].name} with L{c:.0f}.{d:.0f} of {sources[j].name}" for a, b, c, d in there]
    allowed = max(NOISE[inputs.options["precision"]], ACTIVATIONS[inputs.options["dtype"]][0]) + 6 * best["stderr"].to_numpy()
    table = pd.DataFrame({"name": names, "r": r, "again": again, "difference": np.abs(r - again), "allowed": allowed})
    return table[~(np.isnan(r) & np.isnan(again))]
