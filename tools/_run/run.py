"""Resources of one run: the worker that runs models, a folder for files, and the reporter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...passes._core.scratch import remove_dead_folders, scratch_folder
from ...runtime.worker import Worker
from ...runtime.worker_pool import pool
from .settings import ProgressBar, RunSettings


class Reporter:
    """Warnings of a run, each once and in order, and its progress bars."""

    def __init__(self, progress_bar: ProgressBar | None = None) -> None:
        self.warnings: list[str] = []
        self._progress_bar = progress_bar

    def warn(self, where: str, message: str) -> None:
        """Add a warning, unless it was given before."""
        text = f"{where}: {message}"
        # passes that run several times say the same again
        if text not in self.warnings:
            self.warnings.append(text)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[None]:
        """Show a bar of one step while the block runs."""
        if self._progress_bar is None:
            yield
            return
        with self._progress_bar(label, 1) as advance:
            yield
            advance(1)


@dataclass(frozen=True)
class Run:
    """Settings and resources that every step of a run uses.

    `worker`: child process that runs models. `scratch`: folder that goes with the run.
    """

    settings: RunSettings
    worker: Worker
    scratch: Path
    reporter: Reporter


@contextlib.contextmanager
def open_run(settings: RunSettings) -> Iterator[Run]:
    """Provide the resources of a run; leaving frees what the worker holds, and the folder."""
    remove_dead_folders()
    # no process is started before the first model is run
    with (
        pool().borrowed() as worker,
        scratch_folder() as scratch,
    ):
        yield Run(settings, worker, scratch, Reporter(settings.progress))
