"""Results of a run: the fields of `--json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...passes._core.latency import LatencyRatio
from ...runtime.hardware import Hardware
from ..console import finite
from .figures import Figures


@dataclass(frozen=True)
class Step:
    """Account of one pass.

    `drift`: from the original's outputs; None where not measured. `chosen`: what the pass decided
    itself, by layer.
    """

    name: str
    text: str
    seconds: float = 0.0
    changed: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    declined: list[dict[str, str]] = field(default_factory=list)
    drift: dict[str, float] | None = None
    rolled_back: bool = False
    chosen: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Fields with the keys of the JSON form."""
        fields = dataclasses.asdict(self)
        # a warning names it
        del fields["rolled_back"]
        # the keys of a pass are those of the design; its own figures are under `stats`
        chosen = fields.pop("chosen")
        if chosen:
            fields["stats"]["chosen"] = chosen
        return {"pass": fields.pop("name"), **fields}


@dataclass
class RunResult:
    """The optimized model and the account of the run.

    The same fields as `--json`, where `about` is called `model`.
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
    """Loss of each layer, worst first; None unless it was asked for (`explain_loss`)."""
    requires: dict[str, Any] = field(default_factory=dict)
    """Needs of the result: `opset`, `ir_version`, `onnxruntime` and `because`.

    `onnxruntime` is the oldest release that runs it; None: not known.
    """
    drift: dict[str, Any] | None = None
    """Distance of the result from the original; None where the model was not run.

    `sqnr_db`, `cosine`, `max_abs`, `agreement` (share of rows with the same largest value), `word`
    (of `runtime.drift_words`), `samples` and `on`, which data it was measured on.
    """
    drift_on: str | None = None
    """Data that drift was measured on: held-out, evaluation or calibration data, or synthetic."""
    drift_samples: int | None = None
    """Number of samples that drift was measured on."""
    hardware: Hardware | None = None
    """The CPU whose latency and integer kernels the figures are of."""
    latency: LatencyRatio | None = None
    """Ratio of latencies, after to before, with its interval; None where they were not measured."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`: plain numbers, None for what is unknown or not finite."""
        fields = {
            "model": self.about,
            "input": self.input.as_dict(),
            "output": self.output.as_dict(),
            "passes": [step.as_dict() for step in self.passes],
            "drift": self.drift,
            "drift_on": self.drift_on,
            "metric": self.metric,
            "latency": _latency(self.latency),
            "requires": self.requires,
            "hardware": None if self.hardware is None else self.hardware.to_json(),
            "warnings": self.warnings,
            "output_path": self.output_path,
        }
        if self.loss is not None:
            fields["loss"] = self.loss
        plain: dict[str, Any] = finite(fields)
        return plain

    to_dict = as_dict

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | Path) -> list[Path]:
        """Write the model atomically; returns the files written, the model file last."""
        from ...frontends.onnx_file import save

        return save(self.model, path)


def _latency(ratio: LatencyRatio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": ratio.verdict(),
    }
