"""Search for the most zeros with which the outputs stay within a budget of drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .loss_curves import Curves, counts_within, predicted_loss

MOST = 0.95
"""Largest share of one weight that goes unasked: beyond it a layer's loss is hardly foreseen.

Chosen by hand.
"""

CAUTIOUS = 0.8
"""Part of the way to the budget that the next trial takes: losses grow faster than foreseen."""

ENOUGH = 0.5
"""Share of the budget that is worth no further trial."""

Model = TypeVar("Model")
"""A candidate, whatever the caller makes of the numbers of zeros."""


@dataclass(frozen=True)
class Trial(Generic[Model]):
    """A candidate, its zeros by weight, and the measured share of the outputs that it loses.

    `lost`: NaN where this run measures nothing.
    """

    candidate: Model
    counts: dict[str, int]
    lost: float


def most_zeros(
    curves: Curves,
    limit: float,
    first: float,
    most: float,
    rounds: int,
    attempt: Callable[[dict[str, int]], Trial[Model]],
) -> Trial[Model] | None:
    """The candidate of most zeros that loses at most `limit`; None where none does.

    Candidates are made for a predicted loss, `first` at the beginning, which then follows what was
    measured. `most`: predicted loss at most. `rounds`: candidates that are tried at most.
    """
    budget = min(first, most)
    holds = 0.0
    fails = math.inf
    failures = 0
    best = None
    tried: list[dict[str, int]] = []
    for _ in range(rounds):
        counts = counts_within(curves, budget, MOST)
        # the weights give no more, or no less, than they did
        if counts in tried:
            break
        tried.append(counts)
        # where weights give all that they may, the budget is not spent
        budget = min(budget, predicted_loss(curves, counts))
        trial = attempt(counts)
        # a failure to run is as bad as any loss
        ratio = limit / max(trial.lost, limit / 100)
        if trial.lost <= limit:
            best = trial
            holds = budget
            # no loss at all is no measure of what comes next
            if trial.lost >= ENOUGH * limit or not trial.lost or budget >= most:
                break
            guess = CAUTIOUS * budget * ratio
        else:
            fails = budget
            failures += 1
            # losses may fall more slowly than the budget: each failure makes the next step bolder
            guess = budget * (CAUTIOUS * max(ratio, 0.1)) ** failures
        if not holds < guess < fails:
            guess = math.sqrt(holds * fails)
        budget = min(guess, most)
    return best
