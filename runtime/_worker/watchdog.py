"""Time limits: one thread of the process acts on whatever takes too long."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator


class Alarm:
    """A deadline on the monotonic clock, and the action at it; `expired` once that has begun."""

    def __init__(self, deadline: float, act: Callable[[], object]) -> None:
        self.deadline = deadline
        self.act = act
        self.expired = False


class Watchdog:
    """A thread that waits for the earliest of its alarms.

    A thread for each call would cost more than most calls take. One that is called off wakes
    nobody: the thread sees so at the deadline.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alarms: set[Alarm] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def add(self, alarm: Alarm) -> None:
        """Act at the alarm's deadline, unless it is removed before."""
        with self._changed:
            self._alarms.add(alarm)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
            elif alarm.deadline < self._wakes_at:
                self._changed.notify()

    def remove(self, alarm: Alarm) -> None:
        """Call an alarm off."""
        with self._changed:
            self._alarms.discard(alarm)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                due = [alarm for alarm in self._alarms if alarm.deadline <= now]
                for alarm in due:
                    self._alarms.discard(alarm)
                    # set before the action: whom it strikes must see it
                    alarm.expired = True
                    alarm.act()
                deadlines = [alarm.deadline for alarm in self._alarms]
                self._wakes_at = min(deadlines, default=math.inf)
                self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))


_watchdog = Watchdog()


def set_alarm(seconds: float, act: Callable[[], object]) -> Alarm:
    """Run `act` in another thread after `seconds`, unless `call_off` comes first.

    `act` must be short, and may neither set nor call off an alarm.
    """
    alarm = Alarm(time.monotonic() + seconds, act)
    _watchdog.add(alarm)
    return alarm


def call_off(alarm: Alarm) -> None:
    """Make sure that an alarm does not go off any more."""
    _watchdog.remove(alarm)


@contextlib.contextmanager
def time_limit(seconds: float, act: Callable[[], object]) -> Iterator[Alarm]:
    """Run `act` in another thread if the block takes longer than `seconds`."""
    alarm = set_alarm(seconds, act)
    try:
        yield alarm
    finally:
        call_off(alarm)


def _start_anew() -> None:
    global _watchdog
    _watchdog = Watchdog()


# a forked process has none of its parent's threads, and perhaps a lock that one of them held
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
