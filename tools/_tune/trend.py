"""Drops as all trials together tell them: chance in one trial is outweighed by the others.

A small drop is measured on few rows that change sides, so its own error is large. How it grows with
the noise at the outputs is much better known: a calibrated classifier loses in proportion to the
noise's power, for at the border between two classes it is right and wrong equally often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .trial import RecipeTrial

LEAST_TRIALS = 3
"""Other trials from which a trend is drawn."""

SHARED_ROWS = 2.0
"""Factor on the variance of a trend: all trials are judged on the same rows. Chosen by hand."""

MISFIT = 0.3
"""Share of a drop by which recipes of equal noise differ. Chosen by hand."""

LEAST_ERROR = 1e-6
"""Standard error that a drop has at least: rows of which none changed tell little else."""


@dataclass(frozen=True)
class Drop:
    """Drop of a metric, and its standard error, in the metric's own units."""

    value: float
    error: float


@dataclass(frozen=True)
class Trend:
    """Drop for each unit of noise, and its standard error."""

    slope: float
    error: float

    def at(self, noise: float) -> Drop:
        """The drop that is to be expected."""
        value = self.slope * noise
        by_chance = self.error * noise
        by_misfit = MISFIT * value
        error = math.hypot(by_chance, by_misfit)
        return Drop(value, error)


def likely_drop(trial: RecipeTrial, others: Sequence[RecipeTrial]) -> Drop | None:
    """Drop of a trial, from its own measurement and the trend through other trials.

    None where it has none. Both are averaged by their precision.
    """
    if trial.drop is None:
        return None
    own = Drop(trial.drop, trial.error or 0.0)
    noise = _noise(trial)
    trend = _trend([each for each in others if each.recipe != trial.recipe])
    # a metric without errors, such as one of the user's own, is taken at its word
    if trend is None or noise is None or not own.error:
        return own
    expected = trend.at(noise)
    return _averaged(own, expected) if expected.error else own


def _averaged(first: Drop, second: Drop) -> Drop:
    """The mean of two independent measurements, by their precision."""
    own = first.error**-2
    other = second.error**-2
    precision = own + other
    total = own * first.value + other * second.value
    return Drop(total / precision, precision**-0.5)


def _trend(trials: Sequence[RecipeTrial]) -> Trend | None:
    """The line through the origin that fits trials best; None of too few."""
    count = 0
    power = 0.0
    product = 0.0
    for trial in trials:
        noise = _noise(trial)
        if trial.drop is None or noise is None or not trial.error:
            continue
        count += 1
        precision = max(trial.error, LEAST_ERROR) ** -2
        power += precision * noise**2
        product += precision * noise * trial.drop
    if count < LEAST_TRIALS or not power:
        return None
    # without noise nothing is lost, and more noise is no gain
    slope = max(product / power, 0.0)
    error = math.sqrt(SHARED_ROWS / power)
    return Trend(slope, error)


def _noise(trial: RecipeTrial) -> float | None:
    """Power of the noise at the outputs, as a share of the signal's."""
    if trial.failure or trial.sqnr_db is None:
        return None
    return float(10 ** (-trial.sqnr_db / 10))
