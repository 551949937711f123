"""Outputs of which the data decides how many rows there are, as of the boxes that a detector keeps.

A changed model may keep one row more than the original, or the same ones in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def differ_in_rows(first: Values, second: Values) -> bool:
    """Return whether two outputs differ in their number of rows, the first axis, and only there."""
    if first.ndim != second.ndim or first.ndim == 0:
        return False
    return len(first) != len(second) and first.shape[1:] == second.shape[1:]


def shared_rows(first: Values, second: Values) -> tuple[Values, Values]:
    """Cut to the rows that both have, by their number."""
    if not differ_in_rows(first, second):
        return first, second
    rows = min(len(first), len(second))
    return first[:rows], second[:rows]


def padded_rows(first: Values, second: Values) -> tuple[Values, Values]:
    """Both with as many rows: zeros stand for those that only one has."""
    if not differ_in_rows(first, second):
        return first, second
    rows = max(len(first), len(second))
    return _padded(first, rows), _padded(second, rows)


def _padded(values: Values, rows: int) -> Values:
    padded = np.zeros((rows, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return padded


def common_rows(first: Values, second: Values) -> int:
    """Count the rows that both have; one that is there twice counts twice."""
    alike = Counter(_keys(first)) & Counter(_keys(second.astype(first.dtype)))
    return alike.total()


def _keys(values: Values) -> Iterable[Hashable]:
    """Something for each row that equal rows have in common."""
    if values.dtype.kind in "OUS":
        return [str(row.tolist()) for row in values.astype(str)]
    return [row.tobytes() for row in values]


class RowMatches:
    """Rows of integers, truth values or texts that two outputs have in common, and equal values.

    `rows`: of the output that has more of them, batch by batch. `common`: rows that both have,
    whatever their order. `values`, `equal`: values of batches with as many rows, and those that are
    equal at the same place.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.common = 0
        self.values = 0
        self.equal = 0
        self.is_table = False
        """Each row holds several values."""
        self._differ = False

    def update(self, reference: Values, got: Values) -> None:
        """Take one batch, of the same shape but for the number of rows."""
        reference = np.atleast_1d(reference)
        got = np.atleast_1d(got)
        self.is_table |= reference.ndim == 2 and reference.shape[1] > 1
        self.rows += max(len(reference), len(got))
        if differ_in_rows(reference, got):
            self._differ = True
            self.common += common_rows(reference, got)
            return
        is_equal = np.asarray(reference == got)
        equal = int(np.count_nonzero(is_equal))
        self.values += is_equal.size
        self.equal += equal
        if equal == is_equal.size:
            self.common += len(reference)
        else:
            self.common += common_rows(reference, got)

    @property
    def is_unordered(self) -> bool:
        """True where rows tell, and not places: of other numbers of rows, or moved ones.

        Columns of a selection that are nearly constant agree at every place, so that more rows in
        common than values in place can only be rows that moved.
        """
        if self._differ:
            return True
        return self.is_table and self.common * self.values > self.equal * self.rows
