"""Ctrl-C during a training: the step that runs is finished first, so that its state can be kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """A request to end, as a signal handler notes it. `asked`: it has come."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; end at once at the second.

        Errors: KeyboardInterrupt.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interruption]:
    """Note SIGINT in place of raising KeyboardInterrupt in the middle of a step.

    Only the main thread may do so; in others nothing is noted.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGINT, interruption)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
