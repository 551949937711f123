"""How well a student does on rows held out: agreement with its teacher, or with labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import Head
from .objective import IGNORED

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, order=True)
class Score:
    """`value`: 0 to 1, higher is better. `closeness` settles ties: the negative distance from the
    teacher.
    """

    value: float
    closeness: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.closeness)


class Scorer:
    """Adds up examples. `watch` says what counts: "agreement" of first choices with the teacher (of
    plain values 1 - relative square error), "labels" (first choices that are right), or "loss" (the
    distance alone).
    """

    def __init__(self, heads: Sequence[Head], watch: str) -> None:
        self._heads = heads
        self._watch = watch
        self._right = self._rows = 0.0
        self._errors = [np.zeros(2) for _ in heads]
        self._agree = [np.zeros(2) for _ in heads]

    def add(
        self, student: Values, teacher: Values, labels: NDArray[Any] | None
    ) -> None:
        for index, head in enumerate(self._heads):
            own, theirs = _wide(student[head.student]), _wide(teacher[head.teacher])
            if head.kind == "classes":
                own, theirs = (
                    np.moveaxis(own, head.axis, -1),
                    np.moveaxis(theirs, head.axis, -1),
                )
                self._errors[index] += _divergence(own, theirs)
                same = own.argmax(-1) == theirs.argmax(-1)
                self._agree[index] += np.sum(same), same.size
                if index == 0 and labels is not None and self._watch == "labels":
                    counted = labels != IGNORED
                    self._right += float(
                        np.sum(
                            (own.argmax(-1) == labels)
                            & counted
                            & np.isfinite(own).all(-1)
                        )
                    )
                    self._rows += float(np.sum(counted))
            else:
                error, power = (
                    float(np.square(own - theirs).sum()),
                    float(np.square(theirs).sum()),
                )
                self._errors[index] += error, power
                self._agree[index] += power - error, power

    def score(self) -> Score:
        """Means over heads; what is not finite counts as the worst there is."""
        distance = float(np.mean([e / max(n, 1e-30) for e, n in self._errors]))
        if not math.isfinite(distance):
            return Score(-math.inf, -math.inf)
        if self._watch == "loss":
            return Score(-distance, -distance)
        if self._watch == "labels":
            return Score(self._right / max(self._rows, 1.0), -distance)
        return Score(
            float(np.mean([a / max(n, 1e-30) for a, n in self._agree])), -distance
        )


def _divergence(
    own: NDArray[np.float64], theirs: NDArray[np.float64]
) -> tuple[float, float]:
    """Sum over rows of KL(teacher || student), and the rows."""
    q, p = _log_softmax(own), _log_softmax(theirs)
    return float((np.exp(p) * (p - q)).sum()), float(np.prod(own.shape[:-1]))


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def _wide(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)
