"""Independent runs of torch modules beside each other, each with its share of the cores."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def side_by_side(
    function: Callable[[Item], Outcome], items: Iterable[Item], most: int
) -> Iterator[Outcome]:
    """Yield the function's results in the order of the items, at most so many at work at a time.

    Threads within an operator wait for each other at its end, those of different runs do not: where
    operators are small, or other programs take cores, this is several times as fast.
    """
    cores = os.cpu_count() or 1
    workers = max(min(most, cores), 1)
    waiting = iter(items)
    with _threads(cores // workers), ThreadPoolExecutor(workers) as pool:
        # in groups: a pool would take all items at once, and hold them
        while group := list(itertools.islice(waiting, workers)):
            yield from pool.map(function, group)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let operators of torch use so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
