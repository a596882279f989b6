"""When the totals of a running pass go to disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..totals import Totals

SECONDS = 60.0
SHARE = 0.05


class Checkpoints:
    """Saves between chunks, at most 5 % of the time, and once more on the way out unless the totals are half changed."""

    def __init__(self, totals: Totals, out: str | os.PathLike[str] | None) -> None:
        self.totals, self.out = totals, out
        self.held = len(totals.chunks)
        self.whole = True
        self.saved, self.cost = time.monotonic(), 0.0

    @contextmanager
    def unsafe(self) -> Iterator[None]:
        """While the totals change; if this is left by an exception, they are not saved again."""
        self.whole = False
        yield
        self.whole = True

    def maybe_save(self) -> None:
        """Save if the last checkpoint is old enough."""
        if time.monotonic() - self.saved > max(SECONDS, self.cost / SHARE):
            self.save()

    def save(self) -> None:
        """Save unless nothing is new."""
        if self.out is None or len(self.totals.chunks) == self.held:
            return
        start = time.monotonic()
        self.totals.save(self.out)
        self.held, self.saved = len(self.totals.chunks), time.monotonic()
        self.cost = self.saved - start

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        if self.whole:
            self.save()
