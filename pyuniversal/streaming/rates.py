"""How fast this machine is at what a run does, measured in a second or two, and how long a run takes at such rates."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import sha256
from ..float32 import tf32_products, times_transpose
from ..models.loading import DTYPES
from ..ops import absmax_about, pair_sums_, product_, quantize
from ..ops._dither import neuron_keys, token_keys
from ..totals import Histogram, Moments
from .afterwards import DRAWS
from .layout import Layout, Shapes

if TYPE_CHECKING:
    from .plan import Work

FIXED = 2.0  # seconds of figures
# Seconds of one thing each on a core or two of 2026, where Python, pandas and selection are at work; not measured.
PARTNER = 1.5e-6  # a partner kept: selection, assignment, tables
NEURON = 4e-5  # statistics of its weights, its rows of the tables and CSVs
PAIR = 4e-9  # a number of a product: summarised
MANY = 3  # times one partner: what the sums with 16 candidates cost
HOST = 2e10  # bytes a second between a GPU and the host's memory
STEADY = 1.25  # times the fastest of a few calls: what work takes that goes on for minutes
PROBE = 64 << 20  # bytes written to learn how fast the disk is
ROTATION = 8 / 3 + 2  # times width^3: operations of one rotation of a layer
ROTATED = (1536, 4096)  # the largest that is tried, on a CPU and on a GPU; small ones are slow


@dataclass(frozen=True)
class Rates:
    """Operations a second of the products, of a model's blocks, of float32 products and of rotations; seconds an activation for all that is no product.

    rotation: QR and Q made of it by Householder's reflections, and a product, all in float64. host: of float64 matrix work on the CPU. element: in the pass.
    repaired: in one draw of the null. confirmed: beside one partner. moved: bytes a second that are written and hashed. The defaults are of two cores of 2026.
    """

    product: float = 1.5e12
    forward: float = 1.2e11
    single: float = 2.0e11
    rotation: float = 5.0e10
    host: float = 1.0e11
    element: float = 2.0e-9
    repaired: float = 1.5e-9
    confirmed: float = 8e-10
    moved: float = 0.7e9

    def phases(self, work: Work, layout: Layout, *, chunks: int) -> dict[str, float]:
        """Seconds of each part of a run, named as in its manifest."""
        models = {i for group in layout.sweeps for first, _, second in group for i in (first, second)}
        again = layout.runs / len(models) if models else 1.0
        # Between chunks, and once to the disk at the end.
        moving = layout.moved_bytes * chunks / (HOST if layout.storage == "host" else self.moved) + work.totals_bytes / self.moved
        of_all = 1 / max(work.tokens, 1)  # a token's share of what the pass does
        forward, elements = work.forward_flops / self.forward, work.elements * self.element
        phases = {
            "pass": STEADY * (again * (forward + elements) + work.product_flops / self.product) + moving,
            "candidates": STEADY * work.candidate_tokens * (of_all * forward + MANY * work.choices * self.confirmed),
            "confirm": STEADY * work.confirmed_tokens * (of_all * forward + work.choices * self.confirmed),
            "nulls": STEADY * (work.null_tokens * (of_all * forward + DRAWS * work.neurons * self.repaired) + work.null_flops / self.product),
            "table": work.baseline_flops / self.single
            + work.rotation_flops / self.rotation
            + PAIR * work.pairs
            + PARTNER * work.partners
            + work.read_bytes / self.moved,
            "weights": work.weights_flops / self.host + NEURON * work.neurons,
            "figures": FIXED,
        }
        return {name: seconds for name, seconds in phases.items() if seconds}

    def seconds(self, work: Work, layout: Layout, *, chunks: int) -> float:
        """Of the whole run."""
        return sum(self.phases(work, layout, chunks=chunks).values())


def measure_rates(device: str, shapes: Shapes, *, folder: Path) -> Rates:
    """Rates of this machine at the widths and the precision of a run."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = 4096, 1024 if torch.device(device).type == "cpu" else 4096  # large tiles on a GPU, as in a run
    x = torch.randn(tokens, width, generator=generator).to(device)
    zero = torch.zeros(width, device=device)
    keys = token_keys(0, torch.arange(tokens)).to(device), neuron_keys(0, 0, width).to(device)
    absmax = absmax_about(zero, x.amin(0), x.amax(0))
    total = torch.zeros(width, width, device=device, dtype=torch.float64 if shapes.precision == "float64" else torch.float32)
    packed, other = (quantize(x, zero, absmax, *keys, precision=shapes.precision) for _ in range(2))  # of one with itself half is computed
    partner = torch.arange(width, device=device)[:, None].contiguous()  # [neurons, 1]
    sums, centre = torch.zeros(width, 1, dtype=torch.float64, device=device), zero.double()

    def pack(gathered: Tensor) -> None:
        Moments(width, device=device).update(gathered)
        quantize(gathered, zero, absmax, *keys, precision=shapes.precision)

    def observe() -> None:
        """What a chunk's activations go through beside the products, gathering included."""
        gathered = torch.empty_like(x)
        gathered.copy_(x)
        Moments(width, sets=("r", "test", "all"), device=device).update(gathered, (tokens - 2, tokens - 1, tokens))
        Histogram(width, device=device).update(gathered)
        pack(gathered)

    a = torch.randn(1024, 1024, generator=generator).to(device)
    h = a[:512, :512].double().cpu()
    rotated = min(max(s.width for s in shapes.sources), ROTATED[torch.device(device).type == "cuda"])

    def rotate() -> None:
        q, _ = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((rotated, rotated))).to(device))
        q @ q

    blocks, flops = _block(shapes, device)
    return Rates(
        product=2 * width * width * tokens / _best(lambda: product_(total, packed, other), device),
        forward=flops / _best(blocks, device),
        single=2 * 1024**3 / _best(lambda: times_transpose(a, a), device),
        rotation=ROTATION * rotated**3 / _best(rotate, device),
        host=2 * 512**3 / _best(lambda: h @ h, "cpu"),
        element=_best(observe, device) / x.numel(),
        repaired=_best(lambda: pack(x.index_select(0, torch.arange(tokens, device=device))), device) / x.numel(),
        confirmed=_best(lambda: pair_sums_(sums, x, x, centre, centre, partner), device) / x.numel(),
        moved=_disk(folder),
    )


def _disk(folder: Path) -> float:
    """Bytes a second that a file is hashed and written at, until they are on the disk; the default where nothing can be written."""
    data = bytes(PROBE)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            sha256(data)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return PROBE / (time.perf_counter() - start)
    except OSError:
        return Rates().moved


def _block(shapes: Shapes, device: str) -> tuple[Callable[[], None], float]:
    """A transformer block without its heads, at the widths of the largest source, and its operations: attention's four products, norms, MLP."""
    source = max(shapes.sources, key=lambda s: s.block_parameters)
    d, width = source.d_model or 768, source.width
    dtype = DTYPES[shapes.dtype]
    x = torch.randn(shapes.batch_tokens, d, dtype=dtype, device=device)  # [tokens, d_model]
    w_in, w_out = torch.randn(width, d, dtype=dtype, device=device), torch.randn(d, width, dtype=dtype, device=device)
    w = torch.randn(4 * d, d, dtype=dtype, device=device)

    def run() -> None:
        with torch.inference_mode(), tf32_products(shapes.dtype == "tf32"):
            y = F.layer_norm(x, (d,))
            z = x + F.linear(y, w)[:, :d]
            hidden = F.gelu(F.linear(F.layer_norm(z, (d,)), w_in), approximate="tanh")
            z + F.linear(hidden, w_out)

    return run, 2.0 * shapes.batch_tokens * (w.numel() + w_in.numel() + w_out.numel())


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call after one that warms up: of three, or of as many as take 0.15 s, since others at work can slow a few short ones manyfold."""
    times: list[float] = []
    while len(times) < 4 or sum(times[1:]) < 0.15:
        start = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
