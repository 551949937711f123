"""Measurements of the result beside the original: a metric on labels, and latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import CheckError, RefusedError
from ...runtime.bench import Latency, interleaved
from ...runtime.feeds import Feeds
from ...runtime.metrics import Metric, evaluate, metric_named
from ...runtime.session import Session
from .evidence import VerificationInputs
from .run import Run
from .settings import ProgressBar

SECONDS = 2.0
"""Seconds that a latency comparison runs. Chosen by hand; not measured."""

SLOWER = 1.05
"""Ratio of latencies above which a result is called slower: both in median and at its fastest.

Below it, two runs of one model differ by noise alone. Chosen by hand; not measured.
"""


# the metric


def measure_metric(
    run: Run, inputs: VerificationInputs, before: Path, after: Path
) -> dict[str, Any] | None:
    """`name`, `before`, `after`; None where no metric was asked for.

    Errors: CheckError if it got worse by more than `max_drop`, or is no longer a number.
    """
    settings = run.settings
    if settings.metric is None or inputs.labelled is None:
        return None
    metric = metric_named(settings.metric)

    def score_of(path: Path) -> float:
        assert inputs.labelled is not None
        session = inputs.open(path)
        try:
            return score(session, inputs.labelled, metric, settings.progress)
        finally:
            session.close()

    # one after the other: only one of them is in memory
    first = score_of(before)
    second = score_of(after)
    drop = first - second if metric.higher_is_better else second - first
    # negated, so that a drop of NaN is refused too
    if settings.max_drop is not None and not drop <= settings.max_drop:
        raise CheckError(
            "--max-drop",
            f"{metric.name} went from {first:.5g} to {second:.5g}: "
            f"worse by {drop:.3g}, more than {settings.max_drop:g}",
            "raise --max-drop, choose gentler passes, or calibrate on more --data",
        )
    return {"name": metric.name, "before": first, "after": second}


def score(
    session: Session, feeds: Feeds, metric: Metric, progress: ProgressBar | None
) -> float:
    """Metric of a model over labelled feeds. Errors: RefusedError without labels."""
    if progress is None:
        return evaluate(session, feeds, metric)
    with progress(f"metric {metric.name}", 0) as advance:
        return evaluate(session, feeds, metric, advance)


# latency


def measure_latency(
    run: Run, inputs: VerificationInputs, before: Path, after: Path
) -> tuple[float, float] | None:
    """Median latencies in ms, of both models in turns; None where they are not measured.

    Warns where the result is slower.
    """
    if not run.settings.bench or not inputs.latency_feeds:
        return None
    try:
        with run.reporter.progress("measuring latency"):
            first, second = compare_latency(
                inputs.open, [before, after], inputs.latency_feeds
            )
    except RefusedError as error:
        run.reporter.warn("bench", f"latency was not measured: {error.problem}")
        return None
    # by its fastest run, too: a median alone moves with whatever else the machine does
    is_slower = second.ratio_to_first > SLOWER
    if is_slower and second.min_ms > SLOWER * first.min_ms:
        where = ""
        if not inputs.on_target:
            where = f" on this CPU, which is not one of {run.settings.target}'s"
        run.reporter.warn(
            "latency",
            f"the result is slower{where}: {second.median_ms:.3g} ms, "
            f"{first.median_ms:.3g} ms before (ratio {second.ratio_to_first:.2f})",
        )
    return first.median_ms, second.median_ms


def compare_latency(
    open_session: Callable[[Path], Session],
    paths: Sequence[Path],
    feeds: Sequence[Mapping[str, Any]],
    seconds: float = SECONDS,
) -> list[Latency]:
    """Interleaved latency of the models at `paths` on the same feeds; ratios are to the first."""
    sessions: list[Session] = []
    try:
        # extend keeps those that opened before one fails, so that they are closed
        sessions.extend(open_session(path) for path in paths)
        same_feeds = [list(feeds)] * len(sessions)
        return interleaved(sessions, same_feeds, seconds=seconds)
    finally:
        for session in sessions:
            session.close()
