"""Data that tells a run nothing: constant, or one sample over and over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class _Seen:
    """Facts of one input so far; only one sample of it is held.

    `size`: elements of the largest sample.
    """

    def __init__(self) -> None:
        self.size = 0
        self.samples = 0
        self.is_constant = True
        self.are_equal = True
        self._first: NDArray[Any] | None = None

    def update(self, array: NDArray[Any]) -> None:
        """Take one batch, samples along axis 0; a scalar is a sample."""
        rows = array.reshape(1, 1) if array.ndim == 0 else array
        if not rows.size:
            return
        if self._first is None:
            self._first = rows[:1].copy()
        first = self._first
        self.size = max(self.size, rows[:1].size)
        self.samples += len(rows)
        self.is_constant &= bool((rows == first.flat[0]).all())
        has_shape = rows.shape[1:] == first.shape[1:]
        self.are_equal &= has_shape and bool((rows == first).all())

    @property
    def value(self) -> str:
        """The value of a constant input, as text."""
        assert self._first is not None
        return str(self._first.flat[0])


def unfit(batches: Iterable[Arrays]) -> str | None:
    """Say why data tells nothing, by the input's name, and what to give; None where it does.

    The inputs with most elements are looked at: masks, states and rates may well be constant.
    """
    inputs: dict[str, _Seen] = {}
    for batch in batches:
        for name, array in batch.items():
            inputs.setdefault(name, _Seen()).update(np.asarray(array))
    most = max((seen.size for seen in inputs.values()), default=0)
    if not most:
        return None
    main = {name: seen for name, seen in inputs.items() if seen.size == most}
    name, seen = next(iter(main.items()))
    # a single number a sample may be the same in all of few samples
    if most > 1 and all(each.is_constant for each in main.values()):
        return (
            f"input '{name}' is {seen.value} everywhere: nothing can be calibrated or judged by "
            "that; give samples as the model meets them in use"
        )
    if seen.samples > 1 and all(each.are_equal for each in inputs.values()):
        return (
            f"all {seen.samples} samples of input '{name}' are equal: they count as one; "
            "give different ones"
        )
    return None
