"""Where and of what a row was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyuniversal import _C

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "pyuniversal", "transformers", "triton")


def identity(device: str) -> dict[str, Any]:
    """The fields that every row begins or ends with."""
    cuda = device.startswith("cuda")
    return {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": cpu(),
        "instruction_set": _C.instruction_set() if hasattr(_C, "instruction_set") else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # beyond `threads`, others were at work
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES} | {"cuda": torch.version.cuda if cuda else None},
    }


def commit() -> str | None:
    """Commit of the clone, with "-dirty" where tracked files differ from it (results aside); outside of git what PYUNIVERSAL_COMMIT says, or None."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get("PYUNIVERSAL_COMMIT") or None
    return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results") else "")


def cpu() -> str:
    """Name of the processor, with family and model where the name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']} (family {known.get('cpu family')}, model {known.get('model')}), {os.cpu_count()} cores"


def results_file(device: str) -> Path:
    """Where rows go unless told otherwise: one file a machine and day."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu()
    return ROOT / "bench/results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{datetime.now(UTC):%Y-%m-%d}.jsonl"


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
