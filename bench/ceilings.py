"""What the machine can do at best, measured in the same process as the cases it limits.

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

from pyuniversal import _C


@cache
def ceiling(name: str, device: str, quick: bool = False) -> float | None:
    """The ceiling in bytes or operations a second; None where this build cannot measure it."""
    if name == "read":
        return _read(device, quick)
    if torch.device(device).type == "cuda":
        return _library(name, device, quick)
    if not hasattr(_C, "peak"):
        return None
    return float(_C.peak(name, torch.get_num_threads(), 0.05 if quick else 0.5))


def _library(name: str, device: str, quick: bool) -> float:
    n = 1024 if quick else 8192
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    if name == "int8":
        a, b = ((x * 12).clamp(-127, 127).to(torch.int8) for x in (a, b))  # rms 12, as operands of heavy-tailed activations have
        multiply = partial(torch._int_mm, a, b.T)  # both operands by rows, as Hopper's int8 units take them
    else:
        a, b = (x.bfloat16() if name == "bf16" else x for x in (a, b))
        multiply = partial(torch.mm, a, b)
    return 2 * n**3 / _fastest(multiply, device, seconds=0.05 if quick else 0.5)


def _fastest(work: Callable[[], object], device: str, *, seconds: float) -> float:
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


def _read(device: str, quick: bool) -> float:
    # Far beyond the last cache: 1 GB, or 64 MB where nobody will quote the number.
    x = torch.ones((64 if quick else 1024) * 2**18, device=device)
    if device == "cpu" and hasattr(_C, "read_bandwidth"):
        return max(float(_C.read_bandwidth(x, torch.get_num_threads())) for _ in range(5))
    if device != "cpu":
        y = torch.empty_like(x)
        return 2 * x.numel() * x.element_size() / _fastest(partial(y.copy_, x), device, seconds=0.1)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        x.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return x.numel() * x.element_size() / min(seconds)
