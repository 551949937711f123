"""The onnxruntime that the child imports: its release, and the wheels that its files came from."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import UsageError
from .ipc import Installed

MODULE = "onnxruntime"


def onnxruntime_module() -> Any:
    """Import onnxruntime. Errors: UsageError where it is missing, or there in part."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            MODULE,
            f"cannot be imported: {error}",
            "pip install onnxruntime, or the build of it for your hardware",
        ) from None
    # where two wheels had one folder, uninstalling one takes files of the other
    if not hasattr(onnxruntime, "InferenceSession"):
        raise UsageError(
            MODULE,
            "is installed in part",
            "pip install --force-reinstall --no-deps onnxruntime, or the build of it for your "
            "hardware",
        )
    return onnxruntime


@functools.cache
def installed() -> Installed:
    """Release of onnxruntime, and the wheels that put a module of that name beside it.

    Errors: UsageError as `onnxruntime_module`.
    """
    module = onnxruntime_module()
    folder = Path(module.__file__).parents[1]
    wheels = {}
    for wheel in metadata.distributions(path=[str(folder)]):
        modules = (wheel.read_text("top_level.txt") or "").split()
        if MODULE in modules:
            wheels[wheel.metadata["Name"]] = wheel.version
    return Installed(module.__version__, wheels)
