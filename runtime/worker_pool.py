"""Workers that stay warm between the runs of one process.

A child's start costs several times what it takes to optimize a small model.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator

from .. import OnnxOptError
from ._worker.watchdog import Alarm, call_off, set_alarm
from .worker import Worker

IDLE_SECONDS = 30.0
"""Seconds that a worker waits for its next run before it ends. Chosen by hand; not measured."""


class WorkerPool:
    """Workers that no run uses at the moment; safe to use from several threads.

    Each run has one for itself. They end after `idle_seconds` without a run, and with the process.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._alarm: Alarm | None = None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Worker]:
        """A worker without sessions: a warm one, or one that starts at its first call."""
        worker = self._take()
        try:
            yield worker
        finally:
            self._give_back(worker)

    def prestart(self) -> None:
        """Start a child for the run that is about to come, unless one waits already."""
        worker = self._take()
        worker.start()
        self._keep(worker)

    def close(self) -> None:
        """End every worker that waits."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _take(self) -> Worker:
        fresh = Worker()
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                # limits of the environment may have changed since it was made
                if worker.alive and worker.limits == fresh.limits:
                    return worker
                worker.close()
        return fresh

    def _give_back(self, worker: Worker) -> None:
        if worker.alive and _is_cleared(worker):
            self._keep(worker)
        else:
            worker.close()

    def _keep(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)
            previous = self._alarm
            self._alarm = set_alarm(self._idle_seconds, self.close)
        if previous is not None:
            call_off(previous)


def _is_cleared(worker: Worker) -> bool:
    """Free what a run left in the child; False if the child should not be used again."""
    try:
        return bool(worker.call("clear"))
    except OnnxOptError:
        return False


_pool = WorkerPool()


def pool() -> WorkerPool:
    """The pool of this process."""
    return _pool


def _start_anew() -> None:
    global _pool
    _pool = WorkerPool()


def _close() -> None:
    # the pool of now: a forked process has another than the one at import
    _pool.close()


atexit.register(_close)
# pipes to a child serve one process: a forked one starts its own
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
