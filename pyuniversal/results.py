"""A finished run as a value: its folder, its tables, its pictures."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import report
from .errors import FileError
from .files import atomic, check_fields, read_json, reading, safe_name
from .table import PAPER_COLUMNS
from .totals import Totals
from .universality import CONFIRMED_COLUMNS, RULES, empty_nulls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INDEX = ["model", "layer", "neuron"]
TABLES = ("neurons", "matches", "depth")

_KEY = {"model": "text", "layer": "integer"}
# What every table has; more is welcome, and comes with later versions.
COLUMNS: dict[str, dict[str, str]] = {
    "neurons": _KEY
    | {"neuron": "integer", "mutual": "integer", "constant": "flag", **dict.fromkeys(RULES, "flag")}
    | dict.fromkeys((*PAPER_COLUMNS, "excess_corr", "null_p99", *CONFIRMED_COLUMNS), "number"),
    "matches": _KEY
    | dict.fromkeys(("neuron", "rank", "partner_layer", "partner_neuron"), "integer")
    | {"other": "text", **dict.fromkeys(("r", "stderr", "r_confirmed", "r_se"), "number"), "mutual": "flag", "assigned": "flag"},
    "depth": _KEY | {"other": "text", "partner_layer": "integer", "neurons": "integer"},
    "nulls": _KEY
    | {"other": "text", **dict.fromkeys(("decile", "neurons", "draws", "tokens"), "integer")}
    | dict.fromkeys(("firing_low", "firing_high", "mean", "p50", "p90", "p99", "max"), "number"),
    "weights": {"model": "text", "convention": "text", "w_in_norm": "number"},
}
UNIQUE = {"neurons": INDEX, "nulls": ["model", "layer", "decile"]}
IS = {
    "text": lambda column: isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column),
    "integer": pd.api.types.is_integer_dtype,
    "number": pd.api.types.is_float_dtype,
    "flag": pd.api.types.is_bool_dtype,
}


class Run:
    """What a run left in its folder.

    Attributes:
        path: the folder.
        manifest: versions, models and weight hashes, token hash, resolved options, seeds, backends, timings.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {', '.join(model['label'] for model in self.manifest['models'])})"

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """The neuron table of all models: index (model, layer, neuron), the paper's columns, then ours."""
        return read_table(self.path, "neurons").set_index(INDEX)

    @cached_property
    def matches(self) -> pd.DataFrame:
        """Partners of every neuron in every other model.

        Columns: model, layer, neuron, other, rank, partner_layer, partner_neuron, r, stderr, mutual, assigned, r_confirmed, r_se.
        """
        return read_table(self.path, "matches")

    @cached_property
    def depth(self) -> pd.DataFrame:
        """Where best partners sit: model, other, layer, partner_layer, neurons."""
        return read_table(self.path, "depth")

    @cached_property
    def nulls(self) -> pd.DataFrame:
        """Best r by chance, by model, layer and decile of the firing frequency; empty where no null was made. See `universality.nulls`."""
        return read_table(self.path, "nulls") if (self.path / "nulls.parquet").exists() else empty_nulls()

    @cached_property
    def claims(self) -> dict[str, Any]:
        """The study's claims on this run: statistic, interval and verdict of each; see `pyuniversal.report.claims`."""
        return read_claims(self.path)

    @cached_property
    def totals(self) -> Totals:
        """The sums that everything was computed from."""
        return Totals.load(self.path / "totals")

    def figure(self, name: str) -> Figure:
        """Draw "layer_distribution", "universal_neurons_properties", "depth", "claims" or "null_by_firing" as a matplotlib Figure.

        Raises:
            InputError: there is no such figure.
        """
        return report.draw(name, self.neurons, self.matches, self.depth, self.claims, self.nulls)

    def summary(self) -> dict[str, Any]:
        """Counts and means of every model; see `pyuniversal.report.summary`."""
        return report.summary(self.neurons, self.manifest, self.claims, self.nulls)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the folder of a finished run.

    Raises:
        FileError: there is no run, or it has not come to its end; says what to do.
    """
    path = Path(path)
    if not (path / "manifest.json").exists():
        raise FileError(f"{path} holds no run (there is no manifest.json in it)")
    manifest = read_manifest(path)
    if "table" not in manifest["timings"]:
        raise FileError(f"the run in {path} has not come to its end: repeat the command that started it, or `pyuniversal table {path}` if its pass is complete")
    check_fields(manifest["options"], {"baseline": "a name", "baseline_draws": "a whole number"}, f"options of {path / 'manifest.json'}")
    return Run(path, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run, finished or not, with everything in it that is relied on.

    Raises:
        FileError: it is absent or damaged, or names a model as no file can be called.
    """
    file = folder / "manifest.json"
    manifest = check_fields(read_json(file), {"models": "a list"} | dict.fromkeys(("tokens", "options", "timings", "machine"), "an object"), file)
    try:
        json.dumps(manifest, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file} is damaged: it holds what JSON cannot ({error}). Repeat the command that started the run") from error
    for number, model in enumerate(manifest["models"]):
        where = f"model {number} of {file}"
        safe_name(check_fields(model, dict.fromkeys(("label", "source", "weights"), "text") | {"config": "an object"}, where)["label"], file)
        check_fields(model["config"], {"n_layers": "a whole number"}, f"config of {where}")
    check_fields(manifest["tokens"], {"hash": "text", "correlated": "a whole number"}, f"tokens of {file}")
    check_fields(manifest["options"], {"precision": "a name", "device": "a name", "seed": "an integer"}, f"options of {file}")
    check_fields(manifest["timings"], dict.fromkeys(manifest["timings"], "a number"), f"timings of {file}")
    return manifest


def read_claims(folder: Path) -> dict[str, Any]:
    """The claims of a run, every field that a table or figure shows looked at.

    Raises:
        FileError: they are absent or damaged.
    """
    file = folder / "claims.json"
    found = check_fields(read_json(file), {"claims": "a list", "level": "a number", "negligible": "a number"}, file)
    numbers = dict.fromkeys(("value", "low", "high"), "a number or null")
    counts = dict.fromkeys(("universal", "models", "layers_counted", "layers_agree"), "a whole number")
    for number, claim in enumerate(found["claims"]):
        where = f"claim {number} of {file}"
        check_fields(
            claim, numbers | counts | dict.fromkeys(("name", "direction", "statistic", "reason", "verdict"), "a name") | {"by_model": "an object"}, where
        )
        check_fields(claim["by_model"], dict.fromkeys(claim["by_model"], "a number or null"), f"by_model of {where}")
        check_fields(claim, {"others": "a whole number or null" if claim["name"] == "depth" else "a whole number"}, where)
        everyone = check_fields(claim, {"all_neurons": "an object"}, where)["all_neurons"] if "all_neurons" in claim else None
        if everyone is not None:
            check_fields(everyone, numbers, f"all_neurons of {where}")
        halves = [(part["low"] is None) != (part["high"] is None) for part in (claim, everyone) if part is not None]
        if claim["name"] not in report.CLAIM_NAMES or claim["verdict"] not in report.VERDICTS or any(halves):
            raise FileError(f"{where} is damaged: there is no such claim, verdict or interval. `pyuniversal table {folder}` makes it again")
    try:
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file} is damaged: it holds what JSON cannot ({error}). `pyuniversal table {folder}` makes it again") from error
    return found


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one parquet table of a run.

    Raises:
        FileError: it is absent or damaged, or has not the columns that it should; names it.
    """
    path = folder / f"{name}.parquet"
    remedy = "repeat the command that started the run" if name in ("weights", "nulls") else f"`pyuniversal table {folder}` makes it again"
    with reading(path, remedy):
        table = pd.read_parquet(path)
        for column, kind in COLUMNS[name].items():
            found = table.get(column)
            if found is None or not (found.empty or IS[kind](found)) or (kind != "number" and found.isna().any()):
                raise FileError(f"{path} is damaged: its column {column!r} is {'absent' if found is None else f'of {found.dtype}, not {kind}s'}; {remedy}")
            if kind == "text":
                for value in found.unique():
                    safe_name(value, path)
        if name in UNIQUE and table.duplicated(UNIQUE[name]).any():
            raise FileError(f"{path} is damaged: two rows have the same {', '.join(UNIQUE[name])}; {remedy}")
    return table


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write one parquet table of a run, atomically."""
    with atomic(folder / f"{name}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
