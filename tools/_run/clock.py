"""Clock of a run: its steps, which may have inner ones, each with wall and CPU seconds.

It imports nothing heavy, so that a command can start it before everything else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

DIGITS = 4
"""Decimals of seconds in reports: a tenth of a millisecond."""


@dataclass
class TimedStep:
    """A step and what it took so far; steps of one name within another are added up.

    `cpu_seconds`: of this process and its worker, all threads together.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: dict[str, TimedStep] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "step": self.name,
            "seconds": round(self.seconds, DIGITS),
            "cpu_seconds": round(self.cpu_seconds, DIGITS),
            "steps": [step.as_dict() for step in self.steps.values()],
        }


class Clock:
    """Time of a run since the clock was made, and of each of its steps."""

    def __init__(self) -> None:
        self._whole = TimedStep("run")
        self._open = [self._whole]
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()
        self._others: list[Callable[[], float]] = []

    def count(self, cpu_seconds: Callable[[], float]) -> None:
        """Count the CPU seconds of another process, too, from now on."""
        before = cpu_seconds()
        self._others.append(lambda: cpu_seconds() - before)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, inside of the one that is open, while the block runs."""
        steps = self._open[-1].steps
        step = steps.setdefault(name, TimedStep(name))
        began, cpu_began = time.perf_counter(), self._cpu()
        depth = len(self._open)
        self._open.append(step)
        try:
            yield
        finally:
            # inner ones may still be open in a generator that nobody finished
            del self._open[depth:]
            step.seconds += time.perf_counter() - began
            step.cpu_seconds += self._cpu() - cpu_began

    def whole(self) -> TimedStep:
        """The run up to now, with its steps."""
        self._whole.seconds = time.perf_counter() - self._began
        self._whole.cpu_seconds = self._cpu() - self._cpu_began
        return self._whole

    def _cpu(self) -> float:
        return time.process_time() + sum(read() for read in self._others)
