"""Samples of a batch: whether its inputs can be taken apart along axis 0, and into how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .session import TensorInfo


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
    """Count the samples in a batch: the length of the first input's axis 0, 1 without one."""
    first = next(iter(feeds.values()), np.zeros(()))
    return len(first) if first.ndim else 1


def same_rows(feeds: Mapping[str, NDArray[Any]]) -> bool:
    """True if axis 0 of all arrays has one length."""
    lengths = {len(array) if array.ndim else -1 for array in feeds.values()}
    return len(lengths) == 1
