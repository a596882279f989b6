"""What a run will cost, before it starts: operations, memory, disk and time, from the shapes alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from ..errors import NotEnoughMemoryError

GB = 1e9
# Streaming moments (float64, 8 fields: 4 set-neurons), histogram (257 counts) and the like, bytes a neuron; both while a chunk is open.
STATE_BYTES = 2 * (4 * 8 * 8 + 257 * 8)
BYTES = {"int8": 1, "bf16": 2, "float32": 4, "float64": 8}
DTYPE_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class SourceShape:
    """The shape of one source: a model's parameters (all, and those of the blocks alone), how many layers take part, neurons a layer."""

    name: str
    parameters: int
    block_parameters: int
    layers: int
    width: int

    @property
    def columns(self) -> int:
        """Neurons in all."""
        return self.layers * self.width


@dataclass(frozen=True)
class Plan:
    """A run's predicted cost. Operations count a multiplication and an addition as two; bytes are peaks; seconds are estimates from rates measured here.

    Attributes:
        tokens: that go through every model.
        forward_flops, product_flops, baseline_flops: of the passes, of all blocks of Z^T Z, of the rotation baseline.
        weights_bytes, totals_bytes, chunk_bytes, table_bytes: models; accumulators; activations and operands of a chunk; what the table stage needs beside the
        totals. memory_bytes: the peak. available_bytes: what the device has free now.
        disk_bytes: of the run's folder, while checkpoints are replaced.
        seconds: estimate of the whole; None where no rate was measured.
    """

    sources: tuple[SourceShape, ...]
    device: str
    precision: str
    tokens: int
    forward_flops: float
    product_flops: float
    baseline_flops: float
    weights_bytes: float
    totals_bytes: float
    chunk_bytes: float
    table_bytes: float
    available_bytes: float
    disk_bytes: float
    seconds: float | None

    @property
    def memory_bytes(self) -> float:
        """Predicted peak: the pass or the table stage, whichever is larger."""
        return self.totals_bytes + self.weights_bytes + max(self.chunk_bytes, self.table_bytes)

    @property
    def fits(self) -> bool:
        """Whether the peak is within what is free."""
        return self.memory_bytes <= self.available_bytes

    def as_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return asdict(self) | {"memory_bytes": self.memory_bytes, "fits": self.fits}

    def refuse(self) -> None:
        """Raise `NotEnoughMemoryError` with the numbers and three cheaper ways, unless the run fits."""
        if self.fits:
            return
        largest = max(self.sources, key=lambda s: s.columns)
        raise NotEnoughMemoryError(
            f"this run needs {self.memory_bytes / GB:.1f} GB on {self.device} and {self.available_bytes / GB:.1f} GB are free: "
            f"{self.totals_bytes / GB:.1f} GB for the products of {len(self.sources)} models ({largest.columns:,} neurons in {largest.name}), "
            f"{self.weights_bytes / GB:.1f} GB for the models, {max(self.chunk_bytes, self.table_bytes) / GB:.1f} GB of work space. "
            "Take fewer models at a time, fewer layers (--layers), or another machine or --device."
        )


def make_plan(
    sources: Sequence[SourceShape],
    *,
    tokens: int,
    precision: str,
    site: str,
    dtype: str,
    chunk_tokens: int,
    baseline_draws: int,
    top_k: int,
    device: str,
    loaded: bool = False,
    measure: bool = True,
) -> Plan:
    """Predict the cost of a run of `sources` over `tokens` tokens.

    `loaded` says that the models are in memory already, so that what they take counts as free. `measure` times a small product for the estimate of the seconds.
    """
    columns = [s.columns for s in sources]
    pairs = [(a, b) for n, a in enumerate(sources) for b in sources[n + 1 :]]
    within = sum(s.layers * s.width**2 for s in sources) if pairs else 0
    cells = sum(a.columns * b.columns for a, b in pairs) + within
    total_bytes = 8 if precision == "float64" else 4
    sites = 1 if site == "mlp.pre" else 2
    forward = 2.0 * tokens * sum(s.block_parameters for s in sources)
    product = 2.0 * tokens * cells
    baseline = 2.0 * baseline_draws * sum(2 * a.columns * b.columns * (a.width + b.width) / 2 for a, b in pairs)
    operands = sum(columns) * BYTES[precision] if pairs else 0
    chunk = chunk_tokens * (max(columns) * (sites * DTYPE_BYTES[dtype] + 4) + operands) + 8 * 1024 * max(columns)
    kept = 80 * 2 * len(pairs) * max(columns) * min(top_k, max(columns))
    weights = float(DTYPE_BYTES[dtype] * sum(s.parameters for s in sources))
    plan = Plan(
        sources=tuple(sources),
        device=device,
        precision=precision,
        tokens=tokens,
        forward_flops=forward,
        product_flops=product,
        baseline_flops=baseline,
        weights_bytes=weights,
        totals_bytes=float(total_bytes * cells + STATE_BYTES * sum(columns)),
        chunk_bytes=float(chunk),
        table_bytes=float(kept + 3 * 8 * 4096 * max(columns)),
        available_bytes=float(free_bytes(device)) + loaded * weights,
        disk_bytes=float(2 * total_bytes * cells + kept / 2),
        seconds=None,
    )
    return plan if not measure else _with_seconds(plan)


def free_bytes(device: str) -> int:
    """Memory that is free now on a device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _with_seconds(plan: Plan) -> Plan:
    rate = _matmul_rate(plan.device)
    # int8 products and forward passes of small batches run at other rates than a square float32 product; the pass also reads every activation a few times.
    speed = {"int8": 4.0, "bf16": 1.0, "float32": 1.0, "float64": 0.5}[plan.precision]
    elements = plan.tokens * sum(s.columns for s in plan.sources)
    seconds = plan.forward_flops / (0.5 * rate) + plan.product_flops / (speed * rate) + plan.baseline_flops / (0.5 * rate) + 40 * elements / rate
    return Plan(**{**vars(plan), "seconds": seconds})


def _matmul_rate(device: str) -> float:
    """float32 operations a second of a square product, best of three."""
    x = torch.randn(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (x @ x).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best
