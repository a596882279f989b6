"""What differs between two finished runs, from options to numbers.

Models of the two runs belong together where their weight hashes are equal, else where their labels are; tables are joined by that. Everything found is a plain
dict, which `report.render_differences` shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import FileError
from .files import read_json, reading
from .results import COLUMNS, Run, open_run, read_table

# Columns that say what a row is about, in every table there is or may be; a table's key is those of them that it has.
KEYS = (
    *("model", "layer", "neuron", "head", "other", "rank", "convention", "partner_layer", "family", "feature", "label", "class", "subset", "draw", "claim"),
    *("name", "id"),
)
KEY_OF = {"matches": ("model", "layer", "neuron", "other", "rank"), "nulls": ("model", "layer", "decile"), "neurons": ("model", "layer", "neuron")}
PLACE = "row"  # number of a row among those with the same key
NAMES = ("claim", "name", "id", "label", "key")  # what tells the entries of a list in a JSON file apart
# Not compared: the manifest is compared field by field; CSVs say what the parquet files say; sums and text are too large, and told by their hashes.
ELSEWHERE = {"manifest.json", "totals", "candidates", "confirmation", "tokens", "tables", "figures"}
NOT_SETTINGS = ("timings", "tokens.path", "tables")  # of the manifest: differ between any two runs, or where their tables do


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare two finished runs.

    Returns:
        A dict that JSON can hold:
        identical: nothing below differs and the tables are equal byte for byte. runs: the two folders.
        settings: [{name, old, new}] of versions, models, tokens, options, seeds, backends, machine; a model's fields under its old label.
        models: {pairs: [{old, new, by}], removed, added}; by is "weights", "label" or "both".
        tables: file -> {bytes_equal, rows: [old, new], both (rows that have a counterpart), columns_removed, columns_added, columns}; rows and both are None
        where the bytes are equal. columns, only those that differ: name -> {differ (how many rows; NaN equals NaN), largest, median (of the absolute
        difference, over the rows that differ and are numbers in both), where, old, new (at the largest), became_true, became_false (of flags)}.
        partners: {both, changed, share}: best partners (rank 0) of neurons in another model; None where a run has none.
        files: JSON file -> [{name, old, new}]. missing: [[file, the run that lacks it]].

    Raises:
        FileError: a folder holds no finished run, or a table cannot be read.
    """
    runs = open_run(first), open_run(second)
    pairs = _pair_models(runs)
    labels = {pair["new"]: pair["old"] for pair in pairs}  # of the second run -> of the first
    renamed = {label: labels.get(label, f"{label} of the second run") for label in _labels(runs[1])}
    old_names, new_names = (_files(run.path) for run in runs)
    both = [name for name in old_names if name in new_names]
    tables = {name: _table(runs, name, renamed) for name in both if name.endswith(".parquet")}
    json_files = [name for name in both if name.endswith(".json")]
    files = {name: _leaves_that_differ(read_json(runs[0].path / name), read_json(runs[1].path / name), renamed) for name in json_files}
    missing = [[name, str(runs[name in old_names].path)] for name in sorted({*old_names} ^ {*new_names})]
    result = {
        "runs": [str(run.path) for run in runs],
        "settings": _settings(runs, pairs),
        "models": {
            "pairs": pairs,
            "removed": [label for label in _labels(runs[0]) if label not in labels.values()],
            "added": [label for label in _labels(runs[1]) if label not in labels],
        },
        "tables": tables,
        "partners": _partners(runs, renamed),
        "files": {name: found for name, found in files.items() if found},
        "missing": missing,
    }
    return {"identical": not (result["settings"] or result["files"] or missing or not all(t["bytes_equal"] for t in tables.values())), **result}


def _files(folder: Path) -> list[str]:
    """The tables and JSON files of a run, as paths below its folder."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in (".parquet", ".json") and path.is_file())
    return [path.as_posix() for path in found if path.parts[0] not in ELSEWHERE and not any(part.startswith(".") for part in path.parts)]


def _labels(run: Run) -> list[str]:
    return [model["label"] for model in run.manifest["models"]]


def _pair_models(runs: tuple[Run, Run]) -> list[dict[str, str]]:
    """The models that are in both: by the hash of their weights, those left by their label."""
    old, new = ({model["label"]: model["weights"] for model in run.manifest["models"]} for run in runs)
    by_hash = {weights: label for label, weights in old.items()}
    found = {label: by_hash[weights] for label, weights in new.items() if weights in by_hash}  # of the second run -> of the first
    found |= {label: label for label in new if label in old and label not in found and label not in found.values()}
    pairs = [{"old": o, "new": n, "by": "label" if old[o] != new[n] else "both" if o == n else "weights"} for n, o in found.items()]
    return sorted(pairs, key=lambda pair: list(old).index(pair["old"]))


def _settings(runs: tuple[Run, Run], pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Fields of the two manifests that differ."""
    names = ({pair["old"]: pair["old"] for pair in pairs}, {pair["new"]: pair["old"] for pair in pairs})
    settings = []
    for run, known in zip(runs, names, strict=True):
        # A model that only one run has is told apart from one of the other run that is called alike.
        models = {known.get(m["label"], f"{m['label']} of {run.path}"): m for m in run.manifest["models"]}
        settings.append(run.manifest | {"models": models})
    return [leaf for leaf in _leaves_that_differ(*settings) if not any(leaf["name"] == name or leaf["name"].startswith(name + ".") for name in NOT_SETTINGS)]


def _leaves_that_differ(old: Any, new: Any, renamed: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Places where two JSON values differ: {name, old, new}; "absent" where one has nothing there. Keys of the second are called by `renamed`."""
    try:
        left, right = dict(_leaves(old, {})), dict(_leaves(new, renamed or {}))
    except RecursionError as error:
        raise FileError("a JSON file of one of the runs is nested too deeply to be one of ours; make the run again") from error
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name, "absent"), right.get(name, "absent")) for name in names)
    return [{"name": name, "old": _plain(a), "new": _plain(b)} for name, a, b in pairs if type(a) is not type(b) or not (a == b or (a != a and b != b))]


def _leaves(value: Any, renamed: dict[str, str], name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text, flag and null of a JSON value, with the way to it: claims.a.verdict. Entries of a list go by their name where they have one."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            key = renamed.get(key, str(key))
            yield from _leaves(inner, renamed, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for entry, inner in zip(_entry_names(value), value, strict=True):
            yield from _leaves(inner, renamed, f"{name}.{entry}" if name else entry)
    else:
        yield name, value


def _entry_names(entries: list[Any]) -> list[str]:
    if all(isinstance(entry, dict) for entry in entries):
        for key in NAMES:
            found = [entry.get(key) for entry in entries]
            if all(isinstance(name, str) for name in found) and len(set(found)) == len(found):
                return [str(name) for name in found]
    return [str(number) for number in range(len(entries))]


def _is_key(column: pd.Series) -> bool:
    is_one = pd.api.types
    return isinstance(column.dtype, pd.CategoricalDtype) or is_one.is_string_dtype(column) or is_one.is_integer_dtype(column) or is_one.is_bool_dtype(column)


def _read(run: Run, name: str, labels: dict[str, str]) -> pd.DataFrame:
    """A table with every model called by `labels`."""
    if name.removesuffix(".parquet") in COLUMNS:
        table = read_table(run.path, name.removesuffix(".parquet"))
    else:
        with reading(run.path / name, "make it again with the command that wrote it"):
            table = pd.read_parquet(run.path / name)
    for column in ("model", "other"):
        if column in table and _is_key(table[column]):
            table[column] = table[column].astype(object).replace(labels)
    return table


def _table(runs: tuple[Run, Run], name: str, labels: dict[str, str]) -> dict[str, Any]:
    """How one table differs; see `compare`."""
    paths = [run.path / name for run in runs]
    equal = _same_bytes(*paths)
    if equal and all(new == old for new, old in labels.items()):
        return {"bytes_equal": True, "rows": None, "both": None, "columns_removed": [], "columns_added": [], "columns": {}}
    tables = [_read(runs[0], name, {}), _read(runs[1], name, labels)]
    rows = [len(table) for table in tables]
    columns = [list(table.columns) for table in tables]
    key, old, new = _join(tables, KEY_OF.get(Path(name).stem))
    shared = [column for column in columns[0] if column in columns[1] and column not in key]
    return {
        "bytes_equal": equal,
        "rows": rows,
        "both": len(old),
        "columns_removed": [column for column in columns[0] if column not in columns[1]],
        "columns_added": [column for column in columns[1] if column not in columns[0]],
        "columns": {column: found for column in shared if (found := _column(old, new, column, key)) is not None},
    }


def _join(tables: list[pd.DataFrame], known: tuple[str, ...] | None) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """The key, and the rows of both tables that have the same, in the same order."""
    key = [column for column in known or KEYS if all(column in table and _is_key(table[column]) for table in tables)]
    if any(table.duplicated(key).any() if key else len(table) > 1 for table in tables):
        for table in tables:
            table[PLACE] = table.groupby(key, sort=False, dropna=False).cumcount() if key else np.arange(len(table))
        key.append(PLACE)
    old, new = tables
    if len(old) == len(new) and all((old[column].to_numpy() == new[column].to_numpy()).all() for column in key):
        return key, old, new  # the usual case, and without a join, which takes three times the memory
    indices = [pd.MultiIndex.from_frame(table[key]) if key else table.index for table in tables]
    place = indices[1].get_indexer(indices[0])  # [rows of old]: the row of new, -1 where there is none
    return key, old[place >= 0].reset_index(drop=True), new.iloc[place[place >= 0]].reset_index(drop=True)


def _column(old: pd.DataFrame, new: pd.DataFrame, name: str, key: list[str]) -> dict[str, Any] | None:
    """How one column differs between rows that belong together; None where it does not."""
    a, b = old[name], new[name]
    flags, numbers = (all(isinstance(column.dtype, np.dtype) and column.dtype.kind in kinds for column in (a, b)) for kinds in ("b", "biuf"))
    if not numbers:
        a, b = a.astype(object), b.astype(object)
        both_absent = (a.isna() & b.isna()).to_numpy()
        differ = ~both_absent & ~_equal(a, b)
    else:
        x, y = a.to_numpy(), b.to_numpy()
        differ = (x != y) & ~((x != x) & (y != y))
    if not differ.any():
        return None
    found: dict[str, Any] = {"differ": int(differ.sum()), "largest": None, "median": None, "where": None}
    place = int(differ.argmax())
    if numbers and not flags:
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.abs(x[differ].astype(np.float64) - y[differ].astype(np.float64))
        if (known := np.isfinite(gaps)).any():
            found |= {"largest": float(gaps[known].max()), "median": float(np.median(gaps[known]))}
            place = int(np.flatnonzero(differ)[np.where(known, gaps, -1.0).argmax()])
    if flags:
        found |= {"became_true": int((differ & b.to_numpy()).sum()), "became_false": int((differ & a.to_numpy()).sum())}
    found |= {"where": _where({column: old[column].iloc[place] for column in key}, place), "old": _plain(a.iloc[place]), "new": _plain(b.iloc[place])}
    return found


def _equal(a: pd.Series, b: pd.Series) -> np.ndarray:
    """Cells that are equal, whatever is in them: bool [rows]."""
    pairs = zip(a, b, strict=True)
    return np.fromiter(
        (x is y or (np.array_equal(x, y) if isinstance(x, np.ndarray) else x is not pd.NA and y is not pd.NA and bool(x == y)) for x, y in pairs),
        np.bool_,
        len(a),
    )


def _where(key: dict[str, Any], place: int) -> str:
    """A row by its key: L4.3594 of model, and whatever else the key has."""
    parts = [f"L{key['layer']}" + (f".{key['neuron']}" if "neuron" in key else "")] if "layer" in key else []
    parts += [f"of {key['model']}" if parts else str(key["model"])] if "model" in key else []
    rest = ", ".join(f"{column} {value}" for column, value in key.items() if column not in ("layer", "neuron", "model"))
    return ", ".join(filter(None, [" ".join(parts), rest])) or f"row {place}"


def _partners(runs: tuple[Run, Run], labels: dict[str, str]) -> dict[str, Any] | None:
    """How many best partners changed, of those neurons and pairs of models that both runs have."""
    best = []
    for run, names in zip(runs, ({}, labels), strict=True):
        table = _read(run, "matches.parquet", names)
        if table.empty:
            return None
        best.append(table[table["rank"] == 0].reset_index(drop=True))
    _, old, new = _join(best, ("model", "layer", "neuron", "other"))
    changed = (old["partner_layer"].to_numpy() != new["partner_layer"].to_numpy()) | (old["partner_neuron"].to_numpy() != new["partner_neuron"].to_numpy())
    return {"both": len(old), "changed": int(changed.sum()), "share": float(changed.mean()) if len(old) else None}


def _same_bytes(a: Path, b: Path) -> bool:
    try:
        if a.stat().st_size != b.stat().st_size:
            return False
        with open(a, "rb") as left, open(b, "rb") as right:
            while block := left.read(1 << 20):
                if block != right.read(1 << 20):
                    return False
        return True
    except OSError as error:
        raise FileError(f"cannot compare {a} and {b}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """As JSON can hold it: numpy's scalars as Python's, NaN and infinities in words, arrays as lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
