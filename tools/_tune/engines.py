"""Trials of a search as jobs: how many at a time, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...runtime.stages import available_memory
from .._jobs.engines import HereEngine, JobEngine, ProcessEngine, RayEngine
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


@dataclass(frozen=True)
class TrialJobs:
    """Trials as jobs of an engine."""

    engine: JobEngine

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        return self.engine.run(run_trial, task, recipes)

    def close(self) -> None:
        self.engine.close()


def engine_of(jobs: int, ray: str | None, model_bytes: int) -> TrialEngine:
    """The engine for so many jobs at a time; 0: as many as cores and memory bear.

    `ray`: address of a cluster, `auto` for the one that this machine belongs to, `local` for one
    that lasts as long as the search. Errors: UsageError without Ray.
    """
    if ray is not None:
        return TrialJobs(RayEngine(ray))
    if jobs == 0:
        jobs = bearable_jobs(model_bytes)
    return TrialJobs(ProcessEngine(jobs) if jobs > 1 else HereEngine())


def bearable_jobs(model_bytes: int) -> int:
    """Trials that this machine runs at once: one for four cores, within the memory that is free."""
    cores = os.cpu_count() or 1
    each = max(MEMORY_EACH * model_bytes, LEAST_MEMORY)
    in_memory = available_memory() // each
    return max(min(cores // 4, in_memory), 1)
