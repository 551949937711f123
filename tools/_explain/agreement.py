"""Agreement of two explanations of a sample: ranks of all elements, and the first of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Heat = NDArray[np.float64]

DIGITS = 9
"""Decimals of a correlation."""

TOP = 0.1
"""Share of the elements that are the first."""


class Agreement(NamedTuple):
    """`spearman`: correlation of ranks, -1 to 1. `topk`: share of the first 10 % in common."""

    spearman: float
    topk: float

    def to_json(self) -> dict[str, float]:
        """The JSON form."""
        return self._asdict()


def agreement(
    one: Heat, other: Heat, counts: NDArray[np.bool_] | None = None
) -> Agreement:
    """Figures of two explanations (*E). `counts`: elements that are compared; None: all."""
    first = _compared(one, counts)
    second = _compared(other, counts)
    correlation = spearman(first, second)
    overlap = top_overlap(first, second)
    return Agreement(correlation, overlap)


def _compared(heat: Heat, counts: NDArray[np.bool_] | None) -> Heat:
    if counts is None:
        return heat.ravel()
    chosen = heat[counts]
    return chosen.ravel()


def spearman(one: Heat, other: Heat) -> float:
    """Correlation of ranks. Where all elements are alike: 1 with another such, else 0."""
    first = _is_constant(one)
    second = _is_constant(other)
    if first or second:
        return float(first and second)
    ranks = rankdata(one)
    other_ranks = rankdata(other)
    table = np.corrcoef(ranks, other_ranks)
    correlation = float(table[0, 1])
    # what is the same is 1, not a little less
    return round(correlation, DIGITS)


def _is_constant(heat: Heat) -> bool:
    if heat.size == 0:
        return True
    spread = np.ptp(heat)
    return bool(spread == 0)


def top_overlap(one: Heat, other: Heat) -> float:
    """Share of the first tenth of the elements in common, by heat; ties go by place."""
    if not one.size:
        return 1.0
    count = math.ceil(TOP * one.size)
    first = _first(one, count)
    second = _first(other, count)
    common = first & second
    return len(common) / count


def _first(heat: Heat, count: int) -> set[int]:
    """Places of the largest elements."""
    order = np.argsort(-heat, kind="stable")
    places = order[:count]
    return set(places.tolist())


def mean(found: Iterable[Agreement]) -> Agreement:
    """The mean over samples."""
    rows = list(found)
    table = np.array(rows)
    spearmans, tops = table.mean(0)
    return Agreement(float(spearmans), float(tops))


def share(found: Agreement, floor: Agreement) -> dict[str, Any]:
    """An agreement as parts of another; None where the other is not above 0."""
    shares: dict[str, Any] = {}
    for name, value in found._asdict().items():
        least = getattr(floor, name)
        shares[name] = None
        if least > 0:
            shares[name] = value / least
    return shares
