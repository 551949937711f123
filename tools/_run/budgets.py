"""Limits that the caller set on a result, and what came of them."""

from __future__ import annotations

from .finish import Written
from .result import Budget
from .settings import RunSettings


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
