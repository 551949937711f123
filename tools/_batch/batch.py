"""The job of `batch`: all models of a folder, several at a time, and one summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._cache.recipe import Recipe
from .._cache.results import CACHE_MB, ResultCache
from .._cache.store import Store
from .._jobs.engines import RayEngine
from .._run.cache import cache_folder
from .._run.settings import ProgressBar
from .job import (
    JobSettings,
    Outcome,
    Processes,
    from_cache,
    run_elsewhere,
    run_job,
)
from .models import BatchModel, models_in


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Settings of a batch. `jobs`: models at a time. `timeout`: seconds of each; None: no limit.

    `cache_mb`: size of the store of results; 0: none is used. `cache_in`: its folder; None: that of
    the user. `ray`: address of a cluster that runs them in place of `jobs`.
    """

    folder: Path
    recipe: Recipe
    out: Path | None = None
    jobs: int = 1
    timeout: float | None = None
    cache_mb: int = CACHE_MB
    cache_in: Path | None = None
    ray: str | None = None
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
    cache = None
    if request.cache_mb:
        folder = request.cache_in
        if folder is None:
            folder = cache_folder() / "batch"
        most = request.cache_mb * 10**6
        store = Store(folder, most)
        cache = ResultCache(store, request.recipe)
        reason = request.recipe.why_not_kept
        if reason is not None:
            warnings.append(f"no result is kept or taken from the cache: {reason}")
            cache = None
    outcomes: dict[str, Outcome] = {}
    for outcome in _finished(models, request, cache):
        outcomes[outcome.model.name] = outcome
    ordered = [outcomes[model.name] for model in models]
    return BatchSummary(ordered, time.monotonic() - start, warnings)


def _finished(
    models: list[BatchModel], request: BatchRequest, cache: ResultCache | None
) -> Iterator[Outcome]:
    """Outcomes as they come."""
    waiting = []
    for model in models:
        found = None
        if cache is not None:
            found = from_cache(model, cache)
        if found is None:
            waiting.append(model)
        else:
            yield found
    if not waiting:
        return
    _check_pipeline(request.recipe)
    if request.ray is not None:
        yield from _on_ray(request.ray, waiting, request, cache)
        return
    processes = Processes(request.timeout)
    with ThreadPoolExecutor(request.jobs) as pool:
        try:
            futures = {
                pool.submit(run_job, model, request.recipe, cache, processes)
                for model in waiting
            }
            yield from _with_progress(futures, len(waiting), request.progress)
        finally:
            # after Ctrl-C, or where the caller stops; else none is running
            processes.stop()


def _on_ray(
    address: str,
    waiting: list[BatchModel],
    request: BatchRequest,
    cache: ResultCache | None,
) -> Iterator[Outcome]:
    """Outcomes of models that the workers of a cluster optimize. Errors: UsageError without Ray."""
    settings = JobSettings(request.recipe, cache, request.timeout)
    progress = request.progress or no_progress
    engine = RayEngine(address)
    with contextlib.closing(engine), progress("models", len(waiting)) as advance:
        for outcome in engine.run(run_elsewhere, settings, waiting):
            advance(1)
            yield outcome


@contextlib.contextmanager
def no_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is not shown."""
    yield lambda steps: None


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
