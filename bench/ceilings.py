"""What the machine can do at best, measured in turns with the cases it limits.

On a CPU:
read     bytes/s that all threads together read from memory
int8     operations/s of a loop over registers, int8 products added in int32; a multiplication and an addition are two
float32  the same in float32

On a GPU, where nothing shows what a loop over registers would do under the power limit: the vendor's library on matrices of 8192, of Gaussian numbers.
read     bytes/s of a copy within the device, read and written ones counted
int8     operations/s of torch._int_mm
bf16     of torch.mm
float32  of torch.mm, its operands not rounded to TF32
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor

from pyuniversal import _C


def ceiling(name: str, device: str, quick: bool = False) -> float | None:
    """The ceiling at this moment, in bytes or operations a second; None where this build cannot measure it.

    Virtual machines and GPUs under a power limit are not equally fast for long, so the engine asks in turns with the contenders, and takes the median.
    """
    gpu = torch.device(device).type == "cuda"
    if name == "read":
        return _read(device, quick)
    if gpu:
        return _library(name, device, quick)
    return float(_C.peak(name, torch.get_num_threads(), 0.05 if quick else 0.2)) if hasattr(_C, "peak") else None


def _library(name: str, device: str, quick: bool) -> float:
    n = 1024 if quick else 8192
    return 2 * n**3 / _typical(_multiplication(name, device, n), device)


@cache
def _multiplication(name: str, device: str, n: int) -> Callable[[], object]:
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    if name == "int8":
        a, b = ((x * 12).clamp(-127, 127).to(torch.int8) for x in (a, b))  # rms 12, as operands of heavy-tailed activations have
        return partial(torch._int_mm, a, b.T)  # both operands by rows, as Hopper's int8 units take them
    a, b = (x.bfloat16() if name == "bf16" else x for x in (a, b))
    return partial(torch.mm, a, b)


def _typical(work: Callable[[], object], device: str, seconds: float = 0.1) -> float:
    """Seconds a call: the median of as many as fill some seconds, after a warm-up; the steady state, not the first cool moment."""
    work()
    samples: list[float] = []
    while sum(samples) < seconds or len(samples) < 5:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - start)
    return median(samples)


def _read(device: str, quick: bool) -> float | None:
    if device == "cpu" and not hasattr(_C, "read_bandwidth"):
        return None
    # Far beyond the last cache: 1 GB, or 64 MB where nobody will quote the number.
    x = _memory(device, (64 if quick else 1024) * 2**18)
    if device == "cpu":
        return median(float(_C.read_bandwidth(x, torch.get_num_threads())) for _ in range(7))
    y = torch.empty_like(x)
    return 2 * x.numel() * x.element_size() / _typical(partial(y.copy_, x), device)


@cache
def _memory(device: str, elements: int) -> Tensor:
    return torch.ones(elements, device=device)
