"""Single samples of data, the first that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.feeds import Arrays, Feeds
from ...runtime.session import TensorInfo
from .inputs import ExplainedInput


@dataclass(frozen=True)
class DataSample:
    """One sample: arrays by input; those in `batched` lie along a first axis of length 1."""

    feeds: Arrays
    batched: frozenset[str]

    def values(self, subject: ExplainedInput) -> NDArray[Any]:
        """The explained array, without an axis of samples."""
        array = self.feeds[subject.name]
        if subject.batched:
            return np.asarray(array[0])
        return array

    def row_of(self, name: str) -> NDArray[Any]:
        """An input of tokens or their mask, (T,)."""
        array = self.feeds[name]
        return array.reshape(-1)


def first_samples(
    feeds: Feeds, inputs: Sequence[TensorInfo], subject: ExplainedInput, count: int
) -> list[DataSample]:
    """The first `count` samples of the data. Errors: RefusedError of the feeds."""
    batched = batched_inputs(inputs, subject)
    found: list[DataSample] = []
    for batch in feeds:
        rows = len(batch.feeds[subject.name]) if subject.batched else 1
        for row in range(rows):
            if len(found) == count:
                return found
            found.append(_sample(batch.feeds, batched, row))
    return found


def _sample(feeds: Arrays, batched: frozenset[str], row: int) -> DataSample:
    own = {}
    for name, array in feeds.items():
        if name in batched:
            own[name] = array[row : row + 1]
        else:
            own[name] = array
    return DataSample(own, batched)


def batched_inputs(
    inputs: Sequence[TensorInfo], subject: ExplainedInput
) -> frozenset[str]:
    """Names of the inputs whose first axis is that of the explained input's samples."""
    if not subject.batched:
        return frozenset()
    firsts = {info.name: info.shape[0] for info in inputs if info.shape}
    batch = firsts[subject.name]
    same = [name for name, length in firsts.items() if length == batch]
    return frozenset(same)
