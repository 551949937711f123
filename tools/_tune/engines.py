"""Engines: where trials run. In this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Protocol

from ... import UsageError
from ...runtime.stages import available_memory
from .trial import RecipeTrial, Task, run_trial

MEMORY_EACH = 8
"""Bytes of memory of one trial by byte of the model's file: measured on models of 1 to 540 MB,
runs took 3 to 5. Chosen above that by hand.
"""

LEAST_MEMORY = 1 << 30
"""Bytes that a trial takes at least: Python, ONNX Runtime and some data."""


class TrialEngine(Protocol):
    """Runs recipes of a task, several at once where it can."""

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        """The trials of the recipes, in their order, each as soon as it is there."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class HereEngine:
    """One trial after the other, in this process."""

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        for recipe in recipes:
            yield run_trial(task, recipe)

    def close(self) -> None:
        return None


class ProcessEngine:
    """Trials in so many processes of this machine."""

    def __init__(self, jobs: int) -> None:
        # a fresh interpreter each: threads of this one do not survive a fork
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        require_sendable(task)
        each = [self._pool.submit(run_trial, task, recipe) for recipe in recipes]
        for future in each:
            yield future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class RayEngine:
    """Trials on a Ray cluster, each on a worker that reads the same files."""

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--ray", "Ray is not installed", "pip install 'onnx-opt[ray]'"
            ) from None
        self._ray = ray
        local = address == "local"
        if not ray.is_initialized():
            ray.init(
                address=None if local else address,
                include_dashboard=False,
                log_to_driver=False,
            )
        self._run = ray.remote(run_trial)

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        require_sendable(task)
        shared = self._ray.put(task)
        each = [self._run.remote(shared, recipe) for recipe in recipes]
        for one in each:
            trial: RecipeTrial = self._ray.get(one)
            yield trial

    def close(self) -> None:
        self._ray.shutdown()


def require_sendable(task: Task) -> None:
    """Raise UsageError for data or a metric that other processes cannot be given."""
    try:
        pickle.dumps(task)
    # whatever the objects of a caller raise
    except Exception as error:
        raise UsageError(
            "--jobs",
            f"data or metric cannot be sent to other processes ({type(error).__name__})",
            "give a path, module:callable or file.py:callable, or --jobs 1",
        ) from None


def engine_of(jobs: int, ray: str | None, model_bytes: int) -> TrialEngine:
    """The engine for so many jobs at a time; 0: as many as cores and memory bear.

    `ray`: address of a cluster, `auto` for the one that this machine belongs to, `local` for one
    that lasts as long as the search. Errors: UsageError without Ray.
    """
    if ray is not None:
        return RayEngine(ray)
    if jobs == 0:
        jobs = bearable_jobs(model_bytes)
    return ProcessEngine(jobs) if jobs > 1 else HereEngine()


def bearable_jobs(model_bytes: int) -> int:
    """Trials that this machine runs at once: one for four cores, within the memory that is free."""
    cores = os.cpu_count() or 1
    each = max(MEMORY_EACH * model_bytes, LEAST_MEMORY)
    in_memory = available_memory() // each
    return max(min(cores // 4, in_memory), 1)
