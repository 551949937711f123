"""One trial of a recipe: a whole run of it, measured on the part of the data that the search sees.

Trials know nothing of each other, so that any engine can run them, in any order and place.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import OnnxOptError
from ...passes._core.pipeline import parse
from ...runtime.feeds import Feeds, open_feeds
from ...runtime.held_out import cut, halves
from ...runtime.metrics import METRIC_NAMES
from ...runtime.session import TensorInfo
from .._run.driver import optimize_model
from .._run.pass_memory import PassMemory
from .._run.result import RunResult
from .._run.scoring import NORMAL_95
from .._run.settings import RunSettings

SEEN, UNSEEN = 0, 1
"""Halves of the data to judge by: that of the search, and that of the verdict."""


@dataclass(frozen=True)
class Task:
    """Facts that all trials of a search share; it can be sent to other processes.

    `model`: a file. `data`: as of `optimize`, to calibrate on. `labelled`: data to judge by, half
    of which each trial sees; None where only outputs are compared. `is_apart`: these are other
    samples than those of `data`; else half of `data` calibrates, too. `is_timed`: trials measure
    latency. `inputs`, `outputs`: of the model. `memory`: of passes that many recipes begin with.
    """

    model: Path
    target: str
    data: Any
    labelled: Any
    is_apart: bool
    is_timed: bool
    metric: Any
    metric_output: str | None
    seed: int
    threads: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    memory: PassMemory = field(default_factory=PassMemory)

    def half(self, number: int) -> Feeds | None:
        """The half of the labelled data that the search sees, or that of the verdict."""
        return None if self.labelled is None else self._half_of(self.labelled, number)

    def half_of_data(self, number: int) -> Feeds:
        """The half of the data to calibrate on that the search sees, or the other."""
        return self._half_of(self.data, number)

    def _half_of(self, data: Any, number: int) -> Feeds:
        feeds = open_feeds(data, self.inputs, self.model.parent, self.outputs)
        # a metric of the user's own may relate rows to each other
        is_by_row = self.metric is None or self.metric in METRIC_NAMES
        share_out = halves if is_by_row else cut
        return share_out(feeds, self.seed)[number]

    def settings(self, recipe: str, number: int) -> RunSettings:
        """Settings of a run of the recipe that is judged on a half of the labelled data."""
        return RunSettings(
            model=self.model,
            pipeline=parse(recipe),
            target=self.target,
            # what judges is not to be calibrated on
            data=self.data if self.is_apart else self.half_of_data(SEEN),
            eval_data=self.half(number),
            metric=self.metric,
            metric_output=self.metric_output,
            seed=self.seed,
            threads=self.threads,
            memory=self.memory,
        )


@dataclass(frozen=True)
class RecipeTrial:
    """Figures of a recipe that was run; None where they are not known.

    `predicted_db`: SQNR that its choices were to leave, in dB. `predicted_ms`: time of a run that
    its layers were to take. `weight_bytes`: what the weights that had a choice were to take.
    `ratio`: of the time to the original's, in the same rounds. `drop`: of
    the metric, in its own units. `error`: standard error of the drop, row by row. `failure`: why
    there is no result.
    """

    recipe: str
    predicted_db: float | None = None
    predicted_ms: float | None = None
    weight_bytes: float | None = None
    bytes: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    ratio: float | None = None
    sqnr_db: float | None = None
    metric: float | None = None
    drop: float | None = None
    error: float | None = None
    seconds: float = 0.0
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of a point of the front."""
        return {
            "recipe": self.recipe,
            "bytes": self.bytes,
            "macs": self.macs,
            "latency_ms": self.latency_ms,
            "predicted_ms": self.predicted_ms,
            "latency_ratio": self.ratio,
            "metric": self.metric,
            "drop": self.drop,
            "standard_error": self.error,
            "sqnr_db": self.sqnr_db,
        }


def run_trial(task: Task, recipe: str) -> RecipeTrial:
    """Run a recipe and measure it; a failure is a trial, too."""
    start = time.monotonic()
    try:
        settings = task.settings(recipe, SEEN)
        # figures are wanted of poor results, too: no floor, and nothing is mended
        settings = dataclasses.replace(settings, bench=task.is_timed, floor="none")
        result = optimize_model(settings)
    except OnnxOptError as error:
        failure = f"{error.where}: {error.problem}"
        return RecipeTrial(recipe, seconds=time.monotonic() - start, failure=failure)
    trial = trial_of(recipe, result)
    return dataclasses.replace(trial, seconds=time.monotonic() - start)


def trial_of(recipe: str, result: RunResult) -> RecipeTrial:
    """The figures of a run."""
    facts = result.metric or {}
    drop = facts.get("drop_share", facts.get("drop"))
    interval = facts.get("drop_95")
    error = None
    if interval is not None:
        low, high = interval
        error = (high - low) / 2 / NORMAL_95
    drift = result.drift or {}
    sqnr_db = drift.get("sqnr_db")
    return RecipeTrial(
        recipe,
        bytes=result.output.bytes,
        macs=result.output.macs,
        latency_ms=result.output.latency_ms,
        ratio=None if result.latency is None else result.latency.median,
        sqnr_db=sqnr_db if sqnr_db is None or math.isfinite(sqnr_db) else None,
        metric=facts.get("after"),
        drop=drop,
        error=error,
    )
