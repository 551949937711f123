"""Bundles as functions of a program, and their self-test in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ... import RefusedError
from ...passes._core.scratch import scratch_folder
from ..worker_pool import pool
from . import run
from .archive import is_archive, unpack
from .failures import as_own_errors
from .schema import first_fault


class LoadedBundle(run.Bundle):
    """A bundle as a function: `bundle({"input": array})` gives the outputs, arrays by name."""

    def __call__(self, feeds: Mapping[str, Any]) -> run.Arrays:
        """Run it once. Errors: UsageError for an input that is missing, OnnxOptError."""
        with as_own_errors():
            return super().__call__(feeds)


def load(
    path: str | Path, provider: str = "auto", threads: int = 0, check: bool = True
) -> LoadedBundle:
    """Load a bundle, a folder or an archive, into this process.

    `provider`: `auto` takes the best of the bundle's that is there; another name that one or none.
    `threads`: 0 is ONNX Runtime's choice. `check`: compare what is loaded with its digest first.
    Errors: RefusedError (no sound bundle), CheckError (a file, the runtime or the provider is not
    as its manifest says), UsageError.
    """
    with opened(path) as folder, as_own_errors():
        return LoadedBundle(folder, provider, threads, check)


def selftest(
    path: str | Path,
    provider: str = "auto",
    threads: int = 0,
    seconds: float = run.SECONDS,
) -> dict[str, Any]:
    """Check files, runtime, provider and samples of a bundle, and measure, in a child process.

    The program is this package's, not the bundle's run.py, which may be anyone's. Errors: as
    `load`; CheckError, too, where a sample gives other outputs; WorkerDied.
    """
    with opened(path) as folder, pool().borrowed() as worker:
        found: dict[str, Any] = worker.call(
            "selftest", str(folder), provider, threads, seconds
        )
        return found


def checked_model(folder: Path) -> Path:
    """The ONNX file of a bundle, all of whose files are as they were packaged.

    Errors: CheckError for one that is not; RefusedError.
    """
    with as_own_errors():
        manifest = run.read_manifest(folder)
        run.check_files(folder, manifest)
        return run.inside(folder, manifest["model"]["file"])


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """Folder of a bundle whose manifest follows the schema; an archive is unpacked for the block.

    Errors: RefusedError.
    """
    place = Path(path)
    if is_archive(place) and not place.is_dir():
        with scratch_folder() as scratch:
            yield _sound(unpack(place, scratch))
        return
    yield _sound(place)


def _sound(folder: Path) -> Path:
    with as_own_errors():
        manifest = run.read_manifest(folder)
    fault = first_fault(manifest)
    if fault is not None:
        raise RefusedError(*fault, "unpack the bundle again")
    return folder
