"""The command line: every verb is one function, and every option one of its keyword-only arguments, default included.

Importing this module must cost nothing: `--help` loads neither torch nor numpy. So whatever computes is imported inside the verb that needs it.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.core import ParameterSource

from . import pipeline
from .cli_frame import Verbs, print_json, print_table, takes, talks, work


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
    # Read when torch is first imported. Threads that spin while they wait keep others from the core: beside two busy processes a run took three times as long,
    # and on a quiet machine this costs 2 %.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _summary(run: Any, *, as_json: bool, quiet: bool) -> None:
    """A run's summary: JSON, tables, or nothing."""
    if as_json:
        print_json({"path": str(run.path), **run.summary()})
    elif not quiet:
        from .report import render

        print_table(render(run.summary()))
        click.echo(f"Written to {run.path}")


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
    result = work(pipeline.run, list(models) or None, options=options, quiet=quiet)
    _summary(result, as_json=as_json, quiet=quiet)


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
    """Tokenise TEXT once, for several runs: a .txt, .jsonl or .parquet file, a folder of them, or a Hugging Face data set.

    Rows are no longer than the context that the tokenizer names, unless --row-tokens says otherwise.
    """
    from .models import load_tokenizer
    from .tokens import tokenize

    loaded = load_tokenizer(tokenizer, source=f"--tokenizer {tokenizer}", trust_remote_code=trust_remote_code)
    context = click.get_current_context()
    if context.get_parameter_source("row_tokens") is ParameterSource.DEFAULT and loaded.model_max_length < options["row_tokens"]:
        options["row_tokens"] = context.params["row_tokens"] = int(loaded.model_max_length)
    made = work(tokenize, text, loaded, options=options, quiet=quiet)
    if as_json:
        print_json({"path": str(made.path), "hash": made.hash, "documents": made.n_documents, "rows": made.n_rows, "tokens": made.n_tokens})
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
    needs = work(pipeline.plan, list(models) or None, options=options, quiet=quiet).as_dict()
    if as_json:
        print_json(needs)
    elif not quiet:
        from .report import render_plan

        print_table(render_plan(needs))


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
    totals = work(pipeline.observe_stage, list(models) or None, options=options, quiet=quiet)
    if as_json:
        print_json({"path": str(options["out"]), "tokens": totals.tokens})
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
    totals = work(pipeline.merge, folders, options={"out": out}, quiet=quiet)
    there, missing = len(totals.chunks), totals.n_chunks - len(totals.chunks)
    if as_json:
        print_json({"path": out, "tokens": totals.tokens, "chunks": there, "missing": missing})
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
    result = work(pipeline.table_stage, folder, options=options, quiet=quiet)
    _summary(result, as_json=as_json, quiet=quiet)


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
    work(pipeline.confirm_stage, folder, list(models) or None, options=options, quiet=quiet)
    if as_json:
        print_json({"path": folder})
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
    """Check the finished run in the folder RUN: sums and tables against their hashes, r of a random thousandth of its neurons against float64.

    Exit code 1 where something differs by more than rounding explains. Without MODEL and --tokens it loads what the manifest in RUN names, local folders or
    names on the Hugging Face hub, and says which; of a RUN from somebody else, look at them first. Only safetensors are read, and no code of theirs is run
    unless --trust-remote-code.
    """
    found = work(pipeline.verify, folder, list(models) or None, options=options, quiet=quiet)
    if as_json:
        print_json(found)
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
    _summary(pipeline.open_run(folder), as_json=as_json, quiet=quiet)


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
        print_json(found)
    elif not quiet:
        from .report import render_differences

        print_table(render_differences(found))
    if exit_code and not found["identical"]:
        click.get_current_context().exit(1)
