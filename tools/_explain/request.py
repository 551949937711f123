"""Options of an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UsageError
from .libraries import check_library
from .methods import RUNS, Engine, Method
from .target import As

SAMPLES = 16
"""Samples that are explained unless so many are asked for."""


@dataclass(frozen=True)
class ExplainRequest:
    """Two models and how to explain them.

    `data`: as of `optimize`. `samples`: the first of the data. `runs`: variants of a sample, or
    points on a path; None: the method's own. `output`, `input`: None: found by rule. `form`: what
    the output is; None: found. `min_agreement`: least share of the noise floor. Errors: UsageError
    for an engine that a method lacks.
    """

    a: Path
    b: Path
    data: Any
    method: Method = "occlusion"
    engine: Engine = "own"
    samples: int = SAMPLES
    runs: int | None = None
    input: str | None = None
    output: str | None = None
    form: As | None = None
    min_agreement: float | None = None
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data is None:
            raise UsageError(
                "--data", "is missing", "give samples to explain the models on"
            )
        if self.engine == "library":
            check_library(self.method)

    @property
    def runs_of_method(self) -> int:
        """Variants or points: those asked for, or the method's own."""
        return RUNS[self.method] if self.runs is None else self.runs
