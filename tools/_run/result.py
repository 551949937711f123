"""Results of a run: the fields of `--json`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from ...passes._core.latency import LatencyRatio
from ...runtime.hardware import Hardware
from ..console import finite
from .clock import TimedStep
from .figures import Figures

SCHEMA = "1.2"
"""Version of the JSON form: within 1.x fields are added, and none is renamed or removed."""


class Budget(NamedTuple):
    """A limit that the caller set, and what came of it.

    `value`: what was measured; None where the run did not come to that. `kept`: None likewise.
    """

    limit: float
    value: float | None = None
    kept: bool | None = None


class Remaining(NamedTuple):
    """A tensor of the result: its bytes, why it has so many, and the pass that would shrink it.

    `layer`: the first node that reads it. `pass_text`: pipeline text; None where no pass would.
    """

    tensor: str
    layer: str
    bytes: int
    why: str
    pass_text: str | None

    def as_dict(self) -> dict[str, object]:
        """The JSON form."""
        *fields, pass_text = self._asdict().items()
        return {**dict(fields), "pass": pass_text[1]}


@dataclass(frozen=True)
class Step:
    """Account of one pass.

    `drift`: from the original's outputs; None where not measured. `chosen`: what the pass decided
    itself, by layer. `unit`: of what `changed` counts. `metric`: after the pass, where it was
    measured after each.
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
    unit: str = "changes"
    metric: float | None = None

    @property
    def drift_word(self) -> str:
        """`exact` where the outputs are the original's bit by bit; `measured`; `not measured`."""
        if self.drift is None:
            return "not measured"
        # infinite: there is no noise
        return "exact" if self.drift["sqnr_db"] == math.inf else "measured"

    def as_dict(self) -> dict[str, Any]:
        """Fields with the keys of the JSON form."""
        fields = dataclasses.asdict(self)
        # a warning names it
        del fields["rolled_back"]
        # the keys of a pass are those of the design; further figures are under `stats`
        extra = {
            "unit": fields.pop("unit"),
            "drift": self.drift_word,
            "metric": fields.pop("metric"),
            "chosen": fields.pop("chosen"),
        }
        fields["stats"] |= {
            key: value for key, value in extra.items() if value not in (None, [])
        }
        return {"pass": fields.pop("name"), **fields}


@dataclass(kw_only=True)
class RunAccount:
    """Everything that is known of a run: the fields of `--json`, where `about` is called `model`.

    Of a run that failed, those of its fields that it came to; the others are None or empty.
    """

    about: dict[str, Any]
    input: Figures = field(default_factory=Figures)
    output: Figures = field(default_factory=Figures)
    passes: list[Step] = field(default_factory=list)
    metric: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    output_path: str | None = None
    files: list[Path] = field(default_factory=list)
    loss: list[dict[str, Any]] | None = None
    """Loss of each layer, worst first; None unless it was asked for (`explain_loss`)."""
    layers: list[dict[str, Any]] | None = None
    """Each layer before and after, in graph order; None unless it was asked for (`layers`)."""
    written: list[dict[str, Any]] = field(default_factory=list)
    """`path`, `bytes` and `sha256` of each file that was written, with `layers`."""
    requires: dict[str, Any] | None = None
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
    hardware: Hardware | None = None
    """The CPU whose latency and integer kernels the figures are of."""
    latency: LatencyRatio | None = None
    """Ratio of latencies, after to before, with its interval; None where they were not measured."""
    latency_samples: int | None = None
    """Samples of a timed run: of the first feed."""
    step_latency: LatencyRatio | None = None
    """The same of a one-token step, of a model with a cache."""
    time: TimedStep = field(default_factory=lambda: TimedStep("run"))
    """Wall and CPU seconds of the run and of its steps."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Versions of onnx-opt, of Python and of the packages that take part; the platform."""
    command: str | None = None
    """Shell line that repeats the run; None where something was given that it cannot name."""
    budgets: dict[str, Budget] = field(default_factory=dict)
    """Limits that were set, by option."""
    largest: list[Remaining] = field(default_factory=list)
    """The largest tensors of the result, at most ten, the largest first."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`: plain numbers, None for what is unknown or not finite."""
        hardware = self.hardware
        time = self.time.as_dict()
        fields = {
            "schema": SCHEMA,
            "versions": self.versions,
            "command": self.command,
            "model": self.about,
            "input": self.input.as_dict(),
            "output": self.output.as_dict(),
            "passes": [step.as_dict() for step in self.passes],
            "drift": self.drift,
            "drift_on": self.drift_on,
            "metric": self.metric,
            "latency": _latency(self.latency),
            "budgets": {key: each._asdict() for key, each in self.budgets.items()},
            "largest": [part.as_dict() for part in self.largest],
            "requires": self.requires,
            "hardware": None if hardware is None else hardware.to_json(),
            "seconds": time["seconds"],
            "cpu_seconds": time["cpu_seconds"],
            "steps": time["steps"],
            "warnings": self.warnings,
            "output_path": self.output_path,
        }
        if self.latency_samples is not None:
            fields["latency_samples"] = self.latency_samples
        if self.step_latency is not None:
            fields["step_latency"] = _latency(self.step_latency)
        if self.loss is not None:
            fields["loss"] = self.loss
        if self.layers is not None:
            fields["layers"] = self.layers
            fields["files"] = self.written
        plain: dict[str, Any] = finite(fields)
        return plain

    to_dict = as_dict

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)


@dataclass(kw_only=True)
class RunResult(RunAccount):
    """The optimized model and the account of the run."""

    model: ir.Model

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
