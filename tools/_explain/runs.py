"""Variants of one sample through a model: many at once, or one by one where it takes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.session import Dim, Session
from .inputs import ExplainedInput
from .samples import DataSample

Arrays = Mapping[str, NDArray[Any]]

MOST_ROWS = 64
"""Variants that are run at once, at most. Chosen by hand."""

MOST_BYTES = 16 << 20
"""Bytes of the variants that are run at once, unless one takes more. Chosen by hand."""


@dataclass(frozen=True)
class Runner:
    """Runs variants of samples. `rows`: how many the model takes at once; None: any number."""

    session: Session
    subject: ExplainedInput
    rows: int | None

    @staticmethod
    def of(session: Session, subject: ExplainedInput) -> Runner:
        """Learn from the model's inputs how many samples it takes at once."""
        return Runner(session, subject, _rows_at_once(session, subject))

    def plain(self, sample: DataSample) -> dict[str, NDArray[Any]]:
        """Outputs for the sample as it is, those of one sample alone."""
        if self.rows in (None, 1):
            return self.session.run(sample.feeds)
        feeds = _repeated(sample, {}, self.rows or 1)
        outputs = self.session.run(feeds)
        return _between(outputs, 0, 1)

    def run(
        self, sample: DataSample, variants: Arrays
    ) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        """Outputs of variants (V, …) by input, in chunks, each with its number of variants."""
        array = variants[self.subject.name]
        fixed = self.rows or 0
        size = fixed or _affordable(array)
        total = len(array)
        for start in range(0, total, size):
            stop = min(start + size, total)
            count = stop - start
            chunk = _between(variants, start, stop)
            feeds = self._feeds(sample, chunk, count)
            outputs = self.session.run(feeds)
            # rows behind the last are there to fill up a fixed batch
            if count < fixed:
                outputs = _between(outputs, 0, count)
            yield outputs, count

    def _feeds(self, sample: DataSample, chunk: Arrays, count: int) -> Arrays:
        if not self.subject.batched:
            only = {name: part[0] for name, part in chunk.items()}
            return {**sample.feeds, **only}
        return _repeated(sample, chunk, self.rows or count)


def _between(arrays: Arrays, start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Some rows of each array."""
    return {name: array[start:stop] for name, array in arrays.items()}


def _repeated(sample: DataSample, chunk: Arrays, rows: int) -> dict[str, NDArray[Any]]:
    """Feeds of so many rows: the variants, the last again where they are fewer."""
    feeds = {}
    for name, array in sample.feeds.items():
        if name in chunk:
            own = chunk[name]
            missing = rows - len(own)
            last = np.repeat(own[-1:], missing, axis=0)
            feeds[name] = np.concatenate([own, last])
        elif name in sample.batched:
            feeds[name] = np.repeat(array, rows, axis=0)
        else:
            feeds[name] = array
    return feeds


def _rows_at_once(session: Session, subject: ExplainedInput) -> int | None:
    """Samples of a run; 1 where they lie along another axis of some input as well."""
    if not subject.batched:
        return 1
    shapes = {info.name: info.shape for info in session.inputs}
    batch, *_ = shapes[subject.name]
    if isinstance(batch, int):
        return batch
    others: list[Dim] = []
    for shape in shapes.values():
        others += shape[1:]
    is_elsewhere = batch is not None and batch in others
    return 1 if is_elsewhere else None


def _affordable(array: NDArray[Any]) -> int:
    each = max(array[:1].nbytes, 1)
    rows = min(MOST_ROWS, MOST_BYTES // each)
    return max(rows, 1)
