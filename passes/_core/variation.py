"""Share of an output that errors take: of what varies in it, not of what all samples have alike.

A price of 350,000 give or take 90,000 has a mean square that hides the loss of all that the model
says of a house; so has a picture of its brightness.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

Columns = NDArray[np.float64]
"""A number for each column of an output: (C,)."""

LEAST_VARIANCE = 1e-5
"""Share of its mean square below which the variance of a column is rounding noise of float32."""

OTHER_UNIT = 100.0
"""Variance of a column over the usual one from which columns are of different units: a sum over
them says only what becomes of the largest. Chosen by hand: scores of classes stay below.
"""


TOGETHER = 1 << 15
"""Values that are summed at a time, few enough for the cache."""


def column_axis(rank: int) -> int:
    """Axis of the columns of an output of so many axes: channels of maps, else the last."""
    return 1 if rank >= 4 else max(rank - 1, 0)


def lost_variation(errors: Columns, squares: Columns, means: Columns) -> float:
    """Share of an output's variation that is lost; NaN where nothing varies.

    Of columns that differ much in scale each counts alike, and is lost once at most.

    Shapes: errors (C,), mean square error of each column; squares (C,), mean square of the
    original's values; means (C,), their mean.
    """
    variances = squares - means**2
    varies = variances > LEAST_VARIANCE * squares
    if not varies.any():
        return math.nan
    own = variances[varies]
    together = float(errors.sum() / own.sum())
    if not differ_in_unit(own):
        return together
    shares = errors[varies] / own
    by_column = float(np.minimum(shares, 1.0).mean())
    return max(together, by_column)


def differ_in_unit(variances: Columns) -> bool:
    """True for the variances of columns of which a sum says little: metres beside millimetres."""
    ascending = np.sort(variances)
    # of two columns the smaller one
    usual = ascending[(len(ascending) - 1) // 2]
    return bool(ascending[-1] >= OTHER_UNIT * usual)


class ColumnSums:
    """Running sums of an output's columns and of their errors; memory does not grow with the data.

    `count`: values of each column so far.
    """

    def __init__(self) -> None:
        self._restart(columns=0)

    def _restart(self, columns: int) -> None:
        self.count = 0
        self._values = np.zeros(columns)
        self._squares = np.zeros(columns)
        self._errors = np.zeros(columns)

    def update(self, reference: Values, got: Values) -> None:
        """Take floats of equal shape; values that are not finite in both count as 0."""
        if not reference.size:
            return
        wanted = _by_column(reference)
        made = _by_column(got)
        count, columns = wanted.shape
        # an axis whose length the data decides has no columns: the last batch counts alone
        if self._values.size != columns:
            self._restart(columns)
        together = max(TOGETHER // columns, 1)
        for start in range(0, count, together):
            part = slice(start, start + together)
            self._add(
                wanted[part].astype(np.float64),
                made[part].astype(np.float64),
            )
        self.count += count

    def _add(self, y: NDArray[np.float64], z: NDArray[np.float64]) -> None:
        is_finite = np.isfinite(y) & np.isfinite(z)
        if not is_finite.all():
            y = np.where(is_finite, y, 0.0)
            z = np.where(is_finite, z, 0.0)
        error = y - z
        self._values += y.sum(axis=0)
        self._squares += np.einsum("nc,nc->c", y, y)
        self._errors += np.einsum("nc,nc->c", error, error)

    @property
    def have_other_units(self) -> bool:
        """True for columns of which a sum says little."""
        if not self.count:
            return False
        means = self._values / self.count
        return differ_in_unit(self._squares / self.count - means**2)

    def lost(self) -> float:
        """Share of what varies that is lost; NaN where nothing varies, or there is nothing."""
        if not self.count:
            return math.nan
        return lost_variation(
            self._errors / self.count,
            self._squares / self.count,
            self._values / self.count,
        )

    def lost_power(self) -> float:
        """Share of the mean square that is lost; infinite of what was zero and is not."""
        errors = float(self._errors.sum())
        squares = float(self._squares.sum())
        if errors == 0:
            return 0.0
        return errors / squares if squares > 0 else math.inf


def _by_column(values: Values) -> Values:
    """Values with their columns on the last of two axes: (n, C)."""
    if values.ndim < 2:
        return values.reshape(-1, 1)
    last = np.moveaxis(values, column_axis(values.ndim), -1)
    return last.reshape(-1, last.shape[-1])
