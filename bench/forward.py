"""Forward passes in every dtype that the device has: how fast they are, and what they change in r."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import pyuniversal
from pyuniversal import Totals, pipeline, zoo
from pyuniversal.ops import correlations
from pyuniversal.universality.partners import best_partners, sides

from .machine import identity
from .measure import now
from .models import Shape, make_models
from .trial import Setting, preferring

SHAPE = Shape(layers=12, d_mlp=3072, d_model=768, heads=12, row_tokens=128)
TOKENS, QUICK_TOKENS = 32_768, 4_000
BATCH = 16_384  # on a GPU; what a run takes by default on a CPU


def forward(setting: Setting) -> Iterator[dict[str, Any] | Table]:
    """A row for each dtype: tokens/s of the blocks at the shape of GPT2-small; r of two zoo models, of float32 products, against models in float64."""
    cuda = setting.device != "cpu"
    dtypes = ["float32", *(["tf32", "float16"] if cuda else []), "bfloat16"]
    table = Table(title="forward passes by dtype of the models" + (" (--quick: no measurement)" if setting.quick else ""))
    for heading in ("dtype", "tokens/s", "rms change of best r", "largest", "of it beyond 2 SE of int8"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    with tempfile.TemporaryDirectory(prefix="pyuniversal-bench-") as scratch, preferring(setting.backend):
        truth = _r("float64", "float64", Path(scratch), setting)
        partner = truth.nan_to_num(-1).argmax(1, keepdim=True)
        best, stated = truth.gather(1, partner), _stated(Path(scratch), setting)
        wide = None if setting.quick else make_models(Path(scratch) / "wide", SHAPE)[0]
        for dtype in dtypes:
            row = _row(dtype, wide or zoo.models()[0], (best, partner, stated), Path(scratch), setting)
            table.add_row(row["case"], f"{row['rate']:,.0f}", f"{row['rms']:.1e}", f"{row['largest']:.1e}", f"{row['beyond']:.2%}")
            yield row
    yield table


def _row(dtype: str, path: Any, expected: tuple[Tensor, Tensor, Tensor], scratch: Path, setting: Setting) -> dict[str, Any]:
    best, partner, stated = expected  # [neurons, 1] each
    change = (_r(dtype, "float32", scratch, setting).gather(1, partner) - best).abs().cpu()
    change, stated = change[change.isfinite()], stated[change.isfinite()]
    rate, tokens = _rate(path, dtype, setting)
    return {
        "op": "forward",
        "case": dtype,
        "quick": setting.quick,
        "rate": rate,
        "unit": "tokens/s",
        "shape": {"layers": SHAPE.layers, "d_mlp": SHAPE.d_mlp, "d_model": SHAPE.d_model, "row_tokens": SHAPE.row_tokens, "tokens": tokens},
        "rms": change.square().mean().sqrt().item(),
        "largest": change.max().item(),
        "beyond": (change > 2 * stated).double().mean().item(),
        "counting": "rate: blocks of one model with mlp.post recorded, no unembedding. Change: r of every neuron of a model of the zoo with the best partner "
        "that float64 finds for it in another, models in this dtype and float32 products, against float64 throughout; beyond: by more than twice the standard "
        "error that int8 products state",
        **identity(setting.device),
    }


def _pass(dtype: str, precision: str, scratch: Path, setting: Setting) -> Totals:
    options: dict[str, Any] = {"max_tokens": QUICK_TOKENS if setting.quick else TOKENS, "device": setting.device, "progress": False}
    models = [pyuniversal.load_model(path, device=setting.device, dtype=dtype) for path in zoo.models()[:2]]
    return pipeline.observe_stage(models, tokens=zoo.tokens(), out=scratch / f"{dtype}-{precision}", precision=precision, dtype=dtype, **options)


def _r(dtype: str, precision: str, scratch: Path, setting: Setting) -> Tensor:
    """r of all neurons of two models of the zoo, float64 [neurons, neurons]."""
    totals = _pass(dtype, precision, scratch, setting)
    keys = [(0, layer, 1) for layer in range(len(totals.sources[0].layers))]
    return torch.cat([correlations(totals.products[key].total, totals.products[key].tokens, *sides(totals, key)) for key in keys]).double()


def _stated(scratch: Path, setting: Setting) -> Tensor:
    """Standard error of the best r that int8 products state, float64 [neurons, 1]."""
    return best_partners(_pass("float32", "int8", scratch, setting), top_k=1)[0, 1].top_stderr


def _rate(path: Any, dtype: str, setting: Setting) -> tuple[float, int]:
    """Tokens a second through the blocks of one model, mlp.post recorded as in a run; tokens of a batch."""
    model = pyuniversal.load_model(path, device=setting.device, dtype=dtype)
    rows = (1_024 if setting.quick else BATCH if setting.device != "cpu" else 2_048) // SHAPE.row_tokens
    ids = torch.randint(0, model.config.d_vocab, (rows, SHAPE.row_tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    samples = []
    for _ in range(setting.repeats or (2 if setting.quick else 5)):
        start = now(setting.device)
        with model.record("mlp.post"):
            model.forward(ids)
        samples.append(now(setting.device) - start)
    return ids.numel() / median(samples[1:]), ids.numel()
