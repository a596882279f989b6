"""How fast this machine is at what a run does, measured in about a second, and how long a run takes at such rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..ops import absmax_about, product_, quantize
from ..ops._dither import neuron_keys, token_keys
from ..totals import Histogram, Moments
from .layout import Layout, Shapes

if TYPE_CHECKING:
    from .plan import Work

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
DISK = 0.7e9  # bytes a second, read or written and hashed; not measured
FIXED = 4.0  # seconds: figures, claims, files
PARTNER = 1.5e-6  # seconds for each partner kept: selection, assignment, tables


@dataclass(frozen=True)
class Rates:
    """Operations a second of the products, of a model's blocks, of float32 and float64 matrix work; seconds an activation for all that is no product.

    The defaults are of two cores of 2026.
    """

    product: float = 1.5e12
    forward: float = 1.2e11
    single: float = 2.0e11
    double: float = 3.0e10
    element: float = 2.0e-9
    moved: float = DISK

    def seconds(self, work: Work, layout: Layout, *, chunks: int) -> float:
        """Of the whole run."""
        models = {i for group in layout.sweeps for first, _, second in group for i in (first, second)}
        again = layout.runs / len(models) if models else 1.0
        passing = again * (work.forward_flops / self.forward + work.elements * self.element)
        products = work.product_flops / self.product + layout.moved_bytes * chunks / self.moved
        table = work.baseline_flops / self.single + work.rotation_flops / self.double + 4e-9 * work.pairs + PARTNER * work.partners
        return FIXED + passing + products + table


def measure_rates(device: str, shapes: Shapes) -> Rates:
    """Rates of this machine at the widths and the precision of a run."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = 4096, 1024
    x = torch.randn(tokens, width, generator=generator).to(device)
    zero = torch.zeros(width, device=device)
    keys = token_keys(0, torch.arange(tokens)).to(device), neuron_keys(0, 0, width).to(device)
    absmax = absmax_about(zero, x.amin(0), x.amax(0))
    total = torch.zeros(width, width, device=device, dtype=torch.float64 if shapes.precision == "float64" else torch.float32)
    packed = quantize(x, zero, absmax, *keys, precision=shapes.precision)

    def observe() -> None:
        """What a chunk's activations go through beside the products, gathering included."""
        gathered = torch.empty_like(x)
        gathered.copy_(x)
        moments = Moments(width, sets=("r", "test", "all"), device=device)
        moments.update(gathered, (tokens - 2, tokens - 1, tokens))
        Moments(width, device=device).update(gathered)
        Histogram(width, device=device).update(gathered)
        quantize(gathered, zero, absmax, *keys, precision=shapes.precision)

    a = torch.randn(1024, 1024, generator=generator).to(device)
    d = a[:384, :384].double()
    blocks, flops = _block(shapes, device)
    return Rates(
        product=2 * width * width * tokens / _best(lambda: product_(total, packed, packed), device),
        forward=flops / _best(blocks, device),
        single=2 * 1024**3 / _best(lambda: a @ a, device),
        double=(8 / 3) * 384**3 / _best(lambda: torch.linalg.qr(d), device),
        element=_best(observe, device) / x.numel(),
    )


def _block(shapes: Shapes, device: str) -> tuple[Callable[[], None], float]:
    """A transformer block without its heads, at the widths of the largest source, and its operations: attention's four products, norms, MLP."""
    source = max(shapes.sources, key=lambda s: s.block_parameters)
    d, width = source.d_model or 768, source.width
    dtype = DTYPES[shapes.dtype]
    x = torch.randn(shapes.batch_tokens, d, dtype=dtype, device=device)  # [tokens, d_model]
    w_in, w_out = torch.randn(width, d, dtype=dtype, device=device), torch.randn(d, width, dtype=dtype, device=device)
    w = torch.randn(4 * d, d, dtype=dtype, device=device)

    def run() -> None:
        with torch.inference_mode():
            y = F.layer_norm(x, (d,))
            z = x + F.linear(y, w)[:, :d]
            hidden = F.gelu(F.linear(F.layer_norm(z, (d,)), w_in), approximate="tanh")
            z + F.linear(hidden, w_out)

    return run, 2.0 * shapes.batch_tokens * (w.numel() + w_in.numel() + w_out.numel())


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of three calls after one that warms up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
