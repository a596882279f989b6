"""What a case hands to the engine: contenders for one piece of work, and how to tell a right result from a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click

from pyuniversal.ops import OPS
from pyuniversal.ops._op import Op


class WrongResultError(click.ClickException):
    """A contender did not compute what it should: nothing is timed, no row is written."""


@dataclass(frozen=True)
class Setting:
    """What the command line asks for. tokens: of `run`, `profile` and `loop`; opponent_tokens: on how many of them `run` times its opponents. None: what they
    deem enough.
    """

    device: str
    backend: str | None = None
    quick: bool = False
    repeats: int | None = None
    tokens: int | None = None
    opponent_tokens: int | None = None


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a trial.

    run: does it once and returns its result. does: in words, what it does. split: of a result, names and seconds that one call stands for, where these are not
    simply the contender's name and the seconds that it took. about: further fields of its entry in the row.
    """

    run: Callable[[], Any]
    does: str
    split: Callable[[Any], dict[str, float]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One case on one shape; a row is written for each of `ours`.

    verify: of a contender's name and result, its errors against float64; raises `WrongResultError` (`within` does). It sees the first call of every contender
    on the very input that is timed. check: instead of that, where a call takes minutes: the errors of all contenders on a small input.
    bytes, operations: of one call, counted as `counting` says; None where they mean nothing. work: what the rate counts, in units of `unit`.
    ceilings: of `bench.ceilings`, whatever could limit the work.
    """

    op: str
    case: str
    shape: Mapping[str, int]
    ours: Mapping[str, Contender]
    opponents: Mapping[str, Contender]
    verify: Callable[[str, Any], dict[str, float]] | None = None
    check: Callable[[], dict[str, dict[str, float]]] | None = None
    bytes: float | None
    operations: float | None = None
    counting: str
    work: float
    unit: str
    ceilings: tuple[str, ...]
    repeats: int = 5
    notes: Mapping[str, Any] = field(default_factory=dict)


def within(allowed: float | Mapping[str, float], **errors: Any) -> dict[str, float]:
    """The errors as floats, if each is at most what is allowed (of all, or by name); NaN never is.

    Raises:
        WrongResultError: names the first that is larger.
    """
    measured = {name: float(error) for name, error in errors.items()}
    for name, error in measured.items():
        limit = allowed[name] if isinstance(allowed, Mapping) else allowed
        if not error <= limit:
            raise WrongResultError(f"{name.replace('_', ' ')}: the error against float64 is {error:.3g}, allowed is {limit:.3g}")
    return measured


def implementations(op: Op, setting: Setting, call: Callable[[str], Any], *args: Any, **options: Any) -> dict[str, Contender]:
    """The contenders of our side: `call(backend)` for the backend that was asked for; else for all but the reference that run, or for it if there are none.

    Arguments and options are those that `call` will give to the op. A backend that does not take them is told of and left out.
    """
    if setting.backend is not None and (reason := op.why_not(setting.backend, *args, **options)) is not None:
        click.echo(f"left out: {op.name} on {setting.backend}: {reason}", err=True)
        return {}
    able = [b for b in op.faster if op.why_not(b, *args, **options) is None] or ["reference"]
    chosen = able if setting.backend is None else [setting.backend]
    return {backend: Contender(partial(call, backend), does=f"pyuniversal, backend {backend}") for backend in chosen}


@contextmanager
def preferring(backend: str | None) -> Iterator[None]:
    """Let dispatch try one backend first, for what is made of several ops; "reference" lets it take nothing else."""
    tables = {op: op.faster for op in OPS}
    try:
        for op, faster in tables.items():
            if backend == "reference":
                op.faster = {}
            elif backend is not None:
                op.faster = dict(sorted(faster.items(), key=lambda entry: entry[0] != backend))
        yield
    finally:
        for op, faster in tables.items():
            op.faster = faster
