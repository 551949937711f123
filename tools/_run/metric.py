"""The metric before and after, and the budget on its drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import CheckError
from ...runtime.feeds import Feeds
from ...runtime.metrics import Metric, evaluate, metric_named
from ...runtime.session import Session
from .evidence import Evidence
from .result import ProgressBar, Settings


def score(
    session: Session, feeds: Feeds, metric: Metric, progress: ProgressBar | None
) -> float:
    """The metric of a model over labelled feeds, with a progress bar. Errors: RefusedError without
    labels.
    """
    if progress is None:
        return evaluate(session, feeds, metric)
    with progress(f"metric {metric.name}", 0) as advance:
        return evaluate(session, feeds, metric, advance)


def measure_metric(
    settings: Settings, evidence: Evidence, before: Path, after: Path
) -> dict[str, Any] | None:
    """`name`, `before`, `after`; None where no metric was asked for.

    Errors: CheckError if it got worse by more than `max_drop`, or is no longer a number.
    """
    if settings.metric is None or evidence.labelled is None:
        return None
    metric = metric_named(settings.metric)
    first, second = (_of(path, metric, settings, evidence) for path in (before, after))
    drop = first - second if metric.higher_is_better else second - first
    if settings.max_drop is not None and not drop <= settings.max_drop:
        raise CheckError(
            "--max-drop",
            f"{metric.name} went from {first:.5g} to {second:.5g}: "
            f"worse by {drop:.3g}, more than {settings.max_drop:g}",
            "raise --max-drop, choose gentler passes, or calibrate on more --data",
        )
    return {"name": metric.name, "before": first, "after": second}


def _of(path: Path, metric: Metric, settings: Settings, evidence: Evidence) -> float:
    assert evidence.labelled is not None
    session = evidence.open(path)
    try:
        return score(session, evidence.labelled, metric, settings.progress)
    finally:
        session.close()
