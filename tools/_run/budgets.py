"""Limits that the caller set on a result, and what came of them."""

from __future__ import annotations

from typing import Any

from ... import UsageError
from .finish import Written
from .result import Budget
from .settings import RunSettings

SHARES = ("top1", "top5", "generation")
"""Metrics that are shares of rows."""


def check_drop(drop: float | None, metric: Any) -> None:
    """Raise UsageError for a drop that allows everything: of a share, 1 or more."""
    if drop is None or metric not in SHARES or drop < 1:
        return
    raise UsageError(
        "--max-drop",
        f"{drop:g} allows everything: {metric} lies between 0 and 1",
        f"write --max-drop {drop / 100:g} for {drop:g} points of a hundred",
    )


def budgets_of(settings: RunSettings, written: Written | None) -> dict[str, Budget]:
    """Budget by the setting that asks for it; `written` None: the run did not come to a result."""
    found: dict[str, Budget] = {}
    least = settings.min_sqnr
    if least is not None:
        value = _sqnr(written)
        kept = None if value is None else value >= least
        found["min_sqnr"] = Budget(least, value, kept)
    most = settings.max_drop
    if most is not None:
        drop = _drop(written)
        kept = None if drop is None else drop <= most
        found["max_drop"] = Budget(most, drop, kept)
    return found


def _sqnr(written: Written | None) -> float | None:
    """SQNR of a result in dB; None where it was not measured."""
    if written is None or written.drift is None:
        return None
    return written.drift.sqnr_db


def _drop(written: Written | None) -> float | None:
    """Drop of a result's metric, as a share where there is one; None where it was not measured."""
    if written is None or written.metric is None:
        return None
    metric = written.metric
    plain = metric["drop"]
    drop: float | None = metric.get("drop_share", plain)
    return drop
