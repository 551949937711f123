"""Work in a second thread, one call behind: statistics of a batch are taken while the next batch
runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_SWITCH_SECONDS = (
    0.0005  # ONNX Runtime's outputs wait this long for the interpreter, not 5 ms
)


class Counting:
    """At most one call at a time; a call's error is raised where it is waited for."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Wait for the call before, then begin this one."""
        self.finish()
        if self._threads is None:
            sys.setswitchinterval(_SWITCH_SECONDS)
            self._threads = ThreadPoolExecutor(1)
        self._pending = self._threads.submit(call)

    def finish(self) -> None:
        """Wait until nothing is under way. Errors: whatever the call raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def abandon(self) -> None:
        """Wait until nothing is under way, whatever became of it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.exception()
