"""What a run was asked for and what it gives back: the fields of `--json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from ...passes._core.pipeline import Pipeline
from ...runtime.hardware import Hardware
from ..console import finite

Verify = Literal["auto", "always", "never"]
LARGE = 1 << 30
"""Bytes of weights above which `verify="auto"` does not run the model, and zeros are not
counted.
"""

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Settings:
    """Everything that was asked of one run."""

    model: Path | ir.Model
    pipeline: Pipeline
    out: Path | None
    target: str
    data: Any
    metric: str | None
    eval_data: Any
    seed: int
    strict: bool
    bench: bool
    verify: Verify
    force: bool
    dry_run: bool
    progress: ProgressBar | None
    threads: int
    min_sqnr: float | None
    max_drop: float | None
    explain_loss: bool = False
    resume: Path | None = None
    teacher: Path | ir.Model | None = None


@dataclass
class Figures:
    """A model in numbers; None where unknown. `latency_ms`: median of one run on the first feed."""

    bytes: int | None = None
    params: int | None = None
    nonzero: int | None = None
    nodes: int | None = None
    macs: int | None = None
    latency_ms: float | None = None


@dataclass
class Step:
    """What one pass of the pipeline did. `drift`: from the original's outputs; None where it was
    not measured.
    """

    name: str
    text: str
    seconds: float = 0.0
    changed: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    declined: list[dict[str, str]] = field(default_factory=list)
    drift: dict[str, float] | None = None
    rolled_back: bool = False

    def as_dict(self) -> dict[str, Any]:
        """With the keys of the JSON form."""
        fields = dataclasses.asdict(self)
        del fields["rolled_back"]  # the warnings name it
        return {"pass": fields.pop("name"), **fields}


@dataclass
class Result:
    """The optimized model and the account of the run; the same fields as `--json`, where `about` is
    called `model`.
    """

    model: ir.Model
    about: dict[str, Any]
    input: Figures
    output: Figures
    passes: list[Step]
    metric: dict[str, Any] | None
    warnings: list[str]
    output_path: str | None
    files: list[Path] = field(default_factory=list)
    loss: list[dict[str, Any]] | None = None
    """What each layer lost, worst first; None unless it was asked for (`explain_loss`)."""
    requires: dict[str, Any] = field(default_factory=dict)
    """`opset`, `ir_version`, `onnxruntime` (oldest release that runs the result; None: not known),
    `because`.
    """
    drift_on: str | None = None
    """What the drift of the passes was measured on: held-out, evaluation or calibration data, or
    synthetic feeds.
    """
    hardware: Hardware | None = None
    """The CPU whose latency and integer kernels the figures are of."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`: plain numbers, None for what is unknown or not finite."""
        plain: dict[str, Any] = finite(
            {
                "model": self.about,
                "input": dataclasses.asdict(self.input),
                "output": dataclasses.asdict(self.output),
                "passes": [step.as_dict() for step in self.passes],
                "drift_on": self.drift_on,
                "metric": self.metric,
                "requires": self.requires,
                "hardware": None if self.hardware is None else self.hardware.to_json(),
                "warnings": self.warnings,
                "output_path": self.output_path,
                **({} if self.loss is None else {"loss": self.loss}),
            }
        )
        return plain

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | Path) -> list[Path]:
        """Write the model atomically; returns the files written, the model file last."""
        from ...frontends.onnx_file import save

        return save(self.model, path)
