"""Independent computations side by side, a core each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

HELD = 64 << 20
"""Bytes of items that are at work at once; a larger one has all cores to itself. Chosen by hand."""


def in_parallel(
    function: Callable[[Item], Outcome],
    items: Iterable[Item],
    bytes_of: Callable[[Item], int],
) -> Iterator[Outcome]:
    """Yield the function's results in the order of the items, which are taken in this thread.

    Of items that share the cores, each product of matrices takes one: threads of one product wait
    for each other at its end, and keep their cores busy meanwhile.
    """
    cores = os.cpu_count() or 1
    running: deque[Future[Outcome]] = deque()
    sizes: deque[int] = deque()
    with ThreadPoolExecutor(cores) as pool, _BLAS.one():
        try:
            for item in items:
                size = bytes_of(item)
                while running and not _has_room(sizes, size, cores):
                    sizes.popleft()
                    yield running.popleft().result()
                if size > HELD:
                    with _BLAS.usual():
                        outcome = function(item)
                    yield outcome
                else:
                    running.append(pool.submit(function, item))
                    sizes.append(size)
            while running:
                yield running.popleft().result()
        finally:
            # nothing is at work any more when the caller goes on
            for future in running:
                future.cancel()
            wait(running)


def _has_room(sizes: deque[int], size: int, cores: int) -> bool:
    """True if an item of so many bytes may be at work beside those of the given sizes."""
    return len(sizes) < cores and sum(sizes) + size <= HELD


class _BlasThreads:
    """Threads of numpy's products of matrices, which are the process's: runs in it share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._controller: Any = None
        self._limit: Any = None
        self._usual = 1

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Have products take one thread until the last run that asked for it has ended."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._take()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._limit is not None:
                    self._limit.restore_original_limits()

    def _take(self) -> None:
        """Remember the threads that there are, and leave one."""
        self._controller = self._limit = None
        # where libraries cannot be asked, their threads stay as they are
        with contextlib.suppress(AttributeError, OSError):
            self._controller = ThreadpoolController().select(user_api="blas")
            known = [int(each["num_threads"]) for each in self._controller.info()]
            self._usual = max(known, default=1)
            self._limit = self._controller.limit(limits=1)

    @contextlib.contextmanager
    def usual(self) -> Iterator[None]:
        """Have products take all their threads meanwhile."""
        if self._limit is None:
            yield
            return
        with self._controller.limit(limits=self._usual):
            yield


_BLAS = _BlasThreads()
