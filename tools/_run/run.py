"""Resources of one run: the worker that runs models, a folder for files, and the reporter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...passes._core.scratch import remove_dead_folders, scratch_folder
from ...runtime.worker import Worker
from ...runtime.worker_pool import pool
from .clock import Clock
from .result import Step
from .settings import ProgressBar, RunSettings


class Reporter:
    """Warnings of a run, each once and in order, and its steps: timed, and shown as bars.

    It is a `ProgressBar` itself: what asks for a bar is a step.
    """

    def __init__(
        self, progress_bar: ProgressBar | None = None, clock: Clock | None = None
    ) -> None:
        self.warnings: list[str] = []
        self.refused: list[Step] = []
        """Account of the pass at which the run ends, as far as it came; empty without one."""
        self.clock = clock or Clock()
        self._progress_bar = progress_bar or _no_bar
        # bars of other callers may show a label only
        self.note: Callable[[str], None] = getattr(progress_bar, "note", _no_note)

    def warn(self, where: str, message: str) -> None:
        """Add a warning, unless it was given before."""
        text = f"{where}: {message}"
        # passes that run several times say the same again
        if text not in self.warnings:
            self.warnings.append(text)

    @contextlib.contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Time a step and show its bar; the yielded function advances it."""
        with self.clock.step(label), self._progress_bar(label, total) as advance:
            yield advance

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[None]:
        """Time a step that nothing is known of until it is done, and show its bar."""
        with self(label, 1) as advance:
            yield
            advance(1)


@contextlib.contextmanager
def _no_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None


def _no_note(words: str) -> None:
    pass


@dataclass(frozen=True)
class Run:
    """Settings and resources that every step of a run uses.

    `worker`: child process that runs models. `scratch`: folder that goes with the run.
    """

    settings: RunSettings
    worker: Worker
    scratch: Path
    reporter: Reporter

    @property
    def clock(self) -> Clock:
        """Time of the run and of its steps."""
        return self.reporter.clock


@contextlib.contextmanager
def open_run(settings: RunSettings) -> Iterator[Run]:
    """Provide the resources of a run; leaving frees what the worker holds, and the folder."""
    remove_dead_folders()
    # no process is started before the first model is run
    with (
        pool().borrowed() as worker,
        scratch_folder() as scratch,
    ):
        reporter = Reporter(settings.progress, settings.clock)
        reporter.clock.count(lambda: worker.cpu_seconds)
        yield Run(settings, worker, scratch, reporter)
