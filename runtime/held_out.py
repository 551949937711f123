"""Data in two parts: what passes calibrate, round and train on, and rows that judge the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from .batching import batch_is_symbolic, batch_rows, same_rows
from .feeds import Batch, Feeds

EVERY = 8
"""One sample in so many is held out, spread over the data, which may be sorted. Chosen by hand; not
measured.
"""

FEWEST = 32
"""Samples below which none is spared: a small calibration set needs every one. Chosen by hand; not
measured.
"""

SPAN = 512
"""Samples at the beginning of the data that are shared out; what lies behind is for passes alone.

As many as passes calibrate on by default. Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class HeldOut:
    """Data in two parts.

    `others`: the data without what is held out. `batches`: what is, samples of one shape together;
    `samples`: how many.
    """

    others: Feeds
    batches: list[Batch]
    samples: int


Rule = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Says of samples, by their numbers (N,), which ones belong to a part (N,)."""


def held_out(feeds: Feeds, every: int = EVERY) -> HeldOut | None:
    """Share out the data; None where there are fewer than `FEWEST` samples.

    One sample in `every` is held out. Samples are rows where axis 0 of every input is one open
    batch, else batches. The data is iterated once, up to `SPAN` samples; what is held out is held
    in memory.
    """

    def judges(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        is_last = numbers % every == every - 1
        chosen: NDArray[np.bool_] = is_last & (numbers < SPAN)
        return chosen

    held: list[Batch] = []
    count = 0
    for part in _parts(feeds, judges):
        count = part.stop
        if part.held is not None:
            held.append(part.held)
        if count >= SPAN:
            break
    if count < FEWEST:
        return None
    others = SomeFeeds(feeds, lambda numbers: ~judges(numbers))
    samples = min(count, SPAN) // every
    return HeldOut(others, _joined(held), samples)


class SomeFeeds(Feeds):
    """The samples of feeds that a rule chooses."""

    def __init__(self, feeds: Feeds, rule: Rule) -> None:
        super().__init__(lambda: (), (), feeds.where)
        self._feeds = feeds
        self._rule = rule
        # the same objects: what is noted while one of the two is iterated, both tell
        self.inputs = feeds.inputs
        self.warnings = feeds.warnings

    def __iter__(self) -> Iterator[Batch]:
        for part in _parts(self._feeds, self._rule):
            if part.held is not None:
                yield part.held


def halves(feeds: Feeds, seed: int) -> tuple[Feeds, Feeds]:
    """Share out the data at random: of every two neighbouring samples one is in either half."""
    is_first = first_half(seed)
    return SomeFeeds(feeds, is_first), SomeFeeds(feeds, lambda each: ~is_first(each))


def first_half(seed: int) -> Rule:
    """The rule by which samples are in the first half."""
    start = np.uint64(seed * int(_GOLDEN) % 2**64)

    def is_first(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        pairs = numbers // 2
        # a coin for each pair, the same however the data is cut into batches
        mixed = _mixed(pairs.astype(np.uint64) + start)
        coins = (mixed >> np.uint64(32)) & np.uint64(1)
        first: NDArray[np.bool_] = (numbers & 1) == coins.astype(np.int64)
        return first

    return is_first


def cut(feeds: Feeds, seed: int) -> tuple[Feeds, Feeds]:
    """Cut the data once, between two batches: for a metric that relates neighbouring ones.

    An even number of batches is in front, since pairs of batches are common. `seed`: odd, the parts
    change places. Errors: RefusedError for a single batch.
    """
    count = sum(1 for _ in feeds)
    if count < 2:
        raise RefusedError(
            f"data {feeds.where}",
            "is one batch, which a metric of your own needs whole: it cannot be shared out",
            "give it in several batches, or use a metric that scores row by row",
        )
    middle = max(count // 4 * 2, 1)
    parts = (BatchRange(feeds, 0, middle), BatchRange(feeds, middle, count))
    return (parts[1], parts[0]) if seed % 2 else parts


class BatchRange(Feeds):
    """Batches of feeds from one number up to another."""

    def __init__(self, feeds: Feeds, start: int, stop: int) -> None:
        super().__init__(lambda: (), (), feeds.where)
        self._feeds = feeds
        self._range = (start, stop)
        # the same objects: what is noted while one of the two is iterated, both tell
        self.inputs = feeds.inputs
        self.warnings = feeds.warnings

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self._feeds), *self._range)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash of numbers, modulo 2**64.

    Source: the finalizer of SplitMix64, Steele, Lea, Flood, OOPSLA 2014.
    """
    value = numbers + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class _Part:
    """A batch in two; `stop`: number of samples up to its end."""

    rest: Batch | None
    held: Batch | None
    stop: int


def _parts(feeds: Feeds, judges: Rule) -> Iterator[_Part]:
    """Share out every batch by the numbers of its samples; those that a rule chooses are held."""
    splittable = batch_is_symbolic(list(feeds.inputs.values()))
    start = 0
    for batch in feeds:
        # a batch that cannot be taken apart is one sample
        rows = 1
        is_open = splittable and same_rows(batch.feeds)
        if is_open:
            rows = batch_rows(batch.feeds)
        stop = start + rows
        chosen = judges(np.arange(start, stop, dtype=np.int64))
        if chosen.all():
            yield _Part(rest=None, held=batch, stop=stop)
        elif not chosen.any():
            yield _Part(rest=batch, held=None, stop=stop)
        else:
            yield _Part(
                rest=_rows(batch, ~chosen),
                held=_rows(batch, chosen),
                stop=stop,
            )
        start = stop


def _rows(batch: Batch, chosen: NDArray[np.bool_]) -> Batch:
    """Take some rows of a batch."""
    feeds = {}
    for name, array in batch.feeds.items():
        feeds[name] = array[chosen]
    labels = batch.labels
    if labels is None or not labels.ndim:
        return Batch(feeds, labels)
    # labels that are not one a row stay whole
    if len(labels) == len(chosen):
        labels = labels[chosen]
    return Batch(feeds, labels)


def _joined(batches: list[Batch]) -> list[Batch]:
    """Join neighbouring batches of rows of one shape; labels are not kept."""
    groups: list[list[Batch]] = []
    group: list[Batch] = []
    for batch in batches:
        if group and _fits(batch, group[0]):
            group.append(batch)
        else:
            group = [batch]
            groups.append(group)
    return [_concatenated(group) for group in groups]


def _fits(batch: Batch, other: Batch) -> bool:
    return same_rows(batch.feeds) and _shapes(other) == _shapes(batch)


def _concatenated(group: list[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    feeds = {}
    for name in group[0].feeds:
        parts = [batch.feeds[name] for batch in group]
        feeds[name] = np.concatenate(parts)
    return Batch(feeds)


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Shapes of single rows."""
    shapes = {}
    for name, array in batch.feeds.items():
        shape = array.shape[1:]
        if not array.ndim:
            # without rows to be taken apart, a shape that equals no other batch's
            shape = (-id(batch),)
        shapes[name] = shape
    return shapes
