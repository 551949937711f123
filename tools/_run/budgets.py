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
    if settings.min_sqnr is not None:
        drift = None if written is None else written.drift
        value = None if drift is None else drift.sqnr_db
        kept = None if value is None else value >= settings.min_sqnr
        found["min_sqnr"] = Budget(settings.min_sqnr, value, kept)
    if settings.max_drop is not None:
        metric = None if written is None else written.metric
        drop = None if metric is None else metric.get("drop_share", metric["drop"])
        kept = None if drop is None else drop <= settings.max_drop
        found["max_drop"] = Budget(settings.max_drop, drop, kept)
    return found
