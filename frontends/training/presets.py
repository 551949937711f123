"""Decisions that a recipe leaves open: by its preset, by the graph, by the amount of data.

Rates and schedules are explained in docs/decisions/2026-11-22-training-few-bits.md. It measures
ResNet-20 on 9,000 unlabelled CIFAR-10 images, top-1 of the written file by ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from ...passes._core.training_recipe import TrainingRecipe

PresetName = Literal["recover", "qad", "block", "student"]


@dataclass(frozen=True)
class Preset:
    """Values for options that a recipe leaves to its preset.

    `steps`: the budget where none is given (`block`: of each block). `rate`: AdamW's, relative to a
    tensor's root mean square. `logit_mse`: weight beside the other losses.
    """

    steps: int
    temperature: float
    rate: float
    logit_mse: float
    optimizer: Literal["adamw", "sgd"] = "adamw"


PRESETS: dict[PresetName, Preset] = {
    # 90 % pruned, top-1 after 600 steps: 80.5 at a rate of 0.02, 82.4 at 0.04, 80.7 at 0.08
    "recover": Preset(steps=1000, temperature=2.0, rate=0.03, logit_mse=0.1),
    # ternary after `block`: 0.003 to 0.005 gave 89.8 to 90.3; W4A4 only lost at 0.01
    "qad": Preset(steps=800, temperature=1.0, rate=0.004, logit_mse=0.1),
    # 500 steps a block were enough for every net of the decision page; others not measured
    "block": Preset(steps=500, temperature=1.0, rate=0.01, logit_mse=0.0),
    # a temperature of 4 is usual for distillation (arXiv:1503.02531); the rest chosen by hand
    "student": Preset(steps=4000, temperature=4.0, rate=0.02, logit_mse=0.0),
}
"""Values of the presets; what no comment names a measurement for was chosen by hand."""

SOFT_PART = 0.6
"""Fraction of the budget over which weights of few levels become codes.

That slow rounding helps was measured (one bit: 49.9 % top-1 without, 83.4 % with it, though also
after more steps); 0.6 itself was chosen by hand.
"""

SOFT_LEVELS = 3
"""Number of grid steps below which a weight has few levels: one bit has 1, ternary 2."""

FEW_LEVELS_RATE = 0.02
"""Rate of `qad` for weights of few levels, whose codes must be learned, not only corrected.

Ternary, top-1 after 400 steps: 86.6 % at 0.02, 49.9 % at 0.05.
"""

GOOD_AGREEMENT = 0.75
"""Agreement with the teacher (0-1) from which codes are corrected slowly, whatever their bits.

It separates graphs after `block` (0.82 to 0.96) from graphs just rounded (0.13 for ternary);
chosen by hand between them.
"""

LARGEST_BATCH = 128
"""Rows of a step where the user names no number: those that the decision page measured with."""

STEPS_PER_EPOCH = 16
"""Steps of an epoch that little data is still divided into; chosen by hand, not measured."""

SMALLEST_BATCH = 16
"""Rows that a step keeps however little data there is; chosen by hand, not measured."""


def completed(
    recipe: TrainingRecipe,
    quantized: bool,
    levels: float = math.inf,
    agreement: float = 0.0,
) -> TrainingRecipe:
    """Return the recipe with everything decided that the preset decides.

    `quantized`: True if the student computes on grids. `levels`: steps of the coarsest grid of its
    weights. `agreement`: with the teacher, 0-1, before training.
    """
    name = preset_name(recipe, quantized)
    preset = PRESETS[name]
    good = agreement >= GOOD_AGREEMENT
    rate = preset.rate
    if name == "qad" and levels < SOFT_LEVELS and not good:
        rate = FEW_LEVELS_RATE
    has_budget = recipe.steps or recipe.epochs or recipe.minutes
    optimizer = recipe.optimizer
    if optimizer == "auto":
        optimizer = preset.optimizer
    soft = recipe.soft
    if soft < 0 and good:
        soft = 0.0
    logit_mse = recipe.logit_mse
    if logit_mse < 0:
        logit_mse = preset.logit_mse
    return dataclasses.replace(
        recipe,
        preset=name,
        temperature=recipe.temperature or preset.temperature,
        rate=recipe.rate or rate,
        soft=soft,
        optimizer=optimizer,
        logit_mse=logit_mse,
        steps=recipe.steps if has_budget else preset.steps,
    )


def preset_name(recipe: TrainingRecipe, quantized: bool) -> PresetName:
    """Return the preset that the recipe names, or the one for such a student."""
    if recipe.preset != "auto":
        return recipe.preset
    return "qad" if quantized else "recover"


def soft_part(recipe: TrainingRecipe, levels: float) -> float:
    """Return the fraction of the budget over which rounding sets in; 0: codes are hard at once.

    `levels`: steps of the coarsest grid whose float weights are known; infinite if none are.
    """
    # blocks learn between the two nearest codes: there is nothing to set in slowly
    if recipe.preset == "block" or levels == math.inf:
        return 0.0
    if recipe.soft >= 0:
        return recipe.soft
    return SOFT_PART if levels < SOFT_LEVELS else 0.0


def batch_rows(recipe: TrainingRecipe, rows: int) -> int:
    """Return the rows of one step, of so many `rows` to train on.

    Where the user names no number: 128, or the power of two that makes 16 steps of an epoch.
    """
    if recipe.batch:
        return min(recipe.batch, rows)
    wanted = max(rows // STEPS_PER_EPOCH, 1)
    power_of_two = 1 << int(math.log2(wanted))
    return max(min(LARGEST_BATCH, power_of_two), min(rows, SMALLEST_BATCH))
