"""Versions of what takes part in a run."""

from __future__ import annotations

import platform
from importlib import import_module

from ... import OnnxOptError, __version__
from ...runtime.installed import installed
from .run import Run

PACKAGES = ("onnx", "onnx_ir", "numpy")
"""Packages that take part in every run, by the names of their modules."""


def versions(run: Run, is_running: bool) -> dict[str, str | None]:
    """Version by package, of Python and of the platform.

    `is_running`: models are run; else `onnxruntime` is None, for asking takes as long as loading.
    """
    found: dict[str, str | None] = {"onnx-opt": __version__}
    for package in PACKAGES:
        found[package] = str(import_module(package).__version__)
    found["onnxruntime"] = _runtime_version(run) if is_running else None
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    return found


def _runtime_version(run: Run) -> str | None:
    # a worker that is not there need not be started for this
    if not run.worker.alive:
        return None
    try:
        return installed(run.worker).version
    except OnnxOptError:
        return None
