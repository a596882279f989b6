"""The summary of a run and the plan of one, as tables for a terminal (rich)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..streaming.layout import size
from ..universality import RULES, THRESHOLD

if TYPE_CHECKING:
    from rich.console import RenderableType

TOGETHER = 5  # models in a table: a number that is cut is a wrong one, and terminals have 80 columns
ROWS = ("neurons", "universal", "", "confirmed", "undecided", "at 0.45", "at 0.55", "strict", "loose", "best r", "baseline", "mutual")
CAPTION = (
    "confirmed: of all neurons, by the same rule on documents that were held out; undecided: within two standard errors of it there; "
    "strict: min r - max baseline; loose: max r - mean baseline; best r, baseline: means over all neurons; "
    "mutual: neurons that are their best partner's best partner, in at least one model"
)
CLAIMS_CAPTION = (
    "effect: Cliff's delta of percentiles within the layer, universal neurons against all others; depth: 1 - distance to best partners / distance by chance. "
    "Intervals from models and layers drawn anew. layers: those that point in the claimed direction, of those with at least 5 universal neurons"
)
SIZES = {
    "weights": "models",
    "totals": "products",
    "chunk": "a chunk in work",
    "candidates": "sums of candidates",
    "confirm": "confirmation",
    "nulls": "null",
    "table": "tables",
    "memory": "peak memory",
    "available": "free now",
    "disk": "disk, at its fullest",
    "disk_available": "free on the disk",
}


def render(summary: dict[str, Any]) -> RenderableType:
    """What `summary` returned, as tables."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for start in range(0, len(summary["models"]), TOGETHER):
        title = f"Universal neurons (mean r - mean baseline > {THRESHOLD})" if not start else None
        tables.append(Table("", title=title, title_justify="left"))
        some = list(summary["models"].items())[start : start + TOGETHER]
        for model, _ in some:
            tables[-1].add_column(escape(model), justify="right", overflow="fold")
        for name, *cells in zip(ROWS, *(_column(values) for _, values in some), strict=True):
            tables[-1].add_row(name, *cells)
    tables[-1].caption, tables[-1].caption_justify = CAPTION, "left"
    layers = Table("model", "layer: universal neurons", title="By layer", title_justify="left")
    for model, values in summary["models"].items():
        layers.add_row(escape(model), "  ".join(f"{layer}: {counts['universal']:,}" for layer, counts in values["by_layer"].items()))
    if len(summary["models"]) == 1:
        reason = "One model alone has no partners: its correlations are empty. Moments, weights and vocabulary are in the table."
        return Group(*tables, reason, *_circumstances(summary))
    claims = [render_claims(summary["claims"])] if "claims" in summary else []
    chance = [render_chance(summary["chance"])] if "chance" in summary else []
    return Group(*tables, layers, *claims, *chance, *_circumstances(summary))


def _column(values: dict[str, Any]) -> list[str]:
    """What the summary says of one model, in the order of `ROWS`."""
    main, strict, loose = (values["rules"][rule] for rule in RULES)
    confirmed = values["confirmed"]
    return [
        f"{values['neurons']:,}",
        f"{main['0.5']:,}",
        f"{main['0.5'] / values['neurons']:.2%}",
        *("-" if confirmed is None else f"{confirmed[name]:,}" for name in ("universal", "undecided")),
        *(f"{count:,}" for count in (main["0.45"], main["0.55"], strict["0.5"], loose["0.5"])),
        *("-" if value is None else f"{value:.3f}" for value in (values["mean_corr"], values["mean_baseline"])),
        f"{values['mutual']:,}",
    ]


def render_claims(claims: dict[str, Any]) -> RenderableType:
    """What `claims` returned, as a table."""
    from rich.markup import escape
    from rich.table import Table

    title = f"Claims about universal neurons ({claims['level']:.0%} intervals)"
    table = Table(title=title, title_justify="left", caption=CLAIMS_CAPTION, caption_justify="left")
    for name in ("claim", "effect", "interval", "universal", "layers", "verdict"):
        table.add_column(name, justify="left" if name in ("claim", "verdict") else "right", no_wrap=name != "claim", overflow="fold")
    table.add_column("reason", overflow="fold")
    for claim in claims["claims"]:
        everyone = claim.get("all_neurons", {"value": None})
        beside = "" if everyone["value"] is None else f" (over all neurons {everyone['value']:+.2f}, {_interval(everyone)})"
        table.add_row(
            escape(f"{claim['name']} {claim['direction']}"),
            "-" if claim["value"] is None else f"{claim['value']:+.2f}",
            _interval(claim),
            f"{claim['universal']:,}",
            f"{claim['layers_agree']} of {claim['layers_counted']}",
            claim["verdict"],
            escape(claim["reason"] + beside),
        )
    return table


def render_chance(chance: dict[str, Any]) -> RenderableType:
    """Best r by chance as a table: a row a decile of the firing frequency."""
    from rich.table import Table

    title = f"Best r by chance ({chance['draws']} re-pairings of documents, {chance['tokens']:,} tokens), by decile of the firing frequency in the layer"
    caption = "medians over models and layers"
    if chance["exceed"] is not None:  # the table of neurons may hold no 99 % point
        caption += f"; {chance['exceed']:.1f} % of the neurons have a mean best r beyond the 99 % point of their own layer and decile"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("decile", "fires on % of tokens", "median", "99 % point"):
        table.add_column(name, justify="right")
    for decile, v in chance["deciles"].items():
        table.add_row(decile, f"{100 * v['firing_low']:.2g}-{100 * v['firing_high']:.2g}", f"{v['p50']:.3f}", f"{v['p99']:.3f}")
    return table


def _interval(effect: dict[str, Any]) -> str:
    return "-" if effect["low"] is None else f"{effect['low']:+.2f} to {effect['high']:+.2f}"


def _circumstances(summary: dict[str, Any]) -> list[RenderableType]:
    """One line on what the numbers rest on."""
    if "tokens" not in summary:
        return []
    from rich.text import Text

    options, tokens, seconds = summary["options"], summary["tokens"]["correlated"], sum(summary["timings"].values())
    draws = f"{options['baseline']} baseline of {options['baseline_draws']} draw{'' if options['baseline_draws'] == 1 else 's'}"
    return [Text(f"{tokens:,} tokens correlated, {options['precision']} on {options['device']}, seed {options['seed']}, {draws}, {_time(seconds)}")]


def render_plan(plan: dict[str, Any]) -> RenderableType:
    """What `Plan.as_dict` returned, as a table."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{len(plan['sources'])} model(s), {plan['tokens']:,} tokens, {plan['precision']} on {plan['device']}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for source in plan["sources"]:
        table.add_row(escape(source["name"]), f"{source['layers']} layers of {source['width']:,} neurons, {source['parameters'] / 1e6:,.1f} M parameters")
    table.add_section()
    for key, words in (("forward", "forward passes"), ("product", "products"), ("baseline", "rotation baseline")):
        table.add_row(words, f"{plan[f'{key}_flops']:.2e} operations")
    table.add_section()
    for key, words in SIZES.items():
        table.add_row(words, size(plan[f"{key}_bytes"]))
    table.add_row("products", plan["storage_words"])
    table.add_section()
    table.add_row("estimated time", "unknown" if plan["seconds"] is None else _time(plan["seconds"]))
    table.add_row("fits", "yes" if plan["fits"] else "no: take fewer models or layers, or another device")
    return table


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
