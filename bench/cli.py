"""The command line: `python -m bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pyuniversal.cli_types import Count

# Case -> module of this folder whose `trials(setting)` yields it; imported when it is asked for, so that --help is quick.
CASES: dict[str, str] = {
    "moments_": "moments",
    "histogram_": "histogram",
    "dyadic_histogram_": "dyadic_histogram",
    "token_sums_": "token_sums",
    "pair_sums_": "pair_sums",
    "logit_stats": "logit_stats",
    "quantize": "quantize",
    "product_": "product",
    "summarize_correlation": "summarize_correlation",
    "correlate": "correlate",
    "run": "run",
}
BY_NAME_ONLY = ("run",)  # it takes long
ALONE = ("profile", "loop", "plan", "forward", "scale")  # no contenders and rows of their own kind, or none; by name only


class CaseName(click.ParamType):
    """A case, with or without the underscore that an op in place ends in."""

    name = "case"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for known in (*CASES, *ALONE):
            if value.rstrip("_") == known.rstrip("_"):
                return known
        self.fail(f"{value!r} is none of {', '.join((*CASES, *ALONE))}.", param, ctx)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="""\b
Examples:
  python -m bench                                         every op and correlate, on the backends that run here
  python -m bench moments_ quantize --backend cpu         two ops, one backend
  python -m bench product_ --quick --no-save              does it work at all? Small shapes, numbers without meaning
  python -m bench product_ --backend cuda --repeats 20
  python -m bench run --tokens 65_536                     the whole line at the shape of GPT2-small, beside the study's way
  python -m bench profile --tokens 100k                   where the time of a run on the embedded models goes
  python -m bench loop                                    what a GPU does during a pass, and who waits
  python -m bench plan                                    how long runs take beside what their plans say
  python -m bench forward                                 forward passes by dtype: speed, and what they change in r
  python -m bench scale                                   predicted times on 1, 8 and 64 H100s""",
)
@click.argument("cases", nargs=-1, type=CaseName(), metavar="[CASE]...")
@click.option("--backend", type=click.Choice(["cpu", "cuda", "triton", "reference"]), help="Only this one; by default all that run on the device.")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="cpu or cuda; auto follows the backend, else cuda where there is one.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch and of the compiled ops; by default what torch takes.")
@click.option("--repeats", type=click.IntRange(min=1), help="Samples of every contender; by default what the case deems enough.")
@click.option("--tokens", type=Count(), help="Of run (65,536; on a GPU 524,288), profile (100,000) and loop (98,304).")
@click.option("--opponent-tokens", type=Count(), help="On how many of them run times its opponents (12,288; on a GPU 24,576 and 98,304).")
@click.option("--quick", is_flag=True, help="Small shapes and few repeats: shows that it works, measures nothing.")
@click.option("--save/--no-save", default=True, show_default=True, help="Append the rows to a file.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="That file; by default bench/results/MACHINE-DATE.jsonl.")
def main(
    cases: tuple[str, ...],
    backend: str | None,
    device: str,
    threads: int | None,
    repeats: int | None,
    tokens: int | None,
    opponent_tokens: int | None,
    quick: bool,
    save: bool,
    out: Path | None,
) -> None:
    """Check implementations against float64, time them beside the naive ways in the same process, write one row for each.

    CASE is an op (moments_, histogram_, dyadic_histogram_, token_sums_, pair_sums_, logit_stats, quantize, product_, summarize_correlation), correlate, run,
    profile, loop, plan, forward or scale; all but the last six by default. A contender that computes something wrong ends the bench: it gets no row.
    """
    import torch

    from .machine import results_file
    from .measure import rows_of
    from .trial import Setting

    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(_device(device, backend), backend, quick, repeats, tokens, opponent_tokens)
    cases = tuple(dict.fromkeys(cases)) or tuple(name for name in CASES if name not in BY_NAME_ONLY)
    made: list[dict[str, Any]] = []
    for name in cases:
        if name in ALONE:
            for found in getattr(import_module(f"bench.{name}"), name)(setting):  # rows as they are made, and a table
                if not isinstance(found, dict):
                    _print(found)
                elif save:
                    _append(out or results_file(setting.device), [found])
            continue
        for trial in import_module(f"bench.{CASES[name]}").trials(setting):
            if trial.ours:
                rows = rows_of(trial, setting)
                for row in rows:
                    click.echo(f"{row['op']} ({row['case']}), {row['backend']}: {_seconds(row['median_s'])}", err=True)
                if save:
                    _append(out or results_file(setting.device), rows)
                made += rows
            del trial  # the next one is made when there is room again
    if made:
        _print(_table(made))
    elif not set(cases) & {*ALONE}:
        raise click.ClickException("nothing was measured: no case runs so")


def _device(device: str, backend: str | None) -> str:
    import torch

    if device == "auto":  # Triton runs interpreted on a CPU, the reference anywhere
        device = backend if backend in ("cpu", "cuda") else "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("this needs a GPU, and torch sees none")
    return device


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="medians; ratios are how many times longer the opponent takes" + (" (--quick: no measurement)" if rows[0]["quick"] else ""))
    for heading in ("case", "backend", "median", "rate", "of ceiling", "opponents"):
        table.add_column(heading, justify="right" if heading in ("median", "rate", "of ceiling") else "left")
    for row in rows:
        limits = {name: c["share"] for name, c in row["ceilings"].items() if c["share"] is not None}
        limit = max(limits, key=lambda name: limits[name], default=None)
        ratios = "\n".join(f"{name} {entry['ratio']:.3g}x" for name, entry in row["opponents"].items())
        share = "unknown" if row["share"] is None or limit is None else f"{limits[limit]:.0%} {limit}"
        table.add_row(f"{row['op']}\n{row['case']}", row["backend"], _seconds(row["median_s"]), f"{row['rate']:.3g} {row['unit']}", share, ratios)
    return table


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(renderable)
