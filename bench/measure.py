"""The engine: check every contender, then time all of them in turns, then make the rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from .ceilings import ceiling
from .machine import identity
from .trial import Contender, Setting, Trial, WrongResultError

SAMPLE_SECONDS = 0.2  # a sample of a fast contender is several calls, so that the clock and the launch of a kernel do not show


def rows_of(trial: Trial, setting: Setting) -> list[dict[str, Any]]:
    """One row for each of our backends.

    A contender's `split` may name parts of its work after a comma ("original, pass"); such a part is compared with the part of ours that has the same name, and
    with the whole where there is none.

    Raises:
        WrongResultError: a contender, ours or another, is wrong.
    """
    contenders = {**trial.ours, **trial.opponents}
    errors, calls = _check(trial, contenders, setting)
    repeats = setting.repeats or (2 if setting.quick else trial.repeats)
    samples, ceilings = _interleave(contenders, calls, repeats, trial.ceilings, setting)
    machine = identity(setting.device)
    opponents = {
        label: {**_times(samples[label]), "does": contender.does, **contender.about, "error": errors.get(name)}
        for name, contender in trial.opponents.items()
        for label in [name, *_parts(name, samples)]
    }
    return [_row(trial, setting, name, samples, ceilings, opponents, errors[name], machine) for name in trial.ours]


def _check(trial: Trial, contenders: Mapping[str, Contender], setting: Setting) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Errors of every contender, and how many calls make a sample.

    The first call is the one that is checked and also warms up. On a GPU it compiles kernels and loads libraries, for seconds: there a second one is timed.
    """
    if trial.check is not None:
        return trial.check(), dict.fromkeys(contenders, 1)
    assert trial.verify is not None
    errors, calls = {}, {}
    for name, contender in contenders.items():
        start = now(setting.device)
        result = contender.run()
        seconds = now(setting.device) - start
        try:
            errors[name] = trial.verify(name, result)
        except WrongResultError as error:
            raise WrongResultError(f"{trial.op} ({trial.case}): {name} is wrong: {error.message}; no row is written") from error
        del result
        if setting.device.startswith("cuda"):
            start = now(setting.device)
            contender.run()
            seconds = now(setting.device) - start
        calls[name] = 1 if setting.quick else max(1, min(100, round(SAMPLE_SECONDS / seconds)))
    return errors, calls


def _interleave(
    contenders: Mapping[str, Contender], calls: Mapping[str, int], repeats: int, ceilings: Sequence[str], setting: Setting
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float | None]]:
    """Label -> (seconds, CPU seconds of all threads) of one call, `repeats` times; and the median of each ceiling, a second.

    In turns, a, b, c, ceilings, a, b, c, ceilings, so that what else the machine does hits all alike.
    """
    samples: dict[str, list[tuple[float, float]]] = {}
    limits: dict[str, list[float | None]] = {name: [] for name in ceilings}
    for _ in range(repeats):
        for name, contender in contenders.items():
            start, cpu = now(setting.device), time.process_time()
            for _ in range(calls[name]):
                result = contender.run()
            seconds, cpu = (now(setting.device) - start) / calls[name], (time.process_time() - cpu) / calls[name]
            for label, value in (contender.split(result) if contender.split else {name: seconds}).items():
                samples.setdefault(label, []).append((value, cpu))
            del result  # before the next contender makes its own
        for name, measured in limits.items():
            measured.append(ceiling(name, setting.device, setting.quick))
    known = {name: [m for m in measured if m is not None] for name, measured in limits.items()}
    return samples, {name: median(measured) if measured else None for name, measured in known.items()}


def _parts(name: str, samples: Mapping[str, Any]) -> list[str]:
    """The labels of a contender's parts."""
    return [label for label in samples if label.startswith(f"{name}, ")]


def _part(label: str) -> str:
    return label.partition(", ")[2]


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _times(samples: list[tuple[float, float]]) -> dict[str, float]:
    seconds = [wall for wall, _ in samples]
    return {"median_s": median(seconds), "min_s": min(seconds), "cpu_s": median(cpu for _, cpu in samples)}


def _row(
    trial: Trial,
    setting: Setting,
    backend: str,
    samples: Mapping[str, list[tuple[float, float]]],
    limits: Mapping[str, float | None],
    opponents: Mapping[str, Mapping[str, Any]],
    error: Mapping[str, float],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    times = _times(samples[backend])
    parts = {_part(label): _times(samples[label])["median_s"] for label in _parts(backend, samples)}
    ceilings = {name: _share(trial, name, times["median_s"], best) for name, best in limits.items()}
    shares = [c["share"] for c in ceilings.values() if c["share"] is not None]
    return {
        "op": trial.op,
        "case": trial.case,
        "backend": backend,
        "shape": dict(trial.shape),
        **times,
        "repeats": len(samples[backend]),
        "quick": setting.quick,
        "rate": trial.work / times["median_s"],
        "unit": trial.unit,
        "bytes": trial.bytes,
        "operations": trial.operations,
        "counting": trial.counting,
        "ceilings": ceilings,
        # Of the ceiling that limits; unknown while one of them is, since that may be the one.
        "share": max(shares, default=None) if len(shares) == len(ceilings) else None,
        "parts": parts,
        "opponents": {label: {**entry, "ratio": entry["median_s"] / parts.get(_part(label), times["median_s"])} for label, entry in opponents.items()},
        "error": dict(error),
        **trial.notes,
        **machine,
    }


def _share(trial: Trial, name: str, seconds: float, best: float | None) -> dict[str, float | None]:
    """The ceiling per second, and what share of it the work needs."""
    amount = trial.bytes if name == "read" else trial.operations
    return {"per_s": best, "share": None if best is None or amount is None else amount / seconds / best}
