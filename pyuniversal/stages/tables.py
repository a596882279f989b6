"""Everything after the pass: partners, neuron table, figures."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .. import report, results, universality
from ..errors import FileError
from ..files import read_json, write_json
from ..table import neuron_table, write_tables
from ..totals import Totals
from .inputs import check_table, clock

log = logging.getLogger(__name__)

FEW_TOKENS = 10_000


def table(out: str | os.PathLike[str], *, baseline: str, baseline_draws: int, top_k: int, seed: int, legacy: bool) -> results.Run:
    """Everything after the totals."""
    folder = Path(out)
    check_table(baseline=baseline, baseline_draws=baseline_draws, top_k=top_k)
    if not (folder / "manifest.json").exists():
        raise FileError(f"{folder} holds no complete pass (there is no manifest.json in it); `pyuniversal observe` makes one")
    manifest = read_json(folder / "manifest.json")
    totals = Totals.load(folder / "totals")
    if not totals.complete:
        raise FileError(f"the pass in {folder} is at chunk {len(totals.chunks)} of {totals.n_chunks}: repeat the command that started it")
    timings = {k: v for k, v in manifest.get("timings", {}).items() if k not in ("table", "figures")}
    # Until the end the run counts as unfinished: a kill must not leave tables of two kinds that look like one.
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    if len(totals.sources) > 1 and totals.tokens < FEW_TOKENS:
        log.warning(
            "only %s tokens were correlated: with so few, neurons find partners by chance alone; do not read the table as a finding", f"{totals.tokens:,}"
        )
    log.info("partners, %d rotations of every layer, table", baseline_draws)
    with clock(timings, "table"):
        matches = universality.matches(totals, top_k=top_k)
        weights = results.read_table(folder, "weights")
        kind = "legacy" if legacy else "corrected"
        by_model = {str(m): t.drop(columns=["model", "convention"]) for m, t in weights[weights["convention"] == kind].groupby("model", sort=False)}
        neurons = neuron_table(totals, matches, by_model, kind=baseline, draws=baseline_draws, seed=seed, legacy=legacy)
        depth = universality.depth(matches)
        for name, value in (("neurons", neurons.reset_index()), ("matches", matches), ("depth", depth)):
            results.write_table(folder, name, value)
        write_tables(neurons, folder / "tables")
    log.info("figures")
    with clock(timings, "figures"):
        report.save_figures(neurons, matches, depth, folder / "figures")
    options = {"baseline": baseline, "baseline_draws": baseline_draws, "top_k": top_k, "baseline_seed": seed, "legacy": legacy}
    manifest["options"] |= options
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    return results.open_run(folder)
