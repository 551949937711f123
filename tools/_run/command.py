"""The shell line that repeats a run."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from .settings import RunSettings

OPTIONS = {
    "out": "--out",
    "target": "--target",
    "shapes": "--shape",
    "data": "--data",
    "eval_data": "--eval-data",
    "metric": "--metric",
    "metric_output": "--metric-output",
    "metric_each": "--metric-each",
    "max_drop": "--max-drop",
    "min_sqnr": "--min-sqnr",
    "floor": "--floor",
    "seed": "--seed",
    "cache": "--no-cache",
    "threads": "--threads",
    "verify": "--verify",
    "bench": "--no-bench",
    "zipped": "--zipped",
    "pack": "--no-pack",
    "explain_loss": "--explain-loss",
    "layers": "--layers",
    "report": "--report",
    "resume": "--resume",
    "dry_run": "--dry-run",
    "strict": "--strict",
    "force": "--force",
}
"""Option of the command line by the name of a setting."""

UNSAID = {"model", "pipeline", "progress", "clock", "teacher"}
"""Settings that no option says: the line has them in another way, or does not matter to them."""


def command_of(settings: RunSettings) -> str | None:
    """Shell line that does the same; None where a setting is an object of Python's."""
    if settings.source is None or settings.teacher is not None:
        return None
    words = ["onnx-opt", str(settings.source), "--passes", str(settings.pipeline)]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in UNSAID or _is_default(value, field.default):
            continue
        said = _said(OPTIONS[field.name], value)
        if said is None:
            return None
        words += said
    # the command writes unless it is told not to
    if settings.out is None and not settings.dry_run:
        words.append("--dry-run")
    return shlex.join(words)


def _is_default(value: Any, default: Any) -> bool:
    # arrays compare element by element
    plain = (bool, str, Path, int, float)
    return value is default or (isinstance(value, plain) and bool(value == default))


def _said(option: str, value: Any) -> list[str] | None:
    """Words that give an option a value; None where there are none."""
    # a flag says the opposite of the default, whichever that is
    if isinstance(value, bool):
        return [option]
    values = value if isinstance(value, (list, tuple)) else [value]
    words: list[str] = []
    for each in values:
        if not isinstance(each, (str, Path, int, float)):
            return None
        words += [option, str(each)]
    return words
