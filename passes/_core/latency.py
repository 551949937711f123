"""Time of one model against another's, and what is said of it: one rule for passes and accounts."""

from __future__ import annotations

from typing import Literal, NamedTuple

SLOWER = 1.03
"""Ratio of times above which a model is called slower.

Below it, sessions of one and the same model differ: where memory happens to lie costs time that no
repetition averages out. Chosen by hand; not measured.
"""

Verdict = Literal["slower", "not slower", "undecided"]


class LatencyRatio(NamedTuple):
    """Median of time(other) / time(model) over paired runs, with its confidence interval.

    Above 1 `other` is slower.
    """

    low: float
    median: float
    high: float

    def verdict(self, limit: float = SLOWER) -> Verdict:
        """Say on which side of `limit` the whole interval lies; undecided where it is on both."""
        if self.low > limit:
            return "slower"
        if self.high <= limit:
            return "not slower"
        return "undecided"

    def __str__(self) -> str:
        """`1.10 (1.06 to 1.15)`: the median and its interval."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"
