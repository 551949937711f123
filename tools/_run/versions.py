"""Versions of what takes part in a run."""

from __future__ import annotations

import platform
from importlib import import_module

from ... import OnnxOptError, __version__
from ...runtime.installed import installed
from ...runtime.worker import Worker

PACKAGES = ("onnx", "onnx_ir", "numpy")
"""Packages that take part in every run, by the names of their modules."""


def versions(worker: Worker | None) -> dict[str, str | None]:
    """Version by package, of Python and of the platform.

    `worker`: the process that runs models; without one `onnxruntime` is None, for asking takes as
    long as loading.
    """
    found: dict[str, str | None] = {"onnx-opt": __version__}
    for package in PACKAGES:
        found[package] = str(import_module(package).__version__)
    found["onnxruntime"] = _runtime_version(worker)
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    return found


def _runtime_version(worker: Worker | None) -> str | None:
    # a worker that is not there need not be started for this
    if worker is None or not worker.alive:
        return None
    try:
        return installed(worker).version
    except OnnxOptError:
        return None
