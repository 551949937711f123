"""Data in two parts: what passes calibrate, round and train on, and rows that judge what they made
of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .context import batch_is_symbolic, batch_rows, same_rows
from .feeds import Batch, Feeds

EVERY = 8
"""One sample in so many judges: spread over the data, which may be sorted."""

FEWEST = 32
"""Samples below which none is spared: a small calibration set needs every one."""

SPAN = 512
"""Samples at the beginning of the data that are shared out; what lies behind is for passes
alone.
"""


@dataclass(frozen=True)
class HeldOut:
    """`others`: the data without what is held out; `batches`: that, samples of one shape
    together.
    """

    others: Feeds
    batches: list[Batch]


def held_out(feeds: Feeds) -> HeldOut | None:
    """Share out the data; None where there are fewer than `FEWEST` samples.

    Samples are rows where axis 0 of every input is one open batch, else batches. The data is
    iterated once, up to `SPAN` samples; at most an eighth of them is held in memory.
    """
    held: list[Batch] = []
    count = 0
    for part in _parts(feeds):
        count = part.stop
        if part.held is not None:
            held.append(part.held)
        if count >= SPAN:
            break
    return HeldOut(_Others(feeds), _joined(held)) if count >= FEWEST else None


class _Others(Feeds):
    """Feeds without the samples that are held out of them."""

    def __init__(self, feeds: Feeds) -> None:
        super().__init__(lambda: (), (), feeds.where)
        self._feeds = feeds
        self.inputs = feeds.inputs
        self.warnings = feeds.warnings

    def __iter__(self) -> Iterator[Batch]:
        return (part.rest for part in _parts(self._feeds) if part.rest is not None)


@dataclass(frozen=True)
class _Part:
    """A batch in two; `stop`: how many samples end with it."""

    rest: Batch | None
    held: Batch | None
    stop: int


def _parts(feeds: Feeds) -> Iterator[_Part]:
    """Every batch, shared out by the numbers of its samples."""
    splittable, start = batch_is_symbolic(list(feeds.inputs.values())), 0
    for batch in feeds:
        single = not (splittable and same_rows(batch.feeds))
        stop = start + (1 if single else batch_rows(batch.feeds))
        numbers = np.arange(start, stop)
        judges = (numbers % EVERY == EVERY - 1) & (numbers < SPAN)
        if judges.all():
            yield _Part(None, batch, stop)
        elif not judges.any():
            yield _Part(batch, None, stop)
        else:
            yield _Part(_rows(batch, ~judges), _rows(batch, judges), stop)
        start = stop


def _rows(batch: Batch, chosen: NDArray[np.bool_]) -> Batch:
    """Some rows of a batch."""
    labels = batch.labels
    some = (
        labels[chosen]
        if labels is not None and labels.ndim and len(labels) == len(chosen)
        else labels
    )
    return Batch({name: array[chosen] for name, array in batch.feeds.items()}, some)


def _joined(batches: list[Batch]) -> list[Batch]:
    """Neighbouring batches of rows of one shape as one; labels are not kept."""
    joined: list[list[Batch]] = []
    for batch in batches:
        if (
            joined
            and same_rows(batch.feeds)
            and _shapes(joined[-1][0]) == _shapes(batch)
        ):
            joined[-1].append(batch)
        else:
            joined.append([batch])
    return [
        Batch(
            {
                name: np.concatenate([b.feeds[name] for b in group])
                for name in group[0].feeds
            }
        )
        if len(group) > 1
        else group[0]
        for group in joined
    ]


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Of single rows; of a batch that has no rows to be taken apart, one that equals no other."""
    return {
        name: array.shape[1:] if array.ndim else (-id(batch),)
        for name, array in batch.feeds.items()
    }
