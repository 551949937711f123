"""Independent computations side by side, a core each."""

from __future__ import annotations

import contextlib
import os
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
    blas = _Blas()
    running: deque[Future[Outcome]] = deque()
    sizes: deque[int] = deque()
    with ThreadPoolExecutor(cores) as pool, blas.threads(1):
        try:
            for item in items:
                size = bytes_of(item)
                while running and not _has_room(sizes, size, cores):
                    sizes.popleft()
                    yield running.popleft().result()
                if size > HELD:
                    with blas.threads(blas.usual):
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


class _Blas:
    """Threads that numpy's products of matrices take; `usual`: their number before it changes."""

    def __init__(self) -> None:
        self._controller: Any = None
        # where libraries cannot be asked, their threads stay as they are
        with contextlib.suppress(AttributeError, OSError):
            self._controller = ThreadpoolController().select(user_api="blas")
        known = [] if self._controller is None else self._controller.info()
        self.usual = max((int(each["num_threads"]) for each in known), default=1)

    @contextlib.contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Have products take so many threads meanwhile."""
        if self._controller is None:
            yield
            return
        with self._controller.limit(limits=count):
            yield
