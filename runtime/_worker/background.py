"""Work in a second thread, one call behind: statistics of a batch are taken during the next run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_SWITCH_SECONDS = 0.0005
"""Seconds after which a thread must hand over the interpreter; Python's default is 0.005.

The thread that runs the model needs the interpreter only to fetch outputs, and would wait for it
as long. Chosen by hand; not measured.
"""


class BackgroundExecutor:
    """A background thread that runs one call at a time.

    An error of a call is raised where the call is waited for.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Begin a call, after waiting for the one before. Errors: whatever that one raised."""
        self.finish()
        if self._thread is None:
            sys.setswitchinterval(_SWITCH_SECONDS)
            self._thread = ThreadPoolExecutor(1)
        self._pending = self._thread.submit(call)

    def finish(self) -> None:
        """Wait until no call is under way. Errors: whatever the call raised."""
        pending = self._take_pending()
        if pending is not None:
            pending.result()

    def abandon(self) -> None:
        """Wait until no call is under way, and forget an error that it raised."""
        pending = self._take_pending()
        if pending is not None:
            pending.exception()

    def _take_pending(self) -> Future[None] | None:
        # forgotten before it is waited for: an error is raised once, not by every later call
        pending = self._pending
        self._pending = None
        return pending
