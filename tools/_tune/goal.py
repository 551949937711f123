"""The goal of a search: a figure to make small, and limits that the result keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ... import UsageError

Objective = Literal["size", "latency", "macs", "accuracy"]


@dataclass(frozen=True)
class Goal:
    """The figure to make small, and limits; None: no such limit.

    `objective`: `accuracy` is what is left to improve where only the cost is limited. `max_drop`:
    of the metric, in its own units. `min_sqnr`: dB, of the outputs to the original's. `max_bytes`:
    of the file and its weights. `max_latency_ms`: of one run on the data's first batch.
    """

    objective: Objective
    max_drop: float | None = None
    min_sqnr: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    @property
    def limits_accuracy(self) -> bool:
        """True if the result may lose only so much."""
        return self.max_drop is not None or self.min_sqnr is not None

    @property
    def limits_cost(self) -> bool:
        """True if the result may take only so much room or time."""
        return self.max_bytes is not None or self.max_latency_ms is not None

    def as_dict(self) -> dict[str, float]:
        """Limits that are set, by option."""
        limits = {
            "max_drop": self.max_drop,
            "min_sqnr": self.min_sqnr,
            "max_bytes": self.max_bytes,
            "max_latency_ms": self.max_latency_ms,
        }
        return {key: value for key, value in limits.items() if value is not None}


def goal_of(
    objective: str | None,
    max_drop: float | None,
    min_sqnr: float | None,
    max_bytes: int | None,
    max_latency_ms: float | None,
) -> Goal:
    """The goal of a search. Errors: UsageError for none, or for limits that nothing can keep."""
    limits = {
        "--max-drop": max_drop,
        "--min-sqnr": min_sqnr,
        "--max-bytes": max_bytes,
        "--max-latency-ms": max_latency_ms,
    }
    for option, value in limits.items():
        if value is None:
            continue
        if not math.isfinite(value):
            raise UsageError(option, f"{value} is no limit", "give a finite number")
        # a drop of nothing, and no decibel at all, can be asked for
        if value <= 0 and option in ("--max-bytes", "--max-latency-ms"):
            raise UsageError(
                option, f"{value:g} allows no model", "give a positive number"
            )
    if max_drop is not None and max_drop < 0:
        raise UsageError(
            "--max-drop", f"{max_drop:g} asks for a gain", "give 0 or more"
        )
    if max_drop is not None and min_sqnr is not None:
        raise UsageError(
            "--max-drop",
            "is a second budget for accuracy beside --min-sqnr",
            "keep one of them: with labels --max-drop, without --min-sqnr",
        )
    if all(value is None for value in limits.values()):
        raise UsageError(
            "tune",
            "no budget: nothing says when to stop",
            "give --max-drop 0.005 with labels, --min-sqnr 20 without, --max-bytes N or "
            "--max-latency-ms T",
        )
    chosen = objective or _objective(max_drop, min_sqnr, max_latency_ms)
    return Goal(chosen, max_drop, min_sqnr, max_bytes, max_latency_ms)  # type: ignore[arg-type]


def _objective(
    max_drop: float | None, min_sqnr: float | None, max_latency_ms: float | None
) -> Objective:
    """The figure to make small where none is named: what no limit speaks of."""
    if max_drop is None and min_sqnr is None:
        return "accuracy"
    return "size"
