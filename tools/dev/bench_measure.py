"""Measures of a model file that a benchmark made, beside the original; each job in its own process.

Metrics, drift and latency are those of the product's runtime, on rows that no pass has seen.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bench_data import BenchModel, source, unseen
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.compare import DriftMeter
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.metrics import METRIC_NAMES, evaluate, metric_named
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker

ROWS_DRIFT, BATCHES_TIMED = 64, 4
NOISE = 1e-9  # of sums and differences of fractions
Job = TypeVar("Job")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Distance:
    """Distance of a result's outputs from the original's: SQNR in dB, and the part of rows with the
    same class (None where outputs have none).
    """

    sqnr_db: float
    agreement: float | None


def score(
    worker: Worker, path: Path, model: BenchModel, rows: int | None
) -> float | None:
    """Metric of a file on rows that no pass has seen; None where the model has no labels."""
    if model.metric is None:
        return None
    named = model.metric if model.metric in METRIC_NAMES else source(model.metric)
    session = open_session(worker, path)
    try:
        feeds = open_feeds(partial(unseen, model, rows), session.inputs)
        return evaluate(session, feeds, metric_named(named)).value
    finally:
        session.close()


def worse_by(model: BenchModel, before: float, after: float) -> float:
    """Loss of the metric; of a perplexity, where less is better, relative to what it was."""
    if model.metric == "perplexity":
        return after / before - 1
    return before - after


def distance(
    worker: Worker, original: Path, result: Path, model: BenchModel
) -> Distance:
    """Drift of a result on the first rows that no pass has seen."""
    sessions = [open_session(worker, path) for path in (original, result)]
    try:
        feeds = open_feeds(partial(unseen, model, ROWS_DRIFT), sessions[0].inputs)
        meter = DriftMeter()
        for batch in feeds:
            first, second = (session.run(batch.feeds) for session in sessions)
            meter.update(first, second)
    finally:
        for session in sessions:
            session.close()
    drift = meter.overall()
    return Distance(drift.sqnr_db, drift.top1_agreement)


def latency_ratios(
    worker: Worker, paths: Sequence[Path], model: BenchModel, seconds: float
) -> list[float]:
    """Latency of each file divided by the first's, timed in turns."""
    sessions = [open_session(worker, path) for path in paths]
    try:
        feeds = open_feeds(partial(unseen, model, model.rows), sessions[0].inputs)
        heads = [
            {
                name: array[: model.timed] if np.ndim(array) else array
                for name, array in batch.feeds.items()
            }
            for batch in islice(feeds, BATCHES_TIMED)
        ]
        timed = interleaved(sessions, [heads] * len(sessions), seconds=seconds)
    finally:
        for session in sessions:
            session.close()
    return [latency.ratio_to_first for latency in timed]


def load_seconds(worker: Worker, paths: Sequence[Path], turns: int = 5) -> list[float]:
    """Least time to open a session on each file, taken in turns."""
    least = [float("inf")] * len(paths)
    for _ in range(turns):
        for index, path in enumerate(paths):
            start = time.perf_counter()
            session = open_session(worker, path)
            least[index] = min(least[index], time.perf_counter() - start)
            session.close()
    return least


def peak_mib() -> float:
    """Most memory that this process or one of its children has held, in MiB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in who) / 1024


class Isolated:
    """Runs jobs in a process of its own, one after the other; a job that kills it is only one job.

    `fresh`: a new process for each job, so that its memory can be told.
    """

    def __init__(self, fresh: bool = False) -> None:
        self._fresh = fresh
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()

    def run(self, function: Callable[[Job], Made], job: Job) -> Made:
        """The function's result. Errors: what it raises; BrokenProcessPool if its process dies."""
        if self._pool is None:
            # spawned, not forked: threads of numpy and of torch do not survive a fork
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self._pool.submit(function, job).result()
        except BrokenProcessPool:
            self._end()
            raise
        finally:
            if self._fresh:
                self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def first_line(error: BaseException, columns: int = 90) -> str:
    """The text of an error, in one line of a table."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= columns else lines[0][: columns - 1] + "…"


def cell(value: Any, form: str) -> str:
    """A figure as text, `-` for None."""
    return "-" if value is None else format(value, form)
