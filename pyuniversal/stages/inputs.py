"""What the stages share: checked options, loaded models, tokens, the folder of a run, the clock."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import results, universality, zoo
from ..errors import FileError, InputError
from ..files import check_fields, check_writable, read_json, write_json
from ..models import Model, check_tokenizers, find_device, load_model
from ..models.loading import DTYPES
from ..ops import PRECISIONS
from ..sources import ModelSite
from ..streaming import Ranks, SourceShape
from ..tokens import Tokens, load_tokens, tokenize

log = logging.getLogger(__name__)

OURS = (
    *("manifest.json", "totals", "candidates", "confirmation", "tokens", "tables", "figures", "claims.json", "weights.parquet", "nulls.parquet"),
    *(f"{name}.parquet" for name in results.TABLES),
)


@dataclass(frozen=True)
class Inputs:
    """What the stages that run models work on: loaded models at their sites, tokens, the run's folder and its options as the manifest keeps them.

    ranks: this process among those that share the pass.
    """

    folder: Path
    sources: list[ModelSite]
    corpus: Tokens
    options: dict[str, Any]
    timings: dict[str, float]
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def dense_tokens(self) -> int | None:
        """At most so many tokens go through the dense pass; None: all."""
        limits = [limit for limit in (self.options["dense_tokens"], self.options["max_tokens"]) if limit is not None]
        return min(limits, default=None)


def prepare(
    models: Sequence[Any] | None,
    out: str | os.PathLike[str],
    *,
    source: Mapping[str, Any],
    max_tokens: int | None,
    dense_tokens: int | None,
    confirm_tokens: int | None,
    row_tokens: int,
    layers: Sequence[int] | None,
    site: str,
    precision: str,
    seed: int,
    device: str,
    dtype: str,
    batch_tokens: int | None,
    chunk_tokens: int,
    trust_remote_code: bool,
    overwrite: bool,
    progress: bool,
) -> Inputs:
    """Load the models, tokenise the text."""
    folder = check_writable(out)
    choice("precision", precision, PRECISIONS)
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    for name, tokens in (("--max-tokens", max_tokens), ("--dense-tokens", dense_tokens), ("--confirm-tokens", confirm_tokens)):
        if tokens is not None and tokens < 1:
            raise InputError(f"{name} must be at least 1, not {tokens}")
    ranks = Ranks.here()
    device = ranks.device(resolve_device(device))
    timings: dict[str, float] = {}
    if confirm_tokens is not None and dense_tokens is None:
        raise InputError("--confirm-tokens are the tokens beyond the dense pass: say with --dense-tokens how many go through that")
    if max_tokens is None and dense_tokens is not None and confirm_tokens is not None:
        max_tokens = dense_tokens + confirm_tokens
    if models is None and source["text"] is None and source["tokens"] is None and max_tokens is None and dense_tokens is None:
        max_tokens = zoo.MAX_TOKENS
    with clock(timings, "models"):
        loaded = load_models(models, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        names = unique_names([model.label for model in loaded])
        sources = [ModelSite(model, site=site, layers=layers, name=label) for model, label in zip(loaded, names, strict=True)]
    if overwrite and not ranks.rank and not ranks.restarts:  # not before the models are there: a misspelt name must not cost a run
        clear(folder, spare=[source["tokens"], source["text"]])
    show = progress and not ranks.rank

    def corpus_of_all() -> Tokens:
        return load_corpus(loaded, source, zoo_text=models is None, folder=folder / "tokens", max_tokens=max_tokens, row_tokens=row_tokens, progress=show)

    with clock(timings, "tokens"):
        corpus = ranks.in_turn(corpus_of_all)
    options = {k: plain(v) for k, v in source.items()} | {
        "max_tokens": max_tokens,
        "dense_tokens": dense_tokens,
        "confirm_tokens": confirm_tokens,
        "row_tokens": row_tokens,
        "layers": None if layers is None else list(layers),
        "site": site,
        "precision": precision,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens or default_batch(device),
        "chunk_tokens": chunk_tokens,
    }
    return Inputs(folder, sources, corpus, options, timings, ranks)


def follow(inputs: Inputs) -> results.Run:
    """The run that rank 0 makes of the sums, once it is there."""
    inputs.ranks.wait()
    return results.open_run(inputs.folder)


def reopen(run: str | os.PathLike[str], models: Sequence[Any] | None, *, tokens: Any, device: str, trust_remote_code: bool) -> Inputs:
    """Models, tokens and options of a run that was made before, each checked to be what its manifest says.

    Raises:
        FileError: there is no complete pass, or its models or tokens are not to be found.
        InputError: models or tokens are not those of the run.
    """
    folder = Path(run)
    if not (folder / "manifest.json").exists():
        raise FileError(f"{folder} holds no complete pass (there is no manifest.json in it); `pyuniversal observe` makes one")
    manifest = results.read_manifest(folder)
    kinds = dict.fromkeys(("site", "dtype"), "a name") | dict.fromkeys(("chunk_tokens", "batch_tokens"), "a whole number")
    kinds |= dict.fromkeys(("max_tokens", "dense_tokens", "confirm_tokens"), "a whole number or null")
    options = check_fields(manifest["options"], kinds, f"options of {folder / 'manifest.json'}") | {"device": resolve_device(device)}
    named = [model["source"] for model in manifest["models"]]
    choice("dtype", options["dtype"], tuple(DTYPES))
    text = tokens if tokens is not None else check_fields(manifest["tokens"], {"path": "text"}, f"tokens of {folder / 'manifest.json'}")["path"]
    if not models or tokens is None:
        log.info("named by %s, not by this command, and loaded now:", folder / "manifest.json")
        for what in [*([] if models else map(_where, named)), *([] if tokens is not None else [f"tokens {text!r}"])]:
            log.info("  %s", what)
    loaded = load_models(list(models or named), device=options["device"], dtype=options["dtype"], trust_remote_code=trust_remote_code)
    if [model.weight_hash for model in loaded] != [model["weights"] for model in manifest["models"]]:
        raise InputError(f"these models are not those of the run in {folder}: {', '.join(map(str, named))}, in this order, with the same weights and --dtype")
    corpus = load_tokens(text)
    if corpus.hash != manifest["tokens"]["hash"]:
        raise InputError(f"{corpus.path} holds other tokens than the run in {folder} saw; name theirs with --tokens")
    labels = [model["label"] for model in manifest["models"]]
    sources = [ModelSite(m, site=options["site"], layers=options["layers"], name=label) for m, label in zip(loaded, labels, strict=True)]
    return Inputs(folder, sources, corpus, options, {})


def _where(source: str) -> str:
    """A model and where it is loaded from, as `load_model` goes about it: folders come before names."""
    folder = Path(source).expanduser()
    return f"model {source!r} from {f'the folder {str(folder.resolve())!r}' if folder.is_dir() else 'the Hugging Face hub or its cache'}"


def check_table(*, baseline: str, baseline_draws: int, top_k: int) -> None:
    """Raise `InputError` for options of the table, before the hours that a pass can take."""
    choice("baseline", baseline, universality.BASELINES)
    for name, value in (("baseline_draws", baseline_draws), ("top_k", top_k)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `InputError` unless an option is one of its choices."""
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def resolve_device(device: str) -> str:
    """What "auto" stands for here; a device that is not here is refused."""
    return str(find_device(device))


def default_batch(device: str) -> int:
    """Tokens of a forward pass: on a CPU so few that temporaries stay in its memory allocator (twice as many cost 1.25 times), on a GPU enough to fill it."""
    return 16_384 if find_device(device).type == "cuda" else 2_048


def load_models(models: Sequence[Any] | None, **options: Any) -> list[Model]:
    """The models of a run, the embedded ones where None: one tokenizer, no weights twice."""
    given = list(zoo.models() if models is None else models)
    if not given:
        raise InputError("no model was given: name at least one, or leave models out for the embedded zoo")
    loaded = [m if isinstance(m, Model) else load_model(m, **options) for m in given]
    check_tokenizers(loaded)
    hashes = [m.weight_hash for m in loaded]
    for n, digest in enumerate(hashes):
        if digest in hashes[:n]:
            first = loaded[hashes.index(digest)]
            raise InputError(f"{first.source} and {loaded[n].source} have the same weights: every neuron would be its own partner; give each once")
    return loaded


def unique_names(labels: Sequence[str]) -> list[str]:
    """The labels, those that stand twice with a number behind: a, a-2. A and a are twice the same: on some file systems they are one file."""
    names: list[str] = []
    for label in labels:
        number, name = 1, label
        while name.casefold() in [known.casefold() for known in names]:
            number += 1
            name = f"{label}-{number}"
        names.append(name)
    return names


def load_corpus(
    models: Sequence[Model], source: Mapping[str, Any], *, zoo_text: bool, folder: Path, max_tokens: int | None, row_tokens: int, progress: bool
) -> Tokens:
    """The tokens of the run, checked against every model."""
    text, tokens = source["text"], source["tokens"]
    options = {k: v for k, v in source.items() if k not in ("text", "tokens")}
    if text is not None and tokens is not None:
        raise InputError("both a text and a folder of tokens were given; give one of them")
    if tokens is not None:
        corpus = load_tokens(tokens)
    elif text is not None:
        longest = min([row_tokens, *(m.config.n_ctx for m in models)])
        corpus = tokenize(text, models[0].tokenizer, out=folder, row_tokens=longest, max_tokens=max_tokens, progress=progress, **options)
    elif zoo_text:
        corpus = load_tokens(zoo.tokens())
    else:
        raise InputError(
            "models were given but no text: give --text (a file, a folder, the name of a data set) or --tokens (a folder made by `pyuniversal tokens`)"
        )
    return corpus


def shape_of(name: str, config: Any, layers: Sequence[int]) -> SourceShape:
    """The blocks from the architecture: attention (all heads with keys of their own, an upper bound) and MLP."""
    attention = 4 * config.d_model * config.d_head * config.n_heads
    block = attention + (3 if config.gated else 2) * config.d_model * config.d_mlp
    return SourceShape(name, config.n_params, config.n_layers * block, len(layers), config.d_mlp, config.d_model, config.d_vocab)


def clear(folder: Path, *, spare: Sequence[Any]) -> None:
    """Remove what a run writes, and nothing else, from a folder.

    Raises:
        InputError: one of `spare`, the new run's own input, lies in what would go.
    """
    for name in OURS:
        path = folder / name
        for kept in (Path(s).resolve() for s in spare if isinstance(s, str | os.PathLike)):
            if path.exists() and (kept == path.resolve() or path.resolve() in kept.parents):
                raise InputError(f"--overwrite would remove {path}, which this run is to read; choose another --out")
    for name in OURS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def clock(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds of the block under `name`."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)


def note_timings(inputs: Inputs) -> None:
    """Add what was timed since to the manifest."""
    manifest = read_json(inputs.folder / "manifest.json")
    write_json(inputs.folder / "manifest.json", manifest | {"timings": manifest["timings"] | inputs.timings})


def plain(value: Any) -> Any:
    """An option as JSON can hold it: what is no name or path is told by its type."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value) if isinstance(value, os.PathLike) else type(value).__name__
