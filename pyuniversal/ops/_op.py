"""An op is a contract: one check, one float64 reference, and faster implementations that must agree with it.

`ops/<op>.py` holds the contract, `check`, `reference` and the literal table of implementations. Dispatch takes the first implementation that has nothing to say
against the arguments; a backend named by the caller that cannot run raises with its reason. There is no silent fallback from a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError, InputError

BACKENDS = ("cuda", "cpu", "triton", "reference")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op: `run(*args)` and `why_not(*args)`, which is None where it can run and the reason in words where it cannot."""

    run: Callable[..., Any]
    why_not: Callable[..., str | None]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run it."""
        return self.run(*args, **options)


class Op:
    """A named operation with one contract and several implementations.

    Args:
        name: the op's name, as in `ops/<name>.py`.
        check: raises `InputError` for arguments outside the contract; called once, whatever the backend.
        reference: float64 torch on any device; is itself the backend "reference" and accepts all that `check` accepts.
        faster: backend -> address "module:name" of an `Implementation`, in the order in which they are tried. An address is imported on first use.
    """

    def __init__(self, name: str, *, check: Callable[..., None], reference: Callable[..., Any], faster: Mapping[str, str]) -> None:
        self.name = name
        self.check = check
        self.reference = reference
        self.faster = dict(faster)

    def __call__(self, *args: Any, backend: str | None = None, **options: Any) -> Any:
        """Check the arguments and run the first implementation that accepts them (or `backend`).

        Raises:
            InputError: the arguments break the contract.
            BackendError: `backend` cannot take these arguments; says why.
        """
        self.check(*args, **options)
        if backend is None:
            backend = self.choose(*args, **options)
        elif (reason := self.why_not(backend, *args, **options)) is not None:
            raise BackendError(f"{self.name}: the backend {backend} cannot run here: {reason}")
        return self._load(backend)(*args, **options)

    def choose(self, *args: Any, **options: Any) -> str:
        """The backend that a call with these arguments takes. Never kernels that Triton interprets: they are for who names them, a thousand times slower."""
        interpreted = {"triton"} if os.environ.get("TRITON_INTERPRET") == "1" else set()
        return next((b for b in self.faster if b not in interpreted and self.why_not(b, *args, **options) is None), "reference")

    def why_not(self, backend: str, *args: Any, **options: Any) -> str | None:
        """None if `backend` can run this op on these arguments, else the reason in words."""
        if backend not in BACKENDS:
            return f"there is no such backend; there are {', '.join(BACKENDS)}"
        if backend == "reference":
            return None
        if backend not in self.faster:
            return "not implemented"
        try:
            implementation = self._load(backend)
        except (ImportError, AttributeError) as error:
            return f"not built ({error})"
        return implementation.why_not(*args, **options)

    def explain(self, *args: Any, **options: Any) -> dict[str, str]:
        """For each backend, "runs" or the reason why it does not take these arguments."""
        return {b: self.why_not(b, *args, **options) or "runs" for b in BACKENDS}

    def _load(self, backend: str) -> Any:
        if backend == "reference":
            return self.reference
        module, name = self.faster[backend].split(":")
        return getattr(import_module(module), name)


def require(condition: bool, op: str, message: str) -> None:
    """Raise `InputError` with the op's name before the message unless `condition` holds."""
    if not condition:
        raise InputError(f"{op}: {message}")


def require_device(op: str, device: torch.device, **tensors: Tensor) -> None:
    """Raise `InputError` for the first tensor that is not on `device`, where x is."""
    for name, tensor in tensors.items():
        require(tensor.device == device, op, f"{name} is on {tensor.device}, x on {device}")


def describe(x: Tensor) -> str:
    """Dtype, shape and device of a tensor, for messages."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
