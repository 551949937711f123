"""Versions of what takes part in a run."""

from __future__ import annotations

import platform
from importlib import import_module

from ... import OnnxOptError, __version__
from .run import Run

PACKAGES = ("onnx", "onnx_ir", "numpy")
"""Packages that take part in every run, by the names of their modules."""


def versions(run: Run) -> dict[str, str | None]:
    """Version by package, of Python and of the platform.

    `onnxruntime` is None where nothing was run.
    """
    found: dict[str, str | None] = {"onnx-opt": __version__}
    for package in PACKAGES:
        found[package] = str(import_module(package).__version__)
    found["onnxruntime"] = _runtime_version(run)
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    return found


def _runtime_version(run: Run) -> str | None:
    # a worker that never started need not be started for this
    if run.worker.generation == 0:
        return None
    try:
        return str(run.worker.call("runtime_version"))
    except OnnxOptError:
        return None
