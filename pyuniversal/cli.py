"""The command line: every verb is one function, and every option one of its keyword-only arguments, default included.

Importing this module must cost nothing: `--help` loads neither torch nor numpy. So whatever computes is imported inside the verb that needs it.
"""

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

from . import pipeline
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


def _work(function: Callable[..., Any], *subjects: Any, options: dict[str, Any], quiet: bool) -> Any:
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


def _print(renderable: Any) -> None:
    """Tables on standard output; wide enough for them where it is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(renderable)


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _show(run: Any, *, as_json: bool, quiet: bool) -> None:
    """A run's summary: JSON, tables, or nothing."""
    if as_json:
        _json({"path": str(run.path), **run.summary()})
    elif not quiet:
        from .report import render

        _print(render(run.summary()))
        click.echo(f"Written to {run.path}")


@click.group(
    "pyuniversal",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="""\b
Examples:
  pyuniversal run                                     five embedded seeds and their text: a first look, no network
  pyuniversal run A B C --text corpus.txt -o study    your models, your text
  pyuniversal show study                              what a finished run found
  pyuniversal run --help                              every option and its default""",
)
@click.version_option(package_name="pyuniversal", prog_name="pyuniversal")
def main() -> None:
    """Find the neurons that language models trained from different seeds have in common, and say what they do."""


@main.command(
    epilog="""\b
Examples:
  pyuniversal run
  pyuniversal run ./seed-a ./seed-b ./seed-c --text corpus.jsonl --out study
  pyuniversal run pythia-160m pythia-160m-seed1 --text NeelNanda/pile-10k --split train --max-tokens 10m
  pyuniversal run ./seed-a ./seed-b --tokens corpus-tokens --dense-tokens 10m --confirm-tokens 90m
  pyuniversal run ./seed-a ./seed-b --tokens corpus-tokens --json --quiet > summary.json"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@takes(pipeline.run)
@talks
def run(models: tuple[str, ...], *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Run the whole line: tokens, every MODEL once, partners, table, figures.

    MODEL is a name on the Hugging Face hub or a local folder. Without any, five small embedded models and their text are used: no network is needed. One MODEL
    alone gets all statistics but the correlations. A run that was cut off goes on with the same command.
    """
    result = _work(pipeline.run, list(models) or None, options=options, quiet=quiet)
    _show(result, as_json=as_json, quiet=quiet)


@main.command(
    epilog="""\b
Examples:
  pyuniversal tokens corpus.jsonl --tokenizer ./seed-a --out corpus-tokens
  pyuniversal tokens ./books --tokenizer gpt2 --row-tokens 256 --out books-tokens
  pyuniversal tokens NeelNanda/pile-10k --tokenizer pythia-160m --split train --subset-column meta.pile_set_name --out pile-tokens
  pyuniversal tokens corpus.parquet --tokenizer gpt2 --column body --packing joined --max-tokens 100m --out joined-tokens"""
)
@click.argument("text")
@click.option("--tokenizer", required=True, metavar="MODEL", help="Name or folder of a model (or of a tokenizer alone).")
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Folder of the tokens, for --tokens of `run`; a cut-off command goes on from it.")
@takes(pipeline.run, only=frozenset(("max_tokens", "row_tokens", "packing", "split", "name", "column", "subset_column", "trust_remote_code")))
@talks
def tokens(text: str, *, tokenizer: str, trust_remote_code: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Tokenise TEXT once, for several runs: a .txt, .jsonl or .parquet file, a folder of them, or a Hugging Face data set."""
    from .models import load_tokenizer
    from .tokens import tokenize

    loaded = load_tokenizer(tokenizer, source=f"--tokenizer {tokenizer}", trust_remote_code=trust_remote_code)
    made = _work(tokenize, text, loaded, options=options, quiet=quiet)
    if as_json:
        _json({"path": str(made.path), "hash": made.hash, "documents": made.n_documents, "rows": made.n_rows, "tokens": made.n_tokens})
    elif not quiet:
        click.echo(f"{made.n_tokens:,} tokens in {made.n_rows:,} rows of {made.n_documents:,} documents, written to {made.path}")


@main.command(
    epilog="""\b
Examples:
  pyuniversal plan
  pyuniversal plan gpt2 distilgpt2 --max-tokens 100m
  pyuniversal plan ./seed-a ./seed-b --tokens corpus-tokens --precision bf16 --device cuda --json"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@takes(pipeline.plan)
@talks
def plan(models: tuple[str, ...], *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Say what a run would need in memory, disk and time, without doing it.

    Without --tokens and --max-tokens, 100 million tokens are assumed.
    """
    needs = _work(pipeline.plan, list(models) or None, options=options, quiet=quiet).as_dict()
    if as_json:
        _json(needs)
    elif not quiet:
        from .report import render_plan

        _print(render_plan(needs))


@main.command(
    epilog="""\b
Examples:
  pyuniversal observe ./seed-a ./seed-b --tokens corpus-tokens --out study
  pyuniversal observe gpt2 distilgpt2 --text corpus.txt --max-tokens 2m --out study
  pyuniversal observe ./seed-a ./seed-b --tokens corpus-tokens --shard 0/2 --out study-0"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@takes(pipeline.observe_stage)
@talks
def observe(models: tuple[str, ...], *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Only the pass: run every MODEL over the text and keep the sums, of which `table` makes the rest."""
    totals = _work(pipeline.observe_stage, list(models) or None, options=options, quiet=quiet)
    if as_json:
        _json({"path": str(options["out"]), "tokens": totals.tokens})
    elif not quiet:
        again = f"pyuniversal table {options['out']}" if options["shard"] is None else "pyuniversal merge, with the folders of the other shards"
        click.echo(f"Sums over {totals.tokens:,} tokens written to {options['out']}; next: {again}")


@main.command(
    epilog="""\b
Examples:
  pyuniversal merge study-0 study-1 --out study && pyuniversal table study
  pyuniversal merge study-0 study-1 study-2 --out study --json"""
)
@click.argument("folders", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("-o", "--out", required=True, metavar="FOLDER", help="New folder for the sums of all.")
@talks
def merge(folders: tuple[str, ...], *, out: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Join the sums that `observe --shard` left in several folders RUN; of the result `table` makes the rest."""
    totals = _work(pipeline.merge, folders, options={"out": out}, quiet=quiet)
    there, missing = len(totals.chunks), totals.n_chunks - len(totals.chunks)
    if as_json:
        _json({"path": out, "tokens": totals.tokens, "chunks": there, "missing": missing})
    elif not quiet:
        then = f"{missing} chunks are still missing: merge it with their shards" if missing else f"next: pyuniversal table {out}"
        click.echo(f"Sums over {totals.tokens:,} tokens written to {out}; {then}")


@main.command(
    epilog="""\b
Examples:
  pyuniversal table study
  pyuniversal table study --baseline gaussian --baseline-draws 20 --seed 1
  pyuniversal table study --legacy --json"""
)
@click.argument("folder", metavar="RUN")
@takes(pipeline.table_stage)
@talks
def table(folder: str, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Make partners, table and figures (again) of the sums that `observe` or `run` left in the folder RUN; no model is run."""
    result = _work(pipeline.table_stage, folder, options=options, quiet=quiet)
    _show(result, as_json=as_json, quiet=quiet)


@main.command(
    epilog="""\b
Examples:
  pyuniversal confirm study
  pyuniversal confirm study ./seed-a ./seed-b --tokens corpus-tokens"""
)
@click.argument("folder", metavar="RUN")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@takes(pipeline.confirm_stage)
@talks
def confirm(folder: str, models: tuple[str, ...], *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Confirm the partners that the sums in the folder RUN choose on held-out documents, and find what comes by chance.

    `table` takes both into its tables. `run` does it by itself. Without MODEL and --tokens it loads what the manifest in RUN names, local folders or names on
    the Hugging Face hub, and says which; of a RUN from somebody else, look at them first. Only safetensors are read, and no code of theirs is run unless
    --trust-remote-code.
    """
    _work(pipeline.confirm_stage, folder, list(models) or None, options=options, quiet=quiet)
    if as_json:
        _json({"path": folder})
    elif not quiet:
        click.echo(f"Confirmed on held-out documents; next: pyuniversal table {folder}")


@main.command(
    epilog="""\b
Examples:
  pyuniversal verify study
  pyuniversal verify study ./seed-a ./seed-b --tokens corpus-tokens --seed 7"""
)
@click.argument("folder", metavar="RUN")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@takes(pipeline.verify)
@talks
def verify(folder: str, models: tuple[str, ...], *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Check the finished run in the folder RUN: files against their hashes, r of a random thousandth of its neurons against float64.

    Exit code 1 where something differs by more than rounding explains. Without MODEL and --tokens it loads what the manifest in RUN names, local folders or
    names on the Hugging Face hub, and says which; of a RUN from somebody else, look at them first. Only safetensors are read, and no code of theirs is run
    unless --trust-remote-code.
    """
    found = _work(pipeline.verify, folder, list(models) or None, options=options, quiet=quiet)
    if as_json:
        _json(found)
    elif not quiet:
        largest = "-" if found["largest_difference"] is None else f"{found['largest_difference']:.1e}"
        click.echo(f"{found['correlations']:,} correlations over {found['tokens']:,} tokens computed again; the largest difference is {largest}")
        click.echo("\n".join(found["failures"]) or "The run is what it says.")
    if found["failures"]:
        click.get_current_context().exit(1)


@main.command(
    epilog="""\b
Examples:
  pyuniversal show study
  pyuniversal show study --json"""
)
@click.argument("folder", metavar="RUN")
@talks
def show(folder: str, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Print the summary of the finished run in the folder RUN."""
    _show(pipeline.open_run(folder), as_json=as_json, quiet=quiet)


@main.command(
    epilog="""\b
Examples:
  pyuniversal diff study study-again
  pyuniversal diff study study-float64 --json > summary.json
  pyuniversal diff study study-again --quiet --exit-code"""
)
@click.argument("first", metavar="RUN1")
@click.argument("second", metavar="RUN2")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where the runs differ, 0 where they do not, 2 where they cannot be compared.")
@talks
def diff(first: str, second: str, *, exit_code: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what differs between two finished runs: versions, models, tokens, options, and every number of their tables."""
    found = pipeline.diff(first, second)
    if as_json:
        _json(found)
    elif not quiet:
        from .report import render_differences

        _print(render_differences(found))
    if exit_code and not found["identical"]:
        click.get_current_context().exit(1)
