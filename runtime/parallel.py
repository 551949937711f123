"""Independent computations side by side, a core each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from threadpoolctl import threadpool_limits

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
    with ThreadPoolExecutor(cores) as pool, threadpool_limits(1, "blas") as limits:
        try:
            for item in items:
                size = bytes_of(item)
                while running and not _has_room(sizes, size, cores):
                    sizes.popleft()
                    yield running.popleft().result()
                if size > HELD:
                    usual = limits.get_original_num_threads()["blas"]
                    with threadpool_limits(usual, "blas"):
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
