"""Where the time of `pyuniversal.run` on the embedded models goes: timers around the functions of the line, each exclusive of those inside it."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table

import pyuniversal
from pyuniversal import report, results, sources, stages, streaming, totals, universality, zoo
from pyuniversal.ops import _op

from .trial import Setting, preferring

TOKENS, QUICK_TOKENS = 100_000, 4_000

# What a share is called, and the functions it is made of, as the modules that call them know them. Ops are timed under their own names.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "forward": ((sources.ModelSite, "activations"),),
    "gather": ((streaming.one_pass, "gather"),),
    "quantize": ((streaming.one_pass, "pack"),),  # the keys of its dither
    "checkpoint": ((totals.Totals, "save"), (totals.Totals, "load")),
    "weight statistics": ((stages.passing, "_weights"),),
    "baseline": ((universality, "baseline"),),
    "assignment": ((universality.partners, "assign"),),
    "tables": ((universality, "matches"), (stages.tables, "neuron_table"), (stages.tables, "write_tables"), (results, "write_table")),
    "confirmation": ((stages.confirming, "confirm_pass"),),
    "null": ((universality, "nulls"),),
    "claims": ((report, "claims"),),
    "figures": ((report, "save_figures"),),
    "loading": ((stages.inputs, "load_models"),),
}


class Clock:
    """Seconds and calls of each part; time inside an inner part counts for that part alone."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        """Give the time since the last switch to the innermost part that is running."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], name: str | None) -> Callable[..., Any]:
        """`function` under the clock; None: a method of an op, whose name is that of the part."""

        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(args[0].name if name is None else name):
                return function(*args, **options)

        return timed


def profile(setting: Setting) -> Iterator[Table]:
    """No rows; shares of the seconds of a run on the embedded models, one rotation. The rest is what no part claims: chunks, merging of sums, manifest."""
    clock = Clock(setting.device)
    tokens = setting.tokens or (QUICK_TOKENS if setting.quick else TOKENS)
    models = zoo.models()[: 2 if setting.quick else None]
    with tempfile.TemporaryDirectory() as out, preferring(setting.backend), ExitStack() as stack:
        stack.enter_context(patch.object(_op.Op, "__call__", clock.wrap(_op.Op.__call__, None)))
        for name, functions in PARTS.items():
            for owner, attribute in functions:
                stack.enter_context(patch.object(owner, attribute, clock.wrap(getattr(owner, attribute), name)))
        with clock.part("rest"):
            pyuniversal.run(models, tokens=zoo.tokens(), max_tokens=tokens, baseline_draws=1, out=out, device=setting.device, progress=False)
    whole = sum(clock.seconds.values())
    shown = Table(
        title=f"run on {len(models)} models of the zoo, {tokens:,} tokens, 1 rotation, {torch.get_num_threads()} threads: {whole:.1f} s; exclusive times"
    )
    for heading in ("part", "calls", "seconds", "share"):
        shown.add_column(heading, justify="left" if heading == "part" else "right")
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        shown.add_row(name, f"{clock.calls[name]:,}", f"{seconds:.2f}", f"{seconds / whole:.1%}")
    yield shown
