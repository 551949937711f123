"""Metric of a run: the original's before anything is done, the result's beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import CheckError, RefusedError
from ...runtime.data_files import DataFile, data_files
from ...runtime.feeds import Feeds
from ...runtime.hardware import Hardware
from ...runtime.installed import installed
from ...runtime.metrics import (
    GENERATION,
    METRIC_NAMES,
    Metric,
    MetricScore,
    evaluate,
    metric_named,
)
from ...runtime.session import Session
from ...runtime.worker import Worker
from .cache import Cache, ScoreCache, cache_folder
from .run import Run
from .settings import ProgressBar

NORMAL_95 = 1.96
"""Standard errors on either side of a 95 % interval."""

CHANCE_P = 0.05
"""Probability of as many hits by guessing, above which a score may be a guess."""

LITTLE = 0.1
"""Share of what lies beyond guessing below which a model has learned next to nothing.

A weak model on few labels is above it. Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class RunMetric:
    """The metric of a run, on its labelled data."""

    open: Callable[[Path], Session]
    labelled: Feeds
    metric: Metric
    output: str | None
    progress: ProgressBar | None
    cache: ScoreCache | None = None

    def score(self, path: Path, files: Iterable[Path]) -> MetricScore:
        """Score a model file, or find what it scored before; `files`: it, and those of its weights.

        Errors: RefusedError without labels.
        """
        if self.cache is None:
            return self.computed(path)
        return self.cache.score(path, files, lambda: self.computed(path))

    def computed(self, path: Path) -> MetricScore:
        """Score a model file. Errors: RefusedError without labels."""
        session = self.open(path)
        try:
            return score(
                session, self.labelled, self.metric, self.progress, self.output
            )
        finally:
            session.close()


def score(
    session: Session,
    feeds: Feeds,
    metric: Metric,
    progress: ProgressBar | None,
    output: str | None = None,
) -> MetricScore:
    """Metric of a model over labelled feeds. Errors: RefusedError without labels."""
    if progress is None:
        return evaluate(session, feeds, metric, output=output)
    with progress(f"metric {metric.name}", 0) as advance:
        return evaluate(session, feeds, metric, advance, output)


def run_metric_of(
    run: Run,
    labelled: Feeds | None,
    open: Callable[[Path], Session],
    machine: Hardware,
) -> RunMetric | None:
    """The metric that the settings ask for; None where they do not."""
    settings = run.settings
    if settings.metric is None or labelled is None:
        return None
    output = settings.metric_output
    cache = None
    if settings.cache:
        files = data_files(settings.labelled_data, settings.folder)
        cache = score_cache_of(
            run.worker, machine, settings.metric, output, settings.threads, files
        )
    metric = metric_named(settings.metric)
    return RunMetric(
        open,
        labelled,
        metric,
        output,
        run.reporter,
        cache,
    )


def score_cache_of(
    worker: Worker,
    machine: Hardware,
    metric: str | Callable[..., Any],
    output: str | None,
    threads: int,
    files: Sequence[DataFile] | None,
) -> ScoreCache | None:
    """The scores that earlier runs left, of a metric of ours on data in `files`.

    None where code decides, which cannot be compared: a metric or data of the user's own. None too
    for a metric that depends on two models.
    """
    if metric not in METRIC_NAMES or metric == GENERATION or files is None:
        return None
    settings = {
        "metric": metric,
        "output": output,
        "threads": threads,
        "onnxruntime": installed(worker).version,
        "cpu": machine.label,
    }
    return ScoreCache(Cache(cache_folder()), tuple(files), settings)


def baseline_of(
    run_metric: RunMetric, path: Path, files: Iterable[Path], must_know: bool = True
) -> MetricScore:
    """Score of the original; `files`: those that hold it.

    Errors: RefusedError where it is no better than guessing, if it `must_know` better.
    """
    found = run_metric.score(path, files)
    if must_know and found.strangers:
        raise RefusedError(
            f"metric {run_metric.metric.name}",
            f"no label is one that the model predicts: {found.strangers}",
            "give labels as the model's output has them",
        )
    if must_know and is_chance(found):
        problem, fix = _guess_in_words(found)
        raise RefusedError(f"metric {run_metric.metric.name}", problem, fix)
    return found


def _guess_in_words(found: MetricScore) -> tuple[str, str]:
    """Problem and fix where a score is no better than guessing."""
    if found.hits is None:
        return (
            f"the model itself has {found.value:.4g}, and a guess among {found.classes} tokens has "
            f"{found.classes}: nothing can be judged by it",
            LANGUAGE_FIX,
        )
    return (
        f"the model itself is right for {int(found.hits.sum())} of {len(found.hits)} labels, as a "
        f"guess among {found.classes} classes is: nothing can be judged by it",
        "check that labels are numbered as the model's outputs are, and that the data is "
        "preprocessed as for training (size, mean, std, channel order)",
    )


LANGUAGE_FIX = (
    "check that the tokens are of the model's own tokenizer, and that labels, if there are any, "
    "are the tokens that come next"
)


def is_chance(found: MetricScore) -> bool:
    """Return whether a score is no better than guessing among its classes, or tokens."""
    if found.classes < 2:
        return False
    if found.hits is None:
        # a perplexity: of a guess, it is the number of tokens
        return found.value >= found.classes
    if len(found.hits) == 0:
        return False
    guess = 1.0 / found.classes
    if found.value >= guess + LITTLE * (1.0 - guess):
        return False
    return _at_least(int(found.hits.sum()), len(found.hits), guess) > CHANCE_P


def _at_least(hits: int, rows: int, share: float) -> float:
    """Probability of at least so many hits in so many rows, each with that probability."""
    below = 0.0
    for count in range(hits):
        log_term = (
            math.lgamma(rows + 1)
            - math.lgamma(count + 1)
            - math.lgamma(rows - count + 1)
            + count * math.log(share)
            + (rows - count) * math.log1p(-share)
        )
        below += math.exp(log_term)
    return 1.0 - below


class Interval(NamedTuple):
    """95 % interval of a drop, in units of the metric."""

    low: float
    high: float


def drop_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Interval:
    """Interval of the drop in the share of hits, (N,) and (N,), row by row.

    Source: Agresti and Min, Simple improved confidence intervals for comparing matched proportions,
    Statistics in Medicine 24, 2005: half a row is added to each cell.
    """
    lost_rows = before & ~after
    won_rows = ~before & after
    lost = float(np.sum(lost_rows)) + 0.5
    won = float(np.sum(won_rows)) + 0.5
    rows = len(before) + 2.0
    changed = lost + won
    difference = lost - won
    drop = difference / rows
    spread = difference**2 / rows
    variance = (changed - spread) / rows**2
    margin = NORMAL_95 * math.sqrt(variance)
    return Interval(drop - margin, drop + margin)


def _in_units(drop: float, metric: Metric) -> str:
    """A drop in the unit that budgets have: per cent of the score before, or the metric's own."""
    return f"{100 * drop:.3g} %" if metric.drop_is_share else f"{drop:.3g}"


class MeasuredMetric(NamedTuple):
    """Metric before and after.

    `facts`: `name`, `before`, `after`, `drop`; `drop_share`: of the score before, where budgets
    are on that; `cached`: those that an earlier run computed; and
    where rows are right or wrong `samples` and `drop_95`.
    `failure`: it got worse by more than `max_drop`, or is no longer a number.
    """

    facts: dict[str, Any]
    failure: CheckError | None


def drop_facts(metric: Metric, first: float, second: float) -> dict[str, float]:
    """Loss of the second score: positive is worse.

    `drop`: in units of the metric. `drop_share`: of the first score, where budgets are on that.
    """
    drop = first - second if metric.higher_is_better else second - first
    facts = {"drop": drop}
    if metric.drop_is_share:
        facts["drop_share"] = drop / first
    return facts


def measure_metric(
    run: Run, run_metric: RunMetric, first: MetricScore, second: MetricScore
) -> MeasuredMetric:
    """Judge the score of the result, `second`, beside that of the original, `first`.

    Warns where the labels are too few to show the drop that is allowed.
    """
    metric = run_metric.metric
    drops = drop_facts(metric, first.value, second.value)
    drop = drops.get("drop_share", drops["drop"])
    facts: dict[str, Any] = {
        "name": metric.name,
        "before": first.value,
        "after": second.value,
        **drops,
    }
    for remark in dict.fromkeys((first.remark, second.remark)):
        if remark:
            run.reporter.warn(f"metric {metric.name}", remark)
    cached = [
        name
        for name, score in (("before", first), ("after", second))
        if score.is_cached
    ]
    if cached:
        facts["cached"] = cached
    interval = None
    if first.hits is not None and second.hits is not None:
        interval = drop_interval(first.hits, second.hits)
        facts["samples"] = len(first.hits)
        facts["drop_95"] = list(interval)
    most = run.settings.max_drop
    if most is None:
        return MeasuredMetric(facts, None)
    # negated, so that a drop of NaN is refused too
    if not drop <= most:
        words = ""
        if interval is not None:
            words = f" (95 % interval {interval.low:.3g} to {interval.high:.3g})"
        failure = CheckError(
            "--max-drop",
            f"{metric.name} went from {first.value:.5g} to {second.value:.5g}: "
            f"worse by {_in_units(drop, metric)}{words}, more than {_in_units(most, metric)}",
            "raise --max-drop, choose gentler passes, or calibrate on more --data",
        )
        return MeasuredMetric(facts, failure)
    if interval is not None and interval.high > most:
        rows = facts["samples"]
        run.reporter.warn(
            "--max-drop",
            f"{rows} labels cannot show a drop of {most:g}: one row is {1 / rows:.2g}, and the "
            f"drop lies between {interval.low:.2g} and {interval.high:.2g} (95 %); "
            "give more labels to be sure",
        )
    return MeasuredMetric(facts, None)
