"""Batches cut into the parts that are run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .feeds import Feeds
from .session import TensorInfo

_MICRO_BATCH = 8
"""Rows that are run at once, at most. Chosen by hand; not measured."""

_MICRO_BYTES = 32 << 20
"""Bytes of tapped outputs of one run, at most, unless one row has more.

Two runs are held at once, one being counted while the next is made. Chosen by hand; not measured.
"""


class RowLimit:
    """Limit of rows to run at once.

    1 at first, then as many as keep the tapped outputs within 32 MiB, at most 8.
    """

    def __init__(self) -> None:
        self.rows = 1

    def adapt(self, size: int, rows: int) -> None:
        """Learn that `rows` rows gave `size` bytes of outputs."""
        affordable = _MICRO_BYTES * rows // max(size, 1)
        self.rows = max(min(affordable, _MICRO_BATCH), 1)


class MicroBatch(NamedTuple):
    """Part of a batch that is run at once; `rows`: its samples."""

    feeds: dict[str, NDArray[Any]]
    rows: int


def micro_batches(
    feeds: Feeds,
    inputs: Sequence[TensorInfo],
    samples: int,
    limit: RowLimit,
    whole: bool = False,
) -> Iterator[MicroBatch]:
    """Cut feeds into micro-batches, of `samples` rows together.

    `limit.rows` at a time where axis 0 of every input is one symbolic batch. Where it is not, or
    with `whole`, batches stay whole, and the last may go past `samples`.
    """
    splittable = batch_is_symbolic(inputs) and not whole
    seen = 0
    for batch in feeds:
        rows = batch_rows(batch.feeds)
        if splittable and same_rows(batch.feeds):
            rows = min(rows, samples - seen)
            start = 0
            while start < rows:
                # read each time: the consumer adapts it to what the last part took
                stop = min(start + limit.rows, rows)
                part = {name: a[start:stop] for name, a in batch.feeds.items()}
                yield MicroBatch(part, stop - start)
                start = stop
        else:
            yield MicroBatch(batch.feeds, rows)
        seen += rows
        if seen >= samples:
            return


def batch_is_symbolic(inputs: Sequence[TensorInfo]) -> bool:
    """Return whether every input has a first axis of open length, the same symbol if named."""
    symbols = set()
    for info in inputs:
        # a scalar has no axis to be cut along
        length = info.shape[0] if info.shape else 0
        if isinstance(length, int):
            return False
        if isinstance(length, str):
            symbols.add(length)
    return len(inputs) > 0 and len(symbols) <= 1


def batch_rows(feeds: Mapping[str, NDArray[Any]]) -> int:
    """Samples in a batch: the length of axis 0 of the first array that has one, 1 without any."""
    for array in feeds.values():
        if np.ndim(array):
            return len(array)
    return 1


def same_rows(feeds: Mapping[str, NDArray[Any]]) -> bool:
    """True if axis 0 of all arrays has one length."""
    lengths = {len(array) if array.ndim else -1 for array in feeds.values()}
    return len(lengths) == 1
