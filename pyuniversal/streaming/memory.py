"""How much memory there is to take: what is free on a device, or what a limit leaves."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pyarrow
import torch


def available_bytes(device: str, memory: int | None, *, processes: int = 1) -> float:
    """Memory that this process may take on a device beyond what it holds: what is free, or what a limit of `memory` bytes leaves.

    `processes` share the host's memory; a GPU is one process's own.
    """
    free = free_bytes(device) / (1 if torch.device(device).type == "cuda" else processes)
    if memory is None:
        return float(free)
    held = torch.cuda.memory_allocated(device) if torch.device(device).type == "cuda" else _held()
    return float(min(free, memory - held))


def _held() -> int:
    """Memory of this process that no file backs: what is mapped from files, such as libraries, the system takes back when it needs it."""
    _give_back()
    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0))


def _give_back() -> None:
    """Return to the system what was freed and allocators keep: it is not held, but would count."""
    pyarrow.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc
    if trim is not None:
        trim(0)


def free_bytes(device: str) -> int:
    """Memory that is free now on a device; on a GPU torch's allocator keeps what was freed, for the next who asks."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)
