"""Choices that outputs make among classes, and how many a changed model makes alike.

Where the largest value leads clearly, it is the choice of its row, and says more of a result than
the distance of all values does. Embeddings and feature maps have hardly a clear lead anywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import PIECE, QUANTITIES, has_classes, has_labels
from .rows import RowMatches, differ_in_rows

Outputs = Mapping[str, NDArray[Any]]

FEWEST = 16
"""Rows below which their agreement says nothing. Chosen by hand; not measured."""

LEAD = 0.5
"""Lead of the largest value over the second, in parts of the output's root mean square, from which
on it is a choice: twice the noise that an SQNR of 12 dB leaves, which does no harm.

Of classifiers 75 to 100 % of rows lead by more on real data, of embeddings and states 10 to 25 %.
"""


@dataclass(frozen=True)
class Choices:
    """Rows of an output that make a clear choice.

    `agreeing`: those of which the result chooses alike. `commonest`: those of the choice that is
    made most. `kinds`: how many different choices are made. `others`: rows without a clear choice.
    `is_label`: the values are no quantities, but labels, indices or texts. Of selections, whose
    rows have no fixed places, `rows` are those of the model that gives more, and `agreeing` those
    that both give. Of other tables both count single values.
    """

    rows: int = 0
    agreeing: int = 0
    commonest: int = 0
    kinds: int = 0
    others: int = 0
    is_label: bool = False

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same choice; None where the output makes no choices, or few.

        It makes some where most rows do, and where they recur.
        """
        recurring = 2 * self.kinds
        fewest = max(FEWEST, self.others, recurring)
        if self.rows < fewest:
            return None
        return self.agreeing / self.rows

    @property
    def constant(self) -> float:
        """Agreement that an answer which is always the same can reach."""
        rows = max(self.rows, 1)
        return self.commonest / rows


class ChoiceMeter:
    """Choices of each output, batch by batch; memory does not grow with the data."""

    def __init__(self) -> None:
        self._made: dict[str, Counter[Any]] = {}
        self._agreeing: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._labels: dict[str, RowMatches] = {}

    def update(self, reference: Outputs, got: Outputs) -> None:
        """Take one batch of outputs, of the same names and shapes but for the number of rows."""
        for name, value in reference.items():
            y = np.asarray(value)
            z = np.asarray(got[name])
            if y.dtype.kind not in QUANTITIES:
                matches = self._labels.setdefault(name, RowMatches())
                matches.update(y, z)
            before, after = _clear_choices(y, _with_rows_of(y, z))
            rows = _row_count(y)
            self._others[name] += rows - before.size
            made = self._made.setdefault(name, Counter())
            made.update(before.tolist())
            is_same = before == after
            agreeing = np.sum(is_same)
            self._agreeing[name] += int(agreeing)

    def per_output(self) -> dict[str, Choices]:
        """Choices of each output, in the order of the first batch."""
        found = {}
        for name, made in self._made.items():
            matches = self._labels.get(name)
            if matches is not None and (matches.is_unordered or matches.is_table):
                found[name] = _choices_of(matches)
                continue
            found[name] = Choices(
                rows=made.total(),
                agreeing=self._agreeing[name],
                commonest=max(made.values(), default=0),
                kinds=len(made),
                others=self._others[name],
                is_label=matches is not None,
            )
        return found


def _choices_of(matches: RowMatches) -> Choices:
    """Rows in common of a selection, or values in place of a table, which are no choices."""
    if matches.is_unordered:
        return Choices(matches.rows, matches.common, is_label=True)
    return Choices(
        matches.values,
        matches.equal,
        kinds=matches.values,
        is_label=True,
    )


def _with_rows_of(y: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """`z` with as many rows as `y`; one that it lacks chooses anything but what `y` does."""
    if not differ_in_rows(y, z):
        return z
    if y.dtype.kind not in QUANTITIES:
        # judged by rows in common
        return y
    return np.concatenate([z[: len(y)], -y[len(z) :]])


def _row_count(y: NDArray[Any]) -> int:
    """Rows of an output: labels, or vectors along the last axis."""
    if y.dtype.kind not in QUANTITIES:
        return y.size
    if y.ndim == 0:
        return y.size
    rows = y.shape[:-1]
    return math.prod(rows)


def _clear_choices(
    y: NDArray[Any], z: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Clear choices of one batch, before and after: places of the largest value, or labels."""
    nothing = np.empty(0, np.int64)
    if y.dtype.kind not in QUANTITIES:
        # a label a row, as classifiers of scikit-learn give it
        if has_labels(y):
            return y.ravel(), z.ravel()
        return nothing, nothing
    # images and maps of features have no classes on their last axis
    if not has_classes(y) or y.ndim > 3:
        return nothing, nothing
    classes = y.shape[-1]
    rows = y.reshape(-1, classes)
    others = z.reshape(rows.shape)
    is_clear = _has_clear_lead(rows)
    before = _as_floats(rows).argmax(-1)
    after = _as_floats(others).argmax(-1)
    return before[is_clear], after[is_clear]


def _as_floats(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values as float32: of half precision numpy knows little."""
    return values.astype(np.float32, copy=False)


def _has_clear_lead(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the rows whose largest value leads clearly: (rows, classes) -> (rows,)."""
    count, classes = rows.shape
    first = np.empty(count, np.float32)
    second = np.empty(count, np.float32)
    power = 0.0
    # some rows at a time: all would be copied several times
    together = max(PIECE // classes, 1)
    for start in range(0, count, together):
        part = slice(start, start + together)
        values = _as_floats(rows[part])
        parted = np.partition(values, -2)
        second[part] = parted[:, -2]
        first[part] = parted[:, -1]
        squares = np.square(values, dtype=np.float64)
        power += float(squares.sum())
    scale = math.sqrt(power / rows.size)
    lead = first - second
    is_clear: NDArray[np.bool_] = lead >= LEAD * scale
    # of zeros alone nothing leads
    is_clear &= first > second
    return is_clear
