"""The ten tasks, one file each: `replay(visit)`, and the modules that it `NEEDS`."""

from __future__ import annotations

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from visit import Visit

NAMES = (
    "vision",
    "text",
    "torch_user",
    "hugging_face",
    "scikit_learn",
    "continuous_integration",
    "notebook",
    "broken_inputs",
    "researcher",
    "contributor",
)


def missing_extras(name: str) -> list[str]:
    """Modules that a task needs and that are not installed."""
    needs = import_module(f"tasks.{name}").NEEDS
    return [module for module in needs if find_spec(module) is None]


def replay(name: str, folder: Path) -> Visit:
    """Play a task in an empty folder; an exception is a check that does not hold."""
    visit = Visit(folder)
    start = time.perf_counter()
    try:
        import_module(f"tasks.{name}").replay(visit)
    except Exception as error:
        visit.check(f"{type(error).__name__}: {error}", False)
    visit.seconds = time.perf_counter() - start
    return visit
