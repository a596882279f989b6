"""The pass and the tables of a run at the shape of GPT2-small, against the study's algorithm and a competent one, on the same models and rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import pyuniversal
from pyuniversal import Model, Tokens, Totals
from pyuniversal.ops import backends
from pyuniversal.streaming.chunks import choose_rows
from pyuniversal.universality import rotation

from .competent import competent
from .measure import now
from .models import Rows, Shape, make_models, make_tokens, post_activations, take_rows
from .original import BATCH_ROWS, Outcome, original
from .trial import Contender, Setting, Trial, WrongResultError, preferring, within

GPT2_SMALL = Shape(layers=12, d_mlp=3072, d_model=768, heads=12, row_tokens=512)
TINY = Shape(layers=2, d_mlp=48, d_model=32, heads=2, row_tokens=128)
TINY_TOKENS = 12_288
TOKENS = 65_536, 524_288  # on a CPU, on a GPU
OPPONENTS = {"original": original, "competent": competent}
OPPONENT_TOKENS = {"original": (12_288, 24_576), "competent": (12_288, 98_304)}  # on a CPU, on a GPU: batches of the study's
DOES = {
    "original": "the study's algorithm (bench/original.py): float16 activations, a float32 einsum for every pair of layers, float64 total on the host; "
    "a second whole pass for the rotated baseline; summary of r and of its transpose",
    "competent": "bench/competent.py: resident float32 total, one addmm_ a batch, moments in float64; a second whole pass for the rotated baseline; "
    "topk of rows and of columns; on a GPU all products, those of the models too, of TF32 operands",
}
COUNTING = (
    "operations: 2 x neurons x neurons x correlated tokens of the product of the two models, nothing else. Models are in memory, tokens on disk before. Ours "
    "is the pass and the tables of a run, with figures, files and the baselines of both directions, without confirmation and null, which the others do not "
    "have. Opponents see fewer tokens: the seconds of their passes are multiplied by the ratio of tokens, those of their summaries are not. 'Without baseline' "
    "leaves out their second pass; ours keeps its baseline. 'Pass' is what grows with the tokens: ours without the writing of its sums, theirs without the "
    "summaries. On a GPU our models multiply TF32 operands, as those of `competent`"
)


@dataclass(frozen=True)
class Study:
    """Two models, the rows that a run of `max_tokens` takes, and the rotations of the second model's layers that it draws (gaussian, seed 0, draw 0)."""

    models: list[Model]
    corpus: Tokens
    max_tokens: int
    rows: Rows
    rotations: list[Tensor]


def trials(setting: Setting) -> Iterator[Trial]:
    tokens = setting.tokens or (TINY_TOKENS if setting.quick else TOKENS[setting.device != "cpu"])
    shape = TINY if setting.quick else GPT2_SMALL
    with tempfile.TemporaryDirectory(prefix="pyuniversal-bench-") as scratch:
        yield _trial(setting, shape, make_study(Path(scratch) / "study", shape, tokens, setting.device), Path(scratch))


def _trial(setting: Setting, shape: Shape, study: Study, scratch: Path) -> Trial:
    rows = study.rows
    neurons, kept = shape.layers * shape.d_mlp, int(rows.kept.sum())

    def opponent(name: str) -> Contender:
        some = rows.first(setting.opponent_tokens or OPPONENT_TOKENS[name][setting.device != "cpu"])
        factor = rows.tokens / some.tokens

        def split(outcome: Outcome) -> dict[str, float]:
            whole, without = outcome.at(factor)
            both, first = outcome.passes(factor)
            return {name: whole, f"{name}, without baseline": without, f"{name}, pass": both, f"{name}, pass without baseline": first}

        modules = [model.module for model in study.models]
        about = {"tokens": some.tokens, "extrapolated_by": factor, "batch_rows": BATCH_ROWS}
        return Contender(lambda: OPPONENTS[name](modules, some, study.rotations), does=DOES[name], split=split, about=about)

    with preferring(setting.backend):
        chosen = backends(setting.device, "int8")
    ours = setting.backend or "dispatch"

    def seconds(done: tuple[Any, float, float]) -> dict[str, float]:
        _, whole, passed = done
        return {ours: whole, f"{ours}, pass": passed, f"{ours}, pass without baseline": passed}  # the baseline takes no pass of ours

    return Trial(
        op="run",
        case=f"{shape.layers} layers of {shape.d_mlp}, d_model {shape.d_model}, 2 models, {rows.tokens} tokens",
        shape={"layers": shape.layers, "d_mlp": shape.d_mlp, "d_model": shape.d_model, "d_vocab": study.corpus.d_vocab, "tokens": rows.tokens, "kept": kept},
        ours={ours: Contender(lambda: ours_on(study, scratch, setting), does="observe_stage and table_stage, int8, one rotation", split=seconds)},
        opponents={name: opponent(name) for name in OPPONENTS},
        check=lambda: agreement(scratch / "agreement", setting),
        bytes=None,
        operations=2 * neurons**2 * kept,
        counting=COUNTING,
        work=rows.tokens,
        unit="tokens/s",
        ceilings=("int8",),
        repeats=1,
        notes={"precision": "int8", "models": model_dtype(setting.device), "backends": chosen, "baseline": "gaussian, 1 draw"},
    )


def make_study(folder: Path, shape: Shape, tokens: int, device: str) -> Study:
    """Models and text in `folder`, loaded; exactly the rows that `pyuniversal.run` will take."""
    models = [pyuniversal.load_model(path, device=device, dtype=model_dtype(device)) for path in make_models(folder, shape)]
    corpus = make_tokens(folder / "tokens", row_tokens=shape.row_tokens, tokens=tokens)
    rows = take_rows(corpus, choose_rows(corpus, max_tokens=tokens, seed=0), device)
    if rows.tokens < tokens - shape.row_tokens:
        raise WrongResultError(f"the zoo's text has {rows.tokens:,} tokens for this bench, not {tokens:,}; lower --tokens")
    rotations = [rotation("gaussian", shape.d_mlp, seed=0, source=1, layer=layer, draw=0) for layer in range(shape.layers)]
    return Study(models, corpus, tokens, rows, rotations)


def model_dtype(device: str) -> str:
    """What our models compute in."""
    return "float32" if device == "cpu" else "tf32"


def ours_on(study: Study, scratch: Path, setting: Setting, precision: str = "int8") -> tuple[Any, float, float]:
    """A finished run, the seconds it took, and those of its pass but for the writing of its sums; its folder is gone, its tables are in memory."""
    writing = 0.0
    save = Totals.save
    options: dict[str, Any] = {"precision": precision, "device": setting.device, "progress": False}
    if setting.device != "cpu":  # kernels are compiled and libraries loaded before the clock starts, as for the opponents
        with preferring(setting.backend):
            pyuniversal.observe(study.models, study.corpus, max_tokens=min(study.max_tokens, 2 * 16_384), batch_tokens=16_384, **options)

    def timed(*arguments: Any, **options: Any) -> None:
        nonlocal writing
        start = now(setting.device)
        save(*arguments, **options)
        writing += now(setting.device) - start

    with tempfile.TemporaryDirectory(dir=scratch) as out, preferring(setting.backend), patch.object(Totals, "save", timed):
        start, folder = time.perf_counter(), Path(out) / "run"
        dtype = model_dtype(setting.device)
        pyuniversal.observe_stage(study.models, tokens=study.corpus.path, out=folder, max_tokens=study.max_tokens, dtype=dtype, **options)
        run = pyuniversal.table_stage(folder, baseline="gaussian", baseline_draws=1, device=setting.device)
        seconds = time.perf_counter() - start
        run.neurons, run.matches  # noqa: B018  # they are read when first asked for, and the folder goes
    return run, seconds, run.manifest["timings"]["pass"] - writing


def agreement(folder: Path, setting: Setting) -> dict[str, dict[str, float]]:
    """Errors of ours (int8) and of every opponent in best r and in baseline of the first model's neurons, against float64, on two tiny models.

    Raises:
        WrongResultError: one is larger than its precision explains.
    """
    study = make_study(folder, TINY, TINY_TOKENS, setting.device)
    best, chance = exact(study)
    run, _, _ = ours_on(study, folder, setting)
    name = study.models[0].label
    matches = run.matches[(run.matches["model"] == name) & (run.matches["rank"] == 0)].sort_values(["layer", "neuron"])
    found = {setting.backend or "dispatch": (torch.tensor([*matches["r"]]), torch.tensor([*run.neurons.loc[name]["mean_baseline"]]))}
    for opponent, function in OPPONENTS.items():
        outcome = function([model.module for model in study.models], study.rows, study.rotations)
        found[opponent] = (outcome.best, outcome.baseline)
    # float16 sums cost the study's way up to some 1e-3; int8 rounds by 0.3 / sqrt(tokens) rms, and the maximum over thousands of pairs leans upwards.
    allowed = {"original": 4e-3, "competent": 2e-5 if setting.device == "cpu" else 4e-3}  # TF32 has the mantissa of float16
    errors = {}
    for contender, (r, baseline) in found.items():
        off = [(got.cpu() - true).abs().max() for got, true in ((r, best), (baseline, chance))]
        try:
            errors[contender] = within(allowed.get(contender, 2 / int(study.rows.kept.sum()) ** 0.5), best_r=off[0], baseline=off[1])
        except WrongResultError as error:
            raise WrongResultError(f"run: {contender} is wrong on two tiny models: {error.message}; no row is written") from error
    return errors


def exact(study: Study) -> tuple[Tensor, Tensor]:
    """Best r of every neuron of the first model in the second and in the rotated second, by corrcoef of all activations in float64: both [neurons]."""
    kept = study.rows.kept.flatten()
    x, y = ([layer.flatten(0, 1)[kept].double().cpu() for layer in post_activations(model.module, study.rows.ids)] for model in study.models)
    rotated = [layer @ r.T for layer, r in zip(y, study.rotations, strict=True)]
    neurons = sum(layer.shape[1] for layer in x)
    best, chance = (_corrcoef(x, side)[:neurons, neurons:].amax(1) for side in (y, rotated))
    return best, chance


def _corrcoef(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    return torch.corrcoef(torch.cat([*x, *y], dim=1).T)
