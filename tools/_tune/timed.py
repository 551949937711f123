"""Recipes for time: what 8 bits of each weight lose, and the time that they save on this CPU."""

from __future__ import annotations

from dataclasses import dataclass

from .choices import FLOAT, FormChoice, without_dominated
from .families import TimedRecipes
from .lab import Lab
from .layer_times import LayerTimes, layer_times
from .recipe import DEFAULT_FORM, quant_text
from .sensitivity import Keep, Method, Sensitivities, sensitivities

DEARER = 1.05
"""Ratio of times that floats cost at least: a layer is float for what it loses, never for its time.

Borders are told too roughly for that. By its own times ResNet-20's first and last layer would be
faster in float; the model took 0.67 of its time then, and 0.50 without.
"""


@dataclass(frozen=True)
class FoundTimes:
    """Recipes for time, and how the losses of weights were found."""

    family: TimedRecipes
    sensitivity: Sensitivities


def timed_recipes(lab: Lab, method: Method, keep: Keep) -> FoundTimes | None:
    """The family of a model; None where no layer's time is known, or none can be of integers.

    Errors: those of `quant` and `sensitivities`.
    """
    if not lab.context.tells_times:
        return None
    eight_bits = lab.made(quant_text({}))
    found = sensitivities(
        lab,
        {DEFAULT_FORM: eight_bits},
        method,
        keep,
    )
    if not found.losses:
        return None
    times = layer_times(lab, eight_bits)
    menu = {}
    for (weight, form), loss in found.losses.items():
        menu[weight] = _choices(weight, form, loss, times)
    return FoundTimes(TimedRecipes(menu, times), found)


def _choices(
    weight: str, form: str, loss: float, times: LayerTimes
) -> list[FormChoice]:
    """Choices of a weight: floats only where its layer's time is known, as that of no table is."""
    floats = times.forms[FLOAT]
    integers = times.forms[form]
    if weight not in floats or weight not in integers:
        return [FormChoice(form, loss, 0.0)]
    eight_bits = integers[weight]
    float_cost = max(floats[weight], DEARER * eight_bits)
    return without_dominated(
        [
            FormChoice(FLOAT, 0.0, float_cost),
            FormChoice(form, loss, eight_bits),
        ]
    )
