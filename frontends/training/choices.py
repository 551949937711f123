"""Choices of a training by itself: a rule an option, by the data and the graph at hand.

An option that was given is never chosen. What was chosen is told with its reason. The rates and
lengths were measured on ResNet-20 (docs/finetune.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...passes._core.options import AUTO
from ...passes._core.outcome import Chosen
from ...passes._core.training_recipe import TrainingRecipe
from .augment import Augment
from .photographs import Photographs
from .presets import (
    GOOD_AGREEMENT,
    PRESETS,
    SOFT_LEVELS,
    PresetName,
    batch_rows,
)

MINUTES = 20.0
"""Minutes after which a training ends for which no budget was named.

The rate has fallen to its end by then, however far the training came.
"""

EPOCHS = 20
"""Times that each image is seen, changed anew, where no budget was named."""

CHANGED_BATCH = 64
"""Images of a step where each step changes them: twice the steps of 128 in the same time."""

CHANGED_RATE = 0.02
"""Rate of `recover` on changed images; its own, 0.03, is for a third of the steps."""

NEAR_RATE = 0.004
"""The same for a graph that is near its teacher, as for quantized ones, which lose at 0.01."""

NEAR = 0.95
"""Agreement with the teacher (0-1) from which a graph is near it; chosen by hand."""

ALPHA = 1.0
"""Alpha of cutmix: all shares are as likely, as in its paper (arXiv:1905.04899)."""

LESS_THAN_A_BIT = 1.0
"""Steps of a grid below which a weight has less than one bit: those of codebooks of one bit."""

LONG_EPOCHS = 10.0
LONG_MINUTES = 10.0
"""Budgets from which such weights learn from mixtures, too: by then they know the images.

Codebooks of one bit, ResNet-20, top-1 without mixtures and with them: 89.0 and 88.4 % after 200
steps (3 epochs), 89.6 after 1,844 and 90.2 after 1,256 steps, 90.0 after 2,209. The bounds are
chosen by hand.
"""


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of a student and its data that choices depend on.

    `rows`: samples to train on. `sparsity`: fraction of zeros (0-1) in the weights that train.
    `levels`: steps of the coarsest grid of weights, infinite of floats. `agreement`: with the
    teacher before training (0-1); 0 where no choice depends on it. `has_features`: student and
    teacher have values inside in common.
    """

    preset: PresetName
    rows: int
    photographs: Photographs
    sparsity: float = 0.0
    levels: float = math.inf
    agreement: float = 0.0
    has_features: bool = False


Choice = tuple[Any, str]
"""A value, and the reason for it; "": it is what is usual, and not worth a word."""

ChoiceRule = Callable[[TrainingFacts, TrainingRecipe], Choice]
"""Chooses an option by the facts and the recipe so far."""


@dataclass(frozen=True)
class ChosenRecipe:
    """A recipe with open options chosen, and the account of what was."""

    recipe: TrainingRecipe
    chosen: tuple[Chosen, ...]


def choices(asked: TrainingRecipe, facts: TrainingFacts) -> ChosenRecipe:
    """Return the recipe with the options of `RULES` decided; all others stay as they are."""
    recipe = asked
    chosen = []
    for option, rule in RULES.items():
        if not _is_open(asked, option):
            continue
        value, reason = rule(facts, recipe)
        recipe = dataclasses.replace(recipe, **{option: value})
        if reason:
            chosen.append(Chosen(option, _as_text(value), reason))
    return ChosenRecipe(recipe, tuple(chosen))


def _is_open(asked: TrainingRecipe, option: str) -> bool:
    """True for an option that the recipe leaves to the trainer."""
    if option in ("steps", "minutes"):
        return not has_budget(asked)
    value = getattr(asked, option)
    if option in ("batch", "rate"):
        return bool(value == 0)
    return bool(value == AUTO)


def has_budget(asked: TrainingRecipe) -> bool:
    """True for a recipe that says how long to train."""
    return bool(asked.steps or asked.epochs or asked.minutes)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value).lower()


# rules


def _patience(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    """Left open, checks without anything better shorten the budget: not one that was named."""
    return 0 if has_budget(recipe) else AUTO, ""


def _flip(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    return facts.photographs.flip, facts.photographs.reason


def _shift(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    return facts.photographs.shift, facts.photographs.reason


def _cutmix(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    """Mixtures for what is learned anew; near its teacher a graph loses by them."""
    if not facts.photographs.flip:
        return 0.0, ""
    is_coarse = facts.levels < SOFT_LEVELS and facts.agreement < GOOD_AGREEMENT
    if is_coarse or facts.preset == "student":
        return ALPHA, "photographs, of which a graph that learns anew needs more"
    if facts.levels < LESS_THAN_A_BIT and _is_long(facts, recipe):
        return ALPHA, "photographs, and weights of less than a bit that train for long"
    return 0.0, ""


def _is_long(facts: TrainingFacts, recipe: TrainingRecipe) -> bool:
    """True for a budget in which each image is seen many times; where none was named, too."""
    if not has_budget(recipe):
        return True
    batch = recipe.batch or batch_rows(recipe, facts.rows)
    epochs = recipe.steps * batch / facts.rows
    longest = max(epochs, recipe.epochs)
    return longest >= LONG_EPOCHS or recipe.minutes >= LONG_MINUTES


def _mixup(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    """Never: it was not better than rectangles."""
    return 0.0, ""


def _features(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    """Those that cost little: of a teacher that is asked at every step."""
    is_cheap = recipe.distill and bool(Augment.of(recipe)) and facts.has_features
    if facts.preset == "recover" and is_cheap:
        return (AUTO,), "the teacher, asked about changed images, gives them as well"
    return (), ""


def _batch(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    rows = batch_rows(recipe, facts.rows)
    if facts.preset == "recover" and Augment.of(recipe) and rows > CHANGED_BATCH:
        return CHANGED_BATCH, "images that are changed at every step"
    return rows, ""


def _rate(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    if facts.preset == "recover" and Augment.of(recipe):
        rate = NEAR_RATE if facts.agreement >= NEAR else CHANGED_RATE
        return rate, f"the graph agrees with its teacher on {facts.agreement:.0%}"
    # left to the preset
    return 0.0, ""


def _steps(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    steps = PRESETS[facts.preset].steps
    if not Augment.of(recipe) or facts.preset == "block":
        return steps, f"the length of {facts.preset}"
    steps_of_epoch = facts.rows / recipe.batch
    # little data needs more epochs: a graph far from its teacher needs the steps
    steps = max(math.ceil(EPOCHS * steps_of_epoch), steps)
    epochs = steps / steps_of_epoch
    zeros = f" of a graph with {facts.sparsity:.0%} zeros" if facts.sparsity else ""
    return steps, f"{epochs:.0f} epochs of {facts.rows} images{zeros}"


def _minutes(facts: TrainingFacts, recipe: TrainingRecipe) -> Choice:
    # a student that starts from nothing needs its steps; all others are as good as trained
    if not Augment.of(recipe) or facts.preset in ("block", "student"):
        return 0.0, ""
    return (
        MINUTES,
        "no budget was named; steps that the time does not allow are left out",
    )


RULES: Mapping[str, ChoiceRule] = {
    "patience": _patience,
    "flip": _flip,
    "shift": _shift,
    "cutmix": _cutmix,
    "mixup": _mixup,
    "features": _features,
    "batch": _batch,
    "rate": _rate,
    "steps": _steps,
    "minutes": _minutes,
}
"""Rules by option, in the order in which they look at each other's choices."""
