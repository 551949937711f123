"""Advice on the onnxruntime that is installed: too old for a model, or two wheels of one module."""

from __future__ import annotations

from ..passes._core.requirements import Requirements
from ._worker.ipc import Installed
from .worker import Worker

PLAIN = "onnxruntime"
"""The wheel for CPUs; all others put a module of the same name in its place."""


def installed(worker: Worker) -> Installed:
    """The onnxruntime of a worker. Errors: UsageError where it is missing; WorkerDied."""
    found: Installed = worker.call("installed")
    return found


def conflict(found: Installed) -> str | None:
    """Warning of wheels that overwrite each other's files, with what to do; None of one alone."""
    if len(found.wheels) < 2:
        return None
    names = sorted(found.wheels)
    told = ", ".join(f"{name} {found.wheels[name]}" for name in names)
    # who has another than the plain one chose it; the plain one comes with packages
    chosen = [name for name in names if name != PLAIN]
    return (
        f"{told} are installed, all wheels of one module, of which {found.version} is imported: "
        f"they overwrite each other's files (pip uninstall -y {' '.join(names)} && "
        f"pip install {chosen[-1]})"
    )


def too_old(found: Installed, needs: Requirements) -> tuple[str, str] | None:
    """(problem, fix) for a model that needs a newer release; None where this one will do.

    None, too, where it is not known what the model needs.
    """
    if needs.onnxruntime is None or release(found.version) >= release(
        needs.onnxruntime
    ):
        return None
    wheel = next(iter(sorted(found.wheels, reverse=True)), PLAIN)
    return (
        f"needs {wheel} >= {needs.onnxruntime} ({needs.because}); {found.version} is installed",
        f'pip install -U "{wheel}>={needs.onnxruntime}"',
    )


def release(version: str) -> tuple[int, int]:
    """First two numbers of a version: (1, 20) of 1.20.1."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)
