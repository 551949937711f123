"""Parts of all drivers: `python by_x.py RECIPE MODEL CALIBRATION.npz OUT` quantizes and prints
one JSON line.

The line holds `cpu_seconds` and `peak_mb` of this process and those it waited for, and `error`, the
first line of what the peer raised, if it did. Runs in the peer's own environment, so it uses numpy
and the standard library only.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Feed = dict[str, np.ndarray]
Recipe = Callable[[str, list[Feed], str], None]
"""(model path, calibration samples of one row each, output path)."""


class Reader:
    """Calibration samples in the form of onnxruntime's CalibrationDataReader, which three peers
    take.
    """

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = feeds
        self._left: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left = iter(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)


def rows_of(path: str) -> list[Feed]:
    """One feed a sample, batch of 1, from arrays whose axis 0 counts samples."""
    with np.load(path) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    return [
        {name: array[i : i + 1] for name, array in held.items()}
        for i in range(len(next(iter(held.values()))))
    ]


def main(recipes: dict[str, Recipe]) -> None:
    """Run the recipe that the command line names."""
    name, model, calibration, out = sys.argv[1:5]
    answer = os.fdopen(os.dup(1), "w")
    result: dict[str, str | float] = {}
    os.dup2(2, 1)  # what the peer prints does not mix with the answer
    logging.disable(logging.WARNING)
    try:
        recipes[name](model, rows_of(calibration), out)
        if not Path(out).exists():
            result["error"] = "it returned without writing a file"
    except Exception as error:
        traceback.print_exc()
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        result["error"] = f"{type(error).__name__}: {first.strip()}"
    result |= {"cpu_seconds": cpu_seconds(), "peak_mb": peak_mb()}
    print(json.dumps(result), file=answer, flush=True)
    os._exit(0)  # some peers leave threads or children behind


def cpu_seconds() -> float:
    usages = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mb() -> float:
    """This process's peak plus the largest child's: they live at the same time."""
    status = Path("/proc/self/status")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (
        status.exists()
    ):  # there ru_maxrss also counts what the parent held when it started this process
        own = next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return (own + children) / unit
