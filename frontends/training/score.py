"""Scores of a student on rows held out: agreement with its teacher, or with labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...passes._core.variation import ColumnSums
from .heads import Head
from .objective import IGNORED_LABEL

Values = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

SMALLEST_COUNT = 1e-30
"""Count or power that sums are divided by at least: teachers that give zeros alone have none."""


@dataclass(frozen=True, order=True)
class Score:
    """A score, higher is better.

    `value`: 0 to 1, or below 0 where distances are watched. `closeness` settles ties: the negative
    distance from the teacher.
    """

    # the order of the fields is the order of the comparison
    value: float
    closeness: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.closeness)


class Scorer:
    """Sums over examples that become a score.

    `watch` says what counts: "agreement" of first choices with the teacher (of plain values 1 - the
    lost share of what varies), "labels" (first choices that are right), or "loss" (the distance
    alone).
    """

    def __init__(self, heads: Sequence[Head], watch: str) -> None:
        self._heads = heads
        self._watch = watch
        self._right_labels = 0.0
        self._labels = 0.0
        # (sum, count) of each head
        self._distances = [np.zeros(2) for _ in heads]
        self._agreements = [np.zeros(2) for _ in heads]
        self._columns: dict[int, ColumnSums] = {}
        self._is_finite = True

    def add(
        self, student: Values, teacher: Values, labels: NDArray[Any] | None
    ) -> None:
        """Add an example: values by name, labels of the first head."""
        for index, head in enumerate(self._heads):
            student_values = student[head.student]
            teacher_values = teacher[head.teacher]
            own = _doubles(student_values)
            theirs = _doubles(teacher_values)
            if head.kind != "classes":
                self._add_values(index, own, theirs)
                continue
            # classes last, as in the loss
            own = np.moveaxis(own, head.axis, -1)
            theirs = np.moveaxis(theirs, head.axis, -1)
            self._add_classes(index, own, theirs)
            if index == 0 and labels is not None:
                self._add_labels(own, labels)

    def _add_classes(self, index: int, own: Floats, theirs: Floats) -> None:
        own_choice = own.argmax(-1)
        their_choice = theirs.argmax(-1)
        same = own_choice == their_choice
        agreeing = same.sum()
        rows = same.size
        self._agreements[index] += agreeing, rows
        divergence = _divergence(own, theirs)
        self._distances[index] += divergence, rows

    def _add_labels(self, own: Floats, labels: NDArray[Any]) -> None:
        if self._watch != "labels":
            return
        counted = labels != IGNORED_LABEL
        # argmax of NaN is its place: without this such rows could count as right
        finite = np.isfinite(own)
        sound = finite.all(-1)
        choices = own.argmax(-1)
        hits = choices == labels
        right = hits & counted & sound
        self._right_labels += float(right.sum())
        self._labels += float(counted.sum())

    def _add_values(self, index: int, own: Floats, theirs: Floats) -> None:
        if not np.isfinite(own).all():
            self._is_finite = False
        columns = self._columns.setdefault(index, ColumnSums())
        columns.update(theirs, own)
        lost = columns.lost()
        if math.isnan(lost):
            lost = columns.lost_power()
        # of all examples so far, not of this one
        self._distances[index][:] = lost, 1.0
        self._agreements[index][:] = 1.0 - lost, 1.0

    def score(self) -> Score:
        """Return the mean over heads; values that are not finite make the worst there is."""
        distance = _mean_ratio(self._distances)
        if not self._is_finite or not math.isfinite(distance):
            return Score(-math.inf, -math.inf)
        if self._watch == "loss":
            value = -distance
        elif self._watch == "labels":
            labels = max(self._labels, 1.0)
            value = self._right_labels / labels
        else:
            value = _mean_ratio(self._agreements)
        return Score(value, closeness=-distance)


def _mean_ratio(sums: Sequence[Floats]) -> float:
    ratios = []
    for total, count in sums:
        divisor = max(count, SMALLEST_COUNT)
        ratios.append(total / divisor)
    mean = np.mean(ratios)
    return float(mean)


def _divergence(own: Floats, theirs: Floats) -> float:
    """Return the sum over rows of KL(teacher || student)."""
    log_q = _log_softmax(own)
    log_p = _log_softmax(theirs)
    p = np.exp(log_p)
    differences = log_p - log_q
    terms = p * differences
    return float(terms.sum())


def _log_softmax(x: Floats) -> Floats:
    # exp of large logits would overflow
    largest = x.max(-1, keepdims=True)
    shifted = x - largest
    powers = np.exp(shifted)
    normalizer = powers.sum(-1, keepdims=True)
    logarithms = shifted - np.log(normalizer)
    return np.asarray(logarithms)


def _doubles(array: NDArray[Any]) -> Floats:
    return np.asarray(array, np.float64)
