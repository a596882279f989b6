"""A finished run as a value: its folder, its tables, its pictures."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import report
from .errors import FileError
from .files import atomic, read_json
from .totals import Totals
from .universality import empty_nulls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INDEX = ["model", "layer", "neuron"]
TABLES = ("neurons", "matches", "depth")


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
        return dict(read_json(self.path / "claims.json"))

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
    manifest = read_json(path / "manifest.json")
    if "table" not in manifest.get("timings", {}):
        raise FileError(f"the run in {path} has not come to its end: repeat the command that started it, or `pyuniversal table {path}` if its pass is complete")
    return Run(path, manifest)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one parquet table of a run.

    Raises:
        FileError: it is absent or damaged; names it.
    """
    path = folder / f"{name}.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        remedy = "Repeat the command that started the run" if name == "weights" else f"`pyuniversal table {folder}` makes it again"
        raise FileError(f"cannot read {path}: {error}. {remedy}.") from error


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write one parquet table of a run, atomically."""
    with atomic(folder / f"{name}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
