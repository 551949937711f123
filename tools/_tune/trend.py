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


def likely_drop(trial: RecipeTrial, others: Sequence[RecipeTrial]) -> Drop | None:
    """Drop of a trial, from its own measurement and the trend through other trials.

    None where it has none. Source: both are averaged by their precision.
    """
    if trial.drop is None:
        return None
    own = Drop(trial.drop, trial.error or 0.0)
    noise = _noise(trial)
    trend = _trend([each for each in others if each.recipe != trial.recipe])
    # a metric without errors, such as one of the user's own, is taken at its word
    if trend is None or noise is None or not own.error:
        return own
    slope, slope_error = trend
    expected = slope * noise
    error = math.hypot(slope_error * noise, MISFIT * expected)
    if not error:
        return own
    weights = (own.error**-2, error**-2)
    value = (weights[0] * own.value + weights[1] * expected) / sum(weights)
    return Drop(value, sum(weights) ** -0.5)


def _trend(trials: Sequence[RecipeTrial]) -> tuple[float, float] | None:
    """Drop for each unit of noise, and its standard error; None of too few trials."""
    points = []
    for trial in trials:
        noise = _noise(trial)
        if trial.drop is not None and trial.error and noise is not None:
            points.append((noise, trial.drop, max(trial.error, LEAST_ERROR)))
    if len(points) < LEAST_TRIALS:
        return None
    # a line through the origin: without noise nothing is lost
    power = sum((noise / error) ** 2 for noise, _, error in points)
    product = sum(noise * drop / error**2 for noise, drop, error in points)
    if not power:
        return None
    return max(product / power, 0.0), math.sqrt(SHARED_ROWS / power)


def _noise(trial: RecipeTrial) -> float | None:
    """Power of the noise at the outputs, as a share of the signal's."""
    if trial.failure or trial.sqnr_db is None:
        return None
    return float(10 ** (-trial.sqnr_db / 10))
