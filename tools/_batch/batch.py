"""The job of `batch`: all models of a folder, several at a time, and one summary."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._run.cache import cache_folder
from .._run.settings import ProgressBar
from .job import Outcome, Processes, from_store, run_job
from .models import BatchModel, models_in
from .recipe import Recipe
from .store import Store

CACHE_MB = 2048
"""Default size of the store, in MB. Chosen by hand."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Settings of a batch. `jobs`: models at a time. `timeout`: seconds of each; None: no limit.

    `cache_mb`: size of the store of results; 0: none is used.
    """

    folder: Path
    recipe: Recipe
    out: Path | None = None
    jobs: int = 1
    timeout: float | None = None
    cache_mb: int = CACHE_MB
    progress: ProgressBar | None = None


@dataclass(frozen=True)
class BatchSummary:
    """Outcomes by name, the seconds that all took, and what the user should know."""

    outcomes: list[Outcome]
    seconds: float
    warnings: list[str]

    @property
    def failed(self) -> list[str]:
        """Names of the models that failed."""
        return [each.model.name for each in self.outcomes if each.status == "failed"]


def run_batch(request: BatchRequest) -> BatchSummary:
    """Optimize all models of a folder; a failure of one is told, and the others go on.

    Errors: RefusedError for a folder without models, UsageError for the pipeline.
    """
    start = time.monotonic()
    models = models_in(request.folder, request.out)
    warnings = []
    store = None
    if request.cache_mb:
        store = Store(cache_folder() / "batch", request.cache_mb * 10**6)
        reason = request.recipe.why_not_kept
        if reason is not None:
            warnings.append(f"no result is kept or taken from the cache: {reason}")
            store = None
    outcomes: dict[str, Outcome] = {}
    for outcome in _finished(models, request, store):
        outcomes[outcome.model.name] = outcome
    ordered = [outcomes[model.name] for model in models]
    return BatchSummary(ordered, time.monotonic() - start, warnings)


def _finished(
    models: list[BatchModel], request: BatchRequest, store: Store | None
) -> Iterator[Outcome]:
    """Outcomes as they come."""
    waiting = []
    for model in models:
        found = None
        if store is not None:
            found = from_store(model, request.recipe, store)
        if found is None:
            waiting.append(model)
        else:
            yield found
    if not waiting:
        return
    _check_pipeline(request.recipe)
    processes = Processes(request.timeout)
    with ThreadPoolExecutor(request.jobs) as pool:
        try:
            futures = {
                pool.submit(run_job, model, request.recipe, store, processes)
                for model in waiting
            }
            yield from _with_progress(futures, len(waiting), request.progress)
        finally:
            # after Ctrl-C, or where the caller stops; else none is running
            processes.stop()


def _check_pipeline(recipe: Recipe) -> None:
    """Refuse a faulty pipeline once, not for every model. Errors: UsageError."""
    from ...passes._core.pipeline import as_pipeline

    if recipe.passes:
        as_pipeline(list(recipe.passes))


def _with_progress(
    futures: set[Any], total: int, progress: ProgressBar | None
) -> Iterator[Outcome]:
    if progress is None:
        while futures:
            done, futures = wait(futures, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        return
    with progress("models", total) as advance:
        for outcome in _with_progress(futures, total, None):
            advance(1)
            yield outcome


def as_facts(summary: BatchSummary, folder: Path) -> dict[str, Any]:
    """The JSON form."""
    statuses = [each.status for each in summary.outcomes]
    return {
        "folder": str(folder),
        "models": [_row(each) for each in summary.outcomes],
        "done": statuses.count("done"),
        "cached": statuses.count("cached"),
        "failed": summary.failed,
        "seconds": summary.seconds,
        "warnings": summary.warnings,
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    account = outcome.account
    return {
        "model": outcome.model.name,
        "status": outcome.status,
        "seconds": outcome.seconds,
        "output_path": account.get("output_path"),
        "input": account.get("input"),
        "output": account.get("output"),
        "latency": account.get("latency"),
        "drift": account.get("drift"),
        "warnings": account.get("warnings", []),
        "error": account.get("error"),
    }
