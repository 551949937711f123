"""How to train, as plain values: what the user chose, completed by a preset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import UsageError

PRESETS: dict[str, dict[str, Any]] = {
    "recover": {
        "steps": 1000,
        "temperature": 2.0,
        "rate": 0.03,
        "optimizer": "adamw",
        "logit_mse": 0.1,
    },
    "qad": {
        "steps": 800,
        "temperature": 1.0,
        "rate": 0.004,
        "optimizer": "adamw",
        "logit_mse": 0.1,
    },
    "block": {
        "steps": 500,
        "temperature": 1.0,
        "rate": 0.01,
        "optimizer": "adamw",
        "logit_mse": 0.0,
    },
    "student": {
        "steps": 4000,
        "temperature": 4.0,
        "rate": 0.02,
        "optimizer": "adamw",
        "logit_mse": 0.0,
    },
}
"""What 0, "auto" and -1 stand for. Steps are those of a run without a budget of its own (`block`:
of each block).
"""

SOFT, SOFT_LEVELS = 0.6, 3
"""Part of the budget over which weights of few levels (steps of their grid: one bit 1, ternary 2)
become codes.
"""
FEW_RATE = 0.02
"""Of `qad` for such weights: their codes must be learned, while those of more bits are only
mended.
"""
SETTLED = 0.75
"""Agreement with the teacher from which on codes are good enough to be mended, whatever their
bits.
"""


@dataclass(frozen=True)
class Recipe:
    """One way to train. The options of the pass `finetune` have the same names and say what they
    mean.

    0 (`rate`, `temperature`, `steps`), "auto" (`preset`, `optimizer`) and -1 (`logit_mse`) leave it
    to the preset.
    """

    preset: str = "auto"
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    batch: int = 0
    accumulate: int = 1
    loss: str = "auto"
    temperature: float = 0.0
    logit_mse: float = -1.0
    labels: float = 0.1
    distill: bool = True
    features: tuple[str, ...] = ()
    feature_loss: str = "mse"
    feature_weight: float = 1.0
    output_weights: tuple[str, ...] = ()
    l1: float = 0.0
    l2: float = 0.0
    group_lasso: float = 0.0
    optimizer: str = "auto"
    rate: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    flip: bool = False
    shift: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    holdout: float = 0.1
    checks: int = 10
    patience: int = 0
    watch: str = "auto"
    statistics: str = "auto"
    qat: bool = True
    scales: str = "weights"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    device: str = "auto"
    teacher: str = "auto"
    precision: str = "auto"
    threads: int = 0
    synthesize: int = 0
    tensorboard: str = ""
    soft: float = -1.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """From plain values. Errors: UsageError for a name that no recipe has."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(
                    f"finetune.{name}",
                    "no such option",
                    f"the options are {', '.join(sorted(known))}",
                )
        return cls(**values)

    def completed(
        self, quantized: bool, levels: float = math.inf, agreement: float = 0.0
    ) -> Recipe:
        """With everything decided that the preset decides. `quantized`: the student computes on
        grids, the coarsest of its weights' with so many steps; `agreement`: how good that is
        already.
        """
        name = (
            self.preset if self.preset != "auto" else "qad" if quantized else "recover"
        )
        preset = PRESETS[name]
        learns_codes = name == "qad" and levels < SOFT_LEVELS and agreement < SETTLED
        chosen: dict[str, Any] = {
            "preset": name,
            "temperature": self.temperature or preset["temperature"],
            "rate": self.rate or (FEW_RATE if learns_codes else preset["rate"]),
            "soft": 0.0 if self.soft < 0 and agreement >= SETTLED else self.soft,
            "optimizer": preset["optimizer"]
            if self.optimizer == "auto"
            else self.optimizer,
            "logit_mse": preset["logit_mse"] if self.logit_mse < 0 else self.logit_mse,
            "steps": self.steps
            if self.steps or self.epochs or self.minutes
            else preset["steps"],
        }
        return dataclasses.replace(self, **chosen)

    def softness(self, levels: float) -> float:
        """Part of the budget over which rounding sets in: what was asked for, or by the steps of
        the coarsest grid whose floats are known (infinite: none is).
        """
        if self.preset == "block" or levels == math.inf:
            return 0.0
        return self.soft if self.soft >= 0 else SOFT if levels < SOFT_LEVELS else 0.0

    def batch_of(self, rows: int) -> int:
        """Rows of one step where the user names no number: 128, less where that makes under 16
        steps an epoch.
        """
        if self.batch:
            return min(self.batch, rows)
        return max(min(128, 1 << int(math.log2(max(rows // 16, 1)))), min(rows, 16))


def weights_by_output(recipe: Recipe) -> dict[str, float]:
    """`name=weight` texts as numbers. Errors: UsageError for another form."""
    weights: dict[str, float] = {}
    for text in recipe.output_weights:
        name, _, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name or not 0 <= weights[name] < math.inf:
            raise UsageError(
                "finetune.output_weights",
                f"'{text}' is not name=weight",
                "write for example logits=0.5",
            )
    return weights
