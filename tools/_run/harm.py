"""Warnings of a result that no longer does what the original does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...passes._core.drift_budget import BROKEN
from ...runtime.compare import Drift
from ...runtime.metrics import metric_named
from .settings import RunSettings

MOST_LOST = 0.01
"""Part of a metric's value before that may be lost without a warning: one point of accuracy."""


KEPT = {True: 0.5, False: 1.0}
"""Part of a metric's value that a result may lose and still say what the original says: half of a
score; of one that counts errors (False), as much again. Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Judgement:
    """The result against the original.

    `metric`: `name`, `before`, `after`; None where none was asked for. `weak`: what the output that
    keeps least keeps, where it is poor.
    """

    drift: Drift | None
    metric: dict[str, Any] | None
    higher_is_better: bool = True
    weak: str | None = None


def judgement_of(
    settings: RunSettings,
    drift: Drift | None,
    metric: dict[str, Any] | None,
    weak: str | None = None,
) -> Judgement:
    """The judgement of a run with those settings."""
    named = settings.metric
    higher = named is None or metric_named(named).higher_is_better
    return Judgement(drift, metric, higher, weak)


def harm_of(judgement: Judgement) -> str | None:
    """Say what was lost, where that is more than a user expects; else None.

    A metric outweighs the drift: training may move outputs far and still serve the task.
    """
    metric = judgement.metric
    if metric is not None:
        lost = _lost(metric, judgement.higher_is_better)
        if lost <= MOST_LOST:
            return None
        before, after = metric["before"], metric["after"]
        return f"{metric['name']} went from {before:.4g} to {after:.4g}"
    if judgement.drift is not None and judgement.drift.sqnr_db < BROKEN:
        words = f"the outputs keep {judgement.drift.sqnr_db:.1f} dB of SQNR"
        same = judgement.drift.top1_agreement
        if same is not None:
            words += f", the largest is the same for {same:.0%} of samples"
        return words
    return judgement.weak


def is_kept(judgement: Judgement) -> bool:
    """True if a metric was asked for, and the result keeps it by and large."""
    metric = judgement.metric
    if metric is None:
        return False
    higher = judgement.higher_is_better
    return _lost(metric, higher) <= KEPT[higher]


def _lost(metric: dict[str, Any], higher: bool) -> float:
    """Share of a metric's value before that is lost; infinite where nothing is left to compare."""
    before, after = float(metric["before"]), float(metric["after"])
    lost = before - after if higher else after - before
    # a metric that is no number any more is lost whole
    if not math.isfinite(lost):
        return float("inf")
    return lost / max(abs(before), 1e-12)
