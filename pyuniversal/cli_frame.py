"""What all verbs of the command line share: options read from signatures, errors and interruptions in words, what is said before and after the work."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import click

from .cli_types import Count, Layers, Shard, Size
from .errors import PyUniversalError, Terminated

logger = logging.getLogger("pyuniversal")


# What each argument is called and means on the command line. `absent` says what happens where the default is None.
OPTIONS: dict[str, dict[str, Any]] = {
    "text": {
        "metavar": "NAME-OR-PATH",
        "absent": "the embedded text, for the embedded models",
        "help": "Hugging Face data set (streamed), or a .txt, .jsonl or .parquet file or a folder of them.",
    },
    "tokens": {"metavar": "FOLDER", "absent": "none", "help": "Folder that `pyuniversal tokens` made, instead of a text."},
    "out": {
        "flags": ["-o", "--out"],
        "metavar": "FOLDER",
        "help": "Where everything is written; a run that was cut off goes on from it.",
    },
    "max_tokens": {
        "type": Count(),
        "absent": "all; 300,000 of the embedded text",
        "help": "At most so many (100m, 1.5k, 2_000, 1e6): a text's beginning, a folder's random rows.",
    },
    "dense_tokens": {"type": Count(), "absent": "all", "help": "So many for all pairs of neurons; the rest for the best partners of each alone."},
    "confirm_tokens": {"type": Count(), "absent": "all the rest", "help": "At most so many of that rest."},
    "row_tokens": {"type": Count(), "help": "Tokens of a row, its BOS included; longer documents continue in further rows."},
    "packing": {"type": click.Choice(["documents", "joined"]), "help": "One document a row, or documents joined end to end as in the paper."},
    "split": {"metavar": "NAME", "absent": "the only one, else test, validation or train", "help": "Split of the data set."},
    "name": {"metavar": "NAME", "absent": "the only one", "help": "Configuration (subset) of the data set."},
    "column": {"metavar": "NAME", "help": "Column that holds the text."},
    "subset_column": {"metavar": "NAME", "absent": "none", "help": "Column that names each document's subset."},
    "layers": {"type": Layers(), "absent": "every layer", "help": "Only these layers: 4-8,11."},
    "site": {"type": click.Choice(["mlp.post", "mlp.pre"]), "help": "After or before the activation function."},
    "precision": {"type": click.Choice(["int8", "bf16", "float32", "float64"]), "help": "Of the products behind the correlations; float64 is the reference."},
    "baseline": {"type": click.Choice(["haar", "gaussian"]), "help": "Random rotation of the other model: orthogonal, or the paper's unit-norm rows."},
    "baseline_draws": {"type": click.IntRange(min=1), "help": "Rotations to average over."},
    "top_k": {"type": click.IntRange(min=1), "help": "Partners kept for every neuron and other model."},
    "null_tokens": {"type": Count(), "help": "At most so many, and a quarter of the run's, with their documents re-paired: best r by chance."},
    "seed": {"type": click.IntRange(min=0), "help": "Of every draw: order of rows, rounding, rotations."},
    "device": {"metavar": "DEVICE", "help": "cpu, cuda, cuda:1; auto is cuda where there is one."},
    "dtype": {"type": click.Choice(["float32", "tf32", "bfloat16", "float16", "float64"]), "help": "What the models compute in; tf32 on CUDA."},
    "batch_tokens": {"type": Count(), "absent": "2,048; 16,384 on a GPU", "help": "Tokens of a forward pass; less needs less memory, results stay the same."},
    "chunk_tokens": {"type": Count(), "help": "Tokens of a chunk, the unit of rounding and of the checkpoint."},
    "storage": {
        "type": click.Choice(["auto", "resident", "host", "disk", "sweeps"]),
        "help": "Where the products live: on the device, in the host's memory, on disk, or some at a time; auto takes the fastest that fits.",
    },
    "shard": {"type": Shard(), "metavar": "K/N", "absent": "the whole", "help": "Only part K of N, 0/2 or 1/2 say, on one of N machines; `merge` joins them."},
    "memory": {"type": Size(), "absent": "all that is free", "help": "What the process may hold on the device: 1GB, 500MB, 16GiB."},
    "legacy": {"help": "Moments, firing frequency and vocabulary statistics as the study computed them."},
    "trust_remote_code": {"help": "Let models run code from their repository."},
    "overwrite": {"help": "Throw away what an earlier run left in the folder."},
}
NOT_OPTIONS = {"progress"}  # --quiet


def takes(function: Callable[..., Any], only: frozenset[str] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the options that `function` has as keyword-only arguments (of these `only` some), defaults read from its signature."""

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        for argument in reversed(_keywords(function)):
            if only is None or argument.name in only:
                verb = _option(argument)(verb)
        return verb

    return decorate


def _keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in NOT_OPTIONS]


def _option(argument: inspect.Parameter) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    attributes = dict(OPTIONS[argument.name])
    flags = attributes.pop("flags", ["--" + argument.name.replace("_", "-")])
    absent = attributes.pop("absent", None)
    shown = absent if argument.default is None else argument.default is not False
    return click.option(*flags, argument.name, default=argument.default, show_default=shown, is_flag=argument.default is False, **attributes)


TALK = {"as_json", "quiet", "verbose"}


def talks(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --json, --quiet and --verbose."""
    verb = click.option("--verbose", is_flag=True, help="Say more; show where an error came from.")(verb)
    verb = click.option("--quiet", is_flag=True, help="Say nothing but errors (and what --json asks for).")(verb)
    return click.option("--json", "as_json", is_flag=True, help="Result as JSON on standard output; everything else goes to standard error.")(verb)


class Verb(click.Command):
    """A command whose errors are told in words and whose interruption says what comes next."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb: exit code 1 for a PyUniversalError (2 with --exit-code), 130 for Ctrl-C, 143 for SIGTERM; other errors go up with their traceback."""
        rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
        if rank != "0":  # of several processes the first talks, unless another fails, and does alone what is not shared
            if ctx.command.name not in SHARED:
                return None
            ctx.params.update(quiet=True, as_json=False)
        with _heeding(rank == "0"):
            return self._told(ctx, rank)

    def _told(self, ctx: click.Context, rank: str) -> Any:
        verbose, quiet = ctx.params.get("verbose", False), ctx.params.get("quiet", False)
        try:
            with _logging(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO):
                return super().invoke(ctx)
        except PyUniversalError as error:
            if verbose:
                traceback.print_exc()
            click.secho(f"Error{'' if rank == '0' else f' (rank {rank})'}: {error}", fg="red", err=True)
            ctx.exit(2 if ctx.params.get("exit_code") else 1)  # 1 then says that two runs differ
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            again = "the same command" + (" without --overwrite" if ctx.params.get("overwrite") else "")
            kept = KEPT.get(ctx.command.name or "", "Nothing was written; {again} begins anew").format(again=again)
            if rank == "0":
                click.echo(f"\n{'Terminated' if terminated else 'Interrupted'}. {kept}.", err=True)
            ctx.exit(143 if terminated else 130)


class Verbs(click.Group):
    """The group; lists verbs in the order of a working day."""

    command_class = Verb

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs as they were defined."""
        return list(self.commands)


SHARED = {"run", "observe"}  # by all processes of torchrun
KEPT = {  # of a verb that was stopped
    "run": "Chunks of the last checkpoint and stages that ended are kept; {again} resumes where it stopped",
    "observe": "Chunks of the last checkpoint are kept; {again} resumes where it stopped",
    "tokens": "Blocks of documents that are done are kept; {again} resumes where it stopped",
    "confirm": "Batches of documents that are done are kept; {again} resumes where it stopped",
    "table": "The sums are as they were, and tables that are done are whole; {again} makes them all again",
}


@contextlib.contextmanager
def _heeding(heeds: bool) -> Iterator[None]:
    """Inside the `with` block SIGTERM, which schedulers send some seconds before they kill, is an error like Ctrl-C, so that what was begun is put away.

    Another within ten seconds, which process groups are sent, changes nothing. In the pass `streaming.checkpoints` takes its place. Ranks behind the first
    keep Python's way, death at once: they have nothing to say, and a signal is not heard in the middle of waiting for another.
    """
    if not heeds or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = -math.inf

    def stop(*_: object) -> None:
        nonlocal heard
        before, heard = heard, time.monotonic()
        if heard - before > 10:
            raise Terminated("SIGTERM")

    handler = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _logging(level: int) -> Iterator[None]:
    """Send the library's log to standard error while a verb runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def work(function: Callable[..., Any], *subjects: Any, options: dict[str, Any], quiet: bool) -> Any:
    """Say with what options the work begins, then do it; whatever a library prints meanwhile goes to standard error too."""
    context = click.get_current_context()
    if not quiet:
        click.secho(f"pyuniversal {context.command.name}", bold=True, err=True)
        for parameter in context.command.params:  # in the order of the help; context.params has that of typing
            if parameter.name in context.params and parameter.name not in TALK:
                click.echo(f"  {parameter.name.replace('_', '-'):<18} {_words(parameter.name, context.params[parameter.name])}", err=True)
    extra = {"progress": not quiet} if "progress" in inspect.signature(function).parameters else {}
    with contextlib.redirect_stdout(sys.stderr):
        return function(*subjects, **options, **extra)


def _words(name: str, value: Any) -> str:
    """An option's value as it is echoed: what None stands for, numbers with separators, lists as they are typed."""
    if value is None or value == ():
        return str(OPTIONS.get(name, {}).get("absent", "the embedded ones"))
    if name == "shard":
        return "/".join(map(str, value))
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_table(renderable: Any) -> None:
    """Tables on standard output; wide enough for them where it is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(renderable)


def print_json(value: Any) -> None:
    """A result as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
