"""Settings of one run: everything that the caller asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from ...passes._core.pipeline import Pipeline
from .clock import Clock
from .pass_memory import PassMemory

Verify = Literal["auto", "always", "never"]

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a bar of a label and a number of steps; the context's value advances it."""


# by keyword only: neighbours of one type could be swapped unseen
@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of one run, as `tools.optimize.optimize` describes them.

    `memory`: what passes made in other runs on the same data.
    """

    model: Path | ir.Model
    pipeline: Pipeline
    out: Path | None = None
    target: str = "cpu"
    shapes: tuple[str, ...] = ()
    data: Any = None
    metric: str | Callable[..., Any] | None = None
    metric_output: str | None = None
    eval_data: Any = None
    seed: int = 0
    strict: bool = False
    bench: bool = True
    cache: bool = True
    verify: Verify = "auto"
    force: bool = False
    dry_run: bool = False
    progress: ProgressBar | None = None
    threads: int = 0
    min_sqnr: float | None = None
    max_drop: float | None = None
    floor: str | float | None = None
    explain_loss: bool = False
    pack: bool = True
    zipped: bool = False
    resume: Path | None = None
    teacher: Path | ir.Model | None = None
    metric_each: bool = False
    layers: bool = False
    report: Path | None = None
    clock: Clock | None = None
    memory: PassMemory | None = None

    @property
    def source(self) -> Path | None:
        """File of the original; None where the model was given in memory."""
        if isinstance(self.model, Path):
            return self.model
        return None

    @property
    def folder(self) -> Path | None:
        """Folder of the original, which may hold its tokenizer; None where there is none."""
        return None if self.source is None else self.source.parent

    @property
    def labelled_data(self) -> Any:
        """Data that the metric is measured on."""
        # without data of their own the labels are among the data to calibrate on
        if self.eval_data is not None:
            return self.eval_data
        return self.data
