"""When the totals of a running pass go to disk."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import FileError, Terminated
from ..totals import Totals

log = logging.getLogger(__name__)

SECONDS = 60.0
SHARE = 0.05
DISK = 2e8  # bytes a second, supposed until a save has shown what this disk does


class Checkpoints:
    """Saves between chunks, at most 5 % of the time, and once more on the way out unless the totals are half changed.

    SIGTERM, which schedulers send some seconds before they kill, ends the pass as Ctrl-C does, with `Terminated`: at once while a model runs, else as soon as
    the totals are whole again.
    """

    def __init__(self, totals: Totals, out: str | os.PathLike[str] | None) -> None:
        self.totals, self.out = totals, out
        self.whole, self.terminated = True, False
        self.saved = time.monotonic()
        self.cost: float | None = None
        self._handler: Any = None

    @contextmanager
    def unsafe(self) -> Iterator[None]:
        """While the totals change; if this is left by an exception, they are not saved again."""
        self.whole = False
        yield
        self.whole = True
        self._heed()

    def maybe_save(self) -> None:
        """Save if the last checkpoint is old enough."""
        cost = self.cost if self.cost is not None else self.totals.nbytes / DISK
        if time.monotonic() - self.saved > max(SECONDS, cost / SHARE):
            self.save()

    def save(self) -> None:
        """Save unless nothing is new."""
        if self.out is None or not self.totals.unsaved:
            return
        start = time.monotonic()
        self.whole = False  # a signal waits; a save that fails is not tried again
        self.totals.save(self.out)
        self.whole = True
        self.saved = time.monotonic()
        self.cost = self.saved - start
        self._heed()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._terminate)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if self.whole:
                try:
                    self.save()
                except FileError as failed:
                    if error is None:
                        raise
                    log.error("the chunks since the last checkpoint could not be saved: %s", failed)
            if isinstance(error, KeyboardInterrupt) and self.out is not None:
                log.info("stopped; %d of %d chunks are saved in %s", self.totals.saved(self.out), self.totals.n_chunks, self.out)
        finally:
            if self._handler is not None:
                signal.signal(signal.SIGTERM, self._handler)

    def _terminate(self, *_: object) -> None:
        self.terminated = True
        if self.whole:
            self._heed()

    def _heed(self) -> None:
        if self.terminated:
            self.terminated = False
            raise Terminated("SIGTERM")
