"""Everything after the pass: partners, neuron table, figures."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import report, results, universality
from ..errors import FileError
from ..files import file_sha256, safe_name, tidy, within, write_json
from ..streaming import available_bytes
from ..streaming.afterwards import rotation_room
from ..table import neuron_table, write_tables
from ..totals import Confirmation, Totals
from ..totals.confirmation import LEDGER
from .confirming import CONFIRMED, refined_of
from .inputs import check_table, clock, resolve_device

log = logging.getLogger(__name__)

FEW_TOKENS = 10_000


def table(
    out: str | os.PathLike[str],
    *,
    baseline: str,
    baseline_draws: int,
    top_k: int,
    seed: int,
    legacy: bool,
    device: str,
    memory: int | None = None,
    hashes: bool = True,
) -> results.Run:
    """Everything after the totals; `memory` bounds what the process holds on the device, as of `pyuniversal.run`; `hashes` as of `Totals.load`."""
    folder = Path(out)
    check_table(baseline=baseline, baseline_draws=baseline_draws, top_k=top_k)
    if not (folder / "manifest.json").exists():
        raise FileError(f"{folder} holds no complete pass (there is no manifest.json in it); `pyuniversal observe` makes one")
    manifest = results.read_manifest(folder)
    device = resolve_device(device)
    totals = Totals.load(folder / "totals", hashes=hashes)
    for source in totals.sources:
        safe_name(source.name, folder / "totals" / "ledger.json")
    if [source.name for source in totals.sources] != [model["label"] for model in manifest["models"]]:
        raise FileError(f"manifest.json and totals in {folder} are of different models: repeat the command that started the run")
    tables, figures = within(folder, "tables"), within(folder, "figures")
    if not totals.complete:
        raise FileError(
            f"{folder} holds {len(totals.chunks)} of the {totals.n_chunks} chunks of its pass: `pyuniversal merge` joins the folders of all shards; "
            "what was interrupted goes on with the command that started it"
        )
    timings = {k: v for k, v in manifest["timings"].items() if k not in ("table", "figures")}
    # Until the end the run counts as unfinished: a kill must not leave tables of two kinds that look like one.
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    if len(totals.sources) > 1 and totals.tokens < FEW_TOKENS:
        log.warning(
            "only %s tokens were correlated: with so few, neurons find partners by chance alone; do not read the table as a finding", f"{totals.tokens:,}"
        )
    log.info("partners, %d rotations of every layer, table", baseline_draws)
    with clock(timings, "table"):
        matches = universality.matches(totals, top_k=top_k, refined=refined_of(folder, totals, manifest["options"], device=device), device=device)
        with torch.inference_mode():
            held = sum(product.total.nbytes for product in totals.products.values())
            room = rotation_room(held, available_bytes(device, memory))
            baselines = universality.baseline(totals, kind=baseline, draws=baseline_draws, seed=seed, device=device, room_bytes=room)
        by_model = _weights(folder, totals, "legacy" if legacy else "corrected")
        neurons = neuron_table(totals, matches, by_model, baselines, legacy=legacy)
        matches, neurons = _with_confirmation(folder / CONFIRMED, totals, matches, neurons, baselines)
        nulls = results.read_table(folder, "nulls") if (folder / "nulls.parquet").exists() else universality.empty_nulls()
        neurons["null_p99"] = np.concatenate([universality.null_p99(totals, nulls, i) for i in range(len(totals.sources))])
        depth = universality.depth(matches)
        for name, value in (("neurons", neurons.reset_index()), ("matches", matches), ("depth", depth)):
            results.write_table(folder, name, value)
        written = write_tables(neurons, tables)
        n_layers = {model["label"]: model["config"]["n_layers"] for model in manifest["models"]}
        claims = report.claims(neurons, matches, n_layers=n_layers, seed=seed)
        write_json(folder / "claims.json", claims)
    log.info("figures")
    with clock(timings, "figures"):
        report.save_figures(neurons, matches, depth, claims, nulls, figures)
    written += [folder / name for name in ("neurons.parquet", "matches.parquet", "depth.parquet", "claims.json")]
    manifest["tables"] = {path.relative_to(folder).as_posix(): file_sha256(path) for path in written}
    options = {"baseline": baseline, "baseline_draws": baseline_draws, "top_k": top_k, "baseline_seed": seed, "legacy": legacy}
    manifest["options"] |= options
    write_json(folder / "manifest.json", manifest | {"timings": timings})
    for place in (folder, folder / "tables", folder / "figures"):
        tidy(place)
    return results.open_run(folder)


def _with_confirmation(
    folder: Path, totals: Totals, matches: pd.DataFrame, neurons: pd.DataFrame, baselines: dict[tuple[int, int], Tensor]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with what the held-out documents say; empty columns where nothing was confirmed."""
    state = Confirmation.load(folder) if (folder / LEDGER).exists() else None
    if state is not None and (state.missing() or state.sources != totals.sources or set(state.pairs) != set(baselines) or not _chosen(state, totals, matches)):
        log.warning("%s is not complete, or of other models, tokens or partners: nothing is taken from it; `pyuniversal confirm` makes it", folder)
        state = None
    if state is None:
        return matches.assign(r_confirmed=np.nan, r_se=np.nan), neurons.reindex(columns=[*neurons.columns, *universality.CONFIRMED_COLUMNS])
    pairs, columns = universality.confirmed(state, baselines)
    keys = ["model", "layer", "neuron", "other"]
    names = [source.name for source in totals.sources]
    pairs = pairs.assign(rank=np.int16(0), **{key: pd.Categorical(pairs[key], categories=names) for key in ("model", "other")})
    joined = matches.merge(pairs, how="left", on=[*keys, "rank"], validate="one_to_one")
    return joined, neurons.join(columns)


def _chosen(state: Confirmation, totals: Totals, matches: pd.DataFrame) -> bool:
    """Whether the partners that were confirmed are those of the table, and the text is that of the totals."""
    if state.identity.get("tokens") != totals.identity["tokens"] or not all(
        torch.equal(a, b.double()) for a, b in zip(state.centre, totals.centre, strict=True)
    ):
        return False
    best = matches[matches["rank"] == 0]
    for (i, j), pair in state.pairs.items():
        partner = pair.partner[:, 0].cpu().numpy()
        own = best[(best["model"] == totals.sources[i].name) & (best["other"] == totals.sources[j].name)]
        layer, neuron = universality.label(totals.sources[j], partner[partner >= 0])
        if not (np.array_equal(layer, own["partner_layer"]) and np.array_equal(neuron, own["partner_neuron"])):
            return False
    return True


def _weights(folder: Path, totals: Totals, convention: str) -> dict[str, pd.DataFrame]:
    """What the pass left of the weights, in one convention: label -> a row a neuron."""
    table = results.read_table(folder, "weights")
    parts = {str(m): t.drop(columns=["model", "convention"]) for m, t in table[table["convention"] == convention].groupby("model", sort=False, observed=True)}
    for source in totals.sources:
        if (found := len(parts.get(source.name, ()))) != source.columns:
            raise FileError(
                f"{folder / 'weights.parquet'} holds {found} neurons of {source.name}, not {source.columns}: it is of another run. Repeat the command that "
                "started this one"
            )
    return parts
