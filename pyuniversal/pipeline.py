"""The whole line as one function, `run`, and its stages; every default stands in a keyword-only signature here, and the command line reads it from there.

Importing this module loads neither torch nor numpy: what a stage needs is imported when it runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from .results import Run
    from .streaming import Plan
    from .totals import Totals

ModelLike = Any  # a name, a folder, or a loaded model: see `load_model`
P = ParamSpec("P")
T = TypeVar("T")


def _shared(stage: Callable[P, T]) -> Callable[P, T]:
    """A stage that the processes which torchrun started do together: they are connected while it lasts."""

    @functools.wraps(stage)
    def together(*args: P.args, **options: P.kwargs) -> T:
        from . import stages

        with stages.started(str(options.get("device", "auto"))):
            return stage(*args, **options)

    return together


@_shared
def run(
    models: Sequence[ModelLike] | None = None,
    *,
    text: Any = None,
    tokens: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "universal-run",
    max_tokens: int | None = None,
    dense_tokens: int | None = None,
    confirm_tokens: int | None = None,
    row_tokens: int = 512,
    packing: str = "documents",
    split: str | None = None,
    name: str | None = None,
    column: str = "text",
    subset_column: str | None = None,
    layers: Sequence[int] | None = None,
    site: str = "mlp.post",
    precision: str = "int8",
    baseline: str = "haar",
    baseline_draws: int = 5,
    top_k: int = 50,
    null_tokens: int = 1_000_000,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    batch_tokens: int | None = None,
    chunk_tokens: int = 16_384,
    storage: str = "auto",
    memory: int | None = None,
    legacy: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Find the universal neurons of some models: text in, tables and figures out.

    Every pair of models is correlated, so that each gets its own table; one model alone gets all statistics but the correlations. A run that was stopped goes
    on from its last checkpoint when it is called again with the same arguments.

    Args:
        models: names, folders or loaded models (`load_model`), all with one tokenizer. Five small GPT-2 seeds that come with the package where None.
        text: what `tokenize` takes: strings, files, a folder, the name of a data set. The zoo's own held-out text where models is None.
        tokens: folder of tokens made before, instead of text.
        out: folder of the run.
        max_tokens: at most so many tokens, BOS included: the beginning of a text, random rows of a folder of tokens. All by default, but of the zoo's text
            `zoo.MAX_TOKENS`, which take a minute or two. One document in ten is held out of them.
        dense_tokens: at most so many of them go through the product of all neurons with all; the rest is summed for the 16 best partners of every neuron
            alone, at a fraction of the work. All where None.
        confirm_tokens: at most so many of that rest; all where None.
        row_tokens: longest row, BOS included; no more than any model's context.
        packing: "documents" (one document a row) or "joined" (the paper's way).
        split: of a data set; see `tokenize`.
        name: configuration of a data set.
        column: of the text.
        subset_column: names each document's subset.
        layers: only these layers of every model.
        site: what is correlated, "mlp.post" or "mlp.pre".
        precision: of the products: "int8" (unbiased, its error is known and reported), "bf16", "float32", "float64".
        baseline: "haar" (random orthogonal rotations) or "gaussian" (the paper's unit-norm Gaussian rows).
        baseline_draws: how many rotations; a pair's baseline is the mean over them.
        top_k: partners kept of every neuron in every other model.
        null_tokens: at most so many tokens, and a quarter of the run's, are run again with their documents re-paired: what best r comes by chance alone.
        seed: of the order of rows, the held-out documents, the rounding and the rotations.
        device: "auto", "cpu", "cuda", ...
        dtype: what the models compute in.
        batch_tokens: tokens that go through a model at once; memory and speed only. 2,048 on a CPU, 16,384 on a GPU where None.
        chunk_tokens: unit of rounding, products and checkpoints.
        storage: where the products live while the tokens stream: "resident" (in the device's memory), "host" (in the host's, for a GPU), "disk" (each read and
            written once a chunk), "sweeps" (some of them at a time, the tokens going through the models several times); "auto" takes the fastest that fits. The
            sums are the same.
        memory: bytes that the process may hold on the device; all that is free where None.
        legacy: moments, firing frequency and vocabulary statistics as the study computed them.
        trust_remote_code: let code from a model's folder run.
        overwrite: throw away what another run left in `out`.
        progress: show progress bars.

    Raises:
        InputError: models, text or options that cannot be used; says which and why.
        FileError: a file cannot be read or written.
        ActivationError: a model yields NaN or Inf.
        NotEnoughMemoryError: the run does not fit; says by how much and what would.
    """
    from . import stages

    stages.check_table(baseline=baseline, baseline_draws=baseline_draws, top_k=top_k)
    inputs = stages.prepare(
        models,
        out,
        source={"text": text, "tokens": tokens, "packing": packing, "split": split, "name": name, "column": column, "subset_column": subset_column},
        max_tokens=max_tokens,
        dense_tokens=dense_tokens,
        confirm_tokens=confirm_tokens,
        row_tokens=row_tokens,
        layers=layers,
        site=site,
        precision=precision,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        progress=progress,
    )
    totals = stages.observe(inputs, storage=storage, memory=memory, progress=progress)
    if not inputs.ranks.rank:
        stages.accept(inputs)
        stages.note(inputs, totals)
    del totals  # products that are in memory, before what follows takes some
    if inputs.ranks.rank:
        return stages.follow(inputs)
    here = {"hashes": False}  # of files that this process wrote or checked just now
    if dense_tokens is not None:
        stages.refine(inputs, progress=progress, **here)
    stages.confirm(inputs, progress=progress, **here)
    stages.chance(inputs, null_tokens=null_tokens, memory=memory, progress=progress, **here)
    finished = stages.table(out, baseline=baseline, baseline_draws=baseline_draws, top_k=top_k, seed=seed, legacy=legacy, device=device, memory=memory, **here)
    inputs.ranks.wait()  # those that follow
    return finished


@_shared
def observe_stage(
    models: Sequence[ModelLike] | None = None,
    *,
    text: Any = None,
    tokens: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "universal-run",
    max_tokens: int | None = None,
    row_tokens: int = 512,
    packing: str = "documents",
    split: str | None = None,
    name: str | None = None,
    column: str = "text",
    subset_column: str | None = None,
    layers: Sequence[int] | None = None,
    site: str = "mlp.post",
    precision: str = "int8",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    batch_tokens: int | None = None,
    chunk_tokens: int = 16_384,
    storage: str = "auto",
    memory: int | None = None,
    shard: tuple[int, int] | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Totals:
    """Load the models, tokenise, make the one pass, and leave its sums and the weights' statistics in `out`. Arguments and errors as of `run`.

    With `shard` (k, n) it adds only the chunks whose number is k modulo n; `merge` joins the folders of all n, which may come from different machines.
    """
    from . import stages

    inputs = stages.prepare(
        models,
        out,
        source={"text": text, "tokens": tokens, "packing": packing, "split": split, "name": name, "column": column, "subset_column": subset_column},
        max_tokens=max_tokens,
        dense_tokens=None,
        confirm_tokens=None,
        row_tokens=row_tokens,
        layers=layers,
        site=site,
        precision=precision,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        progress=progress,
    )
    totals = stages.observe(inputs, storage=storage, memory=memory, progress=progress, shard=shard)
    if not inputs.ranks.rank:
        stages.note(inputs, totals, shard=shard)
    return totals


def merge(folders: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str]) -> Totals:
    """Join the folders that `observe_stage` made of the shards of one pass in the new folder `out`, of which `table_stage` makes the rest.

    Counts and histograms are those of one process exactly, moments and products to the rounding of their sums. One product at a time is in memory.

    Raises:
        InputError: fewer than two folders, or they hold the same chunk or are of different runs, which it names; or `out` holds something.
        FileError: a folder holds no shard, is damaged, or `out` cannot be written.
    """
    from . import stages

    return stages.merge(folders, out)


def table_stage(
    out: str | os.PathLike[str],
    *,
    baseline: str = "haar",
    baseline_draws: int = 5,
    top_k: int = 50,
    seed: int = 0,
    legacy: bool = False,
    device: str = "auto",
) -> Run:
    """Make partners, neuron table, CSVs and figures (again) of the sums that `observe_stage` left in `out`; no model is run. Arguments as of `run`.

    Raises:
        FileError: `out` holds no complete pass, or cannot be written.
        InputError: an unknown baseline.
    """
    from . import stages

    return stages.table(out, baseline=baseline, baseline_draws=baseline_draws, top_k=top_k, seed=seed, legacy=legacy, device=device)


def plan(
    models: Sequence[ModelLike] | None = None,
    *,
    tokens: str | os.PathLike[str] | None = None,
    max_tokens: int | None = None,
    dense_tokens: int | None = None,
    layers: Sequence[int] | None = None,
    site: str = "mlp.post",
    precision: str = "int8",
    baseline_draws: int = 5,
    top_k: int = 50,
    null_tokens: int = 1_000_000,
    device: str = "auto",
    dtype: str = "float32",
    batch_tokens: int | None = None,
    chunk_tokens: int = 16_384,
    storage: str = "auto",
    memory: int | None = None,
    out: str | os.PathLike[str] = "universal-run",
    trust_remote_code: bool = False,
) -> Plan:
    """Operations, memory, disk and time of a run, from the shapes of its models alone; nothing is loaded or written. Arguments as of `run`.

    The tokens are counted in the folder `tokens`; otherwise they are taken to be `max_tokens` (100 million where that is None).

    Raises:
        InputError: a model that cannot be found.
    """
    from . import stages

    return stages.plan(
        models,
        tokens=tokens,
        max_tokens=max_tokens,
        dense_tokens=dense_tokens,
        layers=layers,
        site=site,
        precision=precision,
        baseline_draws=baseline_draws,
        top_k=top_k,
        null_tokens=null_tokens,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
        storage=storage,
        memory=memory,
        out=out,
        trust_remote_code=trust_remote_code,
    )


def confirm_stage(
    run: str | os.PathLike[str],
    models: Sequence[ModelLike] | None = None,
    *,
    tokens: str | os.PathLike[str] | None = None,
    null_tokens: int = 1_000_000,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> None:
    """What `run` does with the models after the pass: confirm partners on held-out documents, and re-pair documents for what comes by chance.

    It needs the sums in the folder `run`; `table_stage` then takes both into its tables.

    Args:
        run: folder of a complete pass.
        models: in the order of the run; those that its manifest names where None.
        tokens: folder of the run's tokens; where its manifest says where None.
        null_tokens: as of `run`.
        device: as of `run`.
        trust_remote_code: let code from a model's folder run.
        progress: show progress bars.

    Raises:
        FileError: there is no complete pass, or its models or tokens are not to be found.
        InputError: models or tokens are not those of the run.
    """
    from . import stages

    inputs = stages.reopen(run, models, tokens=tokens, device=device, trust_remote_code=trust_remote_code)
    if inputs.options["dense_tokens"] is not None:
        stages.refine(inputs, progress=progress)
    stages.confirm(inputs, progress=progress)
    stages.chance(inputs, null_tokens=null_tokens, memory=None, progress=progress)


def verify(
    run: str | os.PathLike[str],
    models: Sequence[ModelLike] | None = None,
    *,
    tokens: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Check a finished run: its sums against their hashes, its moments, and r of a random thousandth of its neurons against float64, from the models anew.

    Args:
        run: folder of the run.
        models: in the order of the run; those that its manifest names where None.
        tokens: folder of the run's tokens; where its manifest says where None.
        seed: of the choice of neurons.
        device: as of `run`.
        trust_remote_code: let code from a model's folder run.
        progress: show progress bars.

    Returns:
        neurons (how many of each model), correlations (how many), tokens, largest_difference (of r), failures (a sentence for each, none where all is well).

    Raises:
        FileError: a file is damaged (named), or models or tokens are not to be found.
        InputError: models or tokens are not those of the run.
    """
    from . import stages

    return stages.verify(run, models, tokens=tokens, seed=seed, device=device, trust_remote_code=trust_remote_code, progress=progress)


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
    """What differs between two finished runs, from options to numbers; see `pyuniversal.comparison.compare`."""
    from . import comparison

    return comparison.compare(first, second)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the folder of a finished run; see `pyuniversal.results.open_run`."""
    from . import results

    return results.open_run(path)
