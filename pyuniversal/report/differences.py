"""What differs between two runs, as tables for a terminal (rich)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..universality import RULES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN = 40  # rows of a list of settings or claims; --json has them all


def render_differences(found: dict[str, Any]) -> RenderableType:
    """What `comparison.compare` returned, as tables."""
    from rich.console import Group

    return Group(*_parts(found))


def _parts(found: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    if found["identical"]:
        yield Text(f"No difference: settings and models are the same, and {len(found['tables'])} tables byte for byte.")
        return
    if found["settings"]:
        yield _changes("Settings", found["settings"])
    for pair in found["models"]["pairs"]:
        if pair["by"] == "weights":
            yield Text(f"{pair['new']} has the weights of {pair['old']} and is compared with it.")
        if pair["by"] == "label":
            yield Text(f"{pair['new']} has other weights in the second run; compared all the same.")
    for where, run in (("removed", 0), ("added", 1)):
        if labels := found["models"][where]:
            yield Text(f"Only in {found['runs'][run]}: {', '.join(labels)}")
    for name, table in found["tables"].items():
        yield from _table(name, table)
    yield from _findings(found)
    for name, changes in found["files"].items():
        yield _changes(name, changes)
    for name, run in found["missing"]:
        yield Text(f"{run} has no {name}.")


def _table(name: str, table: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    if table["bytes_equal"] and not table["columns"]:
        yield Text(f"{name}: the same, byte for byte.")
        return
    rows = "{:,} rows, {:,} in the second run, {:,} in both".format(*table["rows"], table["both"])
    for which in ("removed", "added"):
        if columns := table[f"columns_{which}"]:
            yield Text(f"{name}: columns {which}: {', '.join(columns)}")
    if not table["columns"]:
        yield Text(f"{name}: {rows}; where both have one it says the same (the files are not the same byte for byte).")
        return
    shown = Table(title=f"{escape(name)}: {rows}", title_justify="left", caption_justify="left")
    shown.add_column("column", overflow="fold")
    for heading in ("rows that differ", "largest difference", "median"):
        shown.add_column(heading, justify="right")
    shown.add_column("where it is largest", overflow="fold")
    for column, stats in table["columns"].items():
        numbers = ("-" if stats[key] is None else f"{stats[key]:.3g}" for key in ("largest", "median"))
        shown.add_row(escape(column), f"{stats['differ']:,}", *numbers, escape(f"{stats['where']}: {_short(stats['old'])} -> {_short(stats['new'])}"))
    yield shown


def _findings(found: dict[str, Any]) -> Iterator[RenderableType]:
    """What a reader of the first run's findings must know."""
    from rich.text import Text

    for name, table in found["tables"].items():
        for column, stats in table["columns"].items():
            if "became_true" in stats and (column in RULES or "confirmed" in column):
                yield Text(f"{name}, {column}: {stats['became_true']:,} became true, {stats['became_false']:,} became false.")
    if (partners := found["partners"]) and partners["both"]:
        yield Text(f"Best partners: {partners['changed']:,} of {partners['both']:,} changed ({partners['share']:.2%}).")


def _changes(title: str, changes: list[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    more = f"and {len(changes) - SHOWN:,} more: see --json" if len(changes) > SHOWN else None
    table = Table(title=escape(title), title_justify="left", caption=more, caption_justify="left")
    for heading in ("", "first run", "second run"):
        table.add_column(heading, overflow="fold")
    for change in changes[:SHOWN]:
        table.add_row(*(escape(_short(change[key])) for key in ("name", "old", "new")))
    return table


def _short(value: Any) -> str:
    """A value in a cell; what a terminal would take for a command is shown as it is written."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:197]}..."
