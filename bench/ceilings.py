"""What the machine can do at best, measured in the same process as the cases it limits.

read     bytes/s that all threads together read from memory
int8     operations/s of a loop over registers, int8 products added in int32; a multiplication and an addition are two
float32  the same in float32
"""

from __future__ import annotations

import time
from functools import cache

import torch

from pyuniversal import _C


@cache
def ceiling(name: str, device: str, quick: bool = False) -> float | None:
    """The ceiling in bytes or operations a second; None where this build cannot measure it."""
    if name == "read":
        return _read(device, quick)
    if device != "cpu" or not hasattr(_C, "peak"):
        return None
    return float(_C.peak(name, torch.get_num_threads(), 0.05 if quick else 0.5))


def _read(device: str, quick: bool) -> float:
    # Far beyond the last cache: 1 GB, or 64 MB where nobody will quote the number.
    x = torch.ones((64 if quick else 1024) * 2**18, device=device)
    if device == "cpu" and hasattr(_C, "read_bandwidth"):
        return max(float(_C.read_bandwidth(x, torch.get_num_threads())) for _ in range(5))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        x.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return x.numel() * x.element_size() / min(seconds)
