"""Ladder of choices, from greedy to cautious: each saves most for what it is predicted to lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .budget import Curve, Offer, allocate_within_loss, total_loss
from .importance.scores import Scores
from .pruning import Pruning
from .select import Candidates, Choice
from .sensitivity import FitData, choice_drifts, output_losses

LIMITS = (2.0, 1.4, 1.0, 0.7, 0.5, 0.25, 0.1, 0.03)
"""Limits of the predicted loss, by the budget.

A choice as a whole keeps less than the sum of its groups' losses says: at most 1.4 dB less on
ResNet-20 and EfficientNet-Lite0, 2 to 4 dB less on MiniLM.
"""

HALVINGS = 16
"""Halvings of a loss that is predicted of weights alone, which says little of the outputs."""

SMALLEST = 1e-300
"""Sum of squared scores that stands for none."""


@dataclass(frozen=True)
class Rung:
    """A choice and what it is predicted to lose: with data, shares of the outputs' mean square.

    `summed`: over its groups, each measured alone. `predicted`: measured as a whole where there is
    data, which on few samples does not fall from rung to rung.
    """

    choice: Choice
    summed: float
    predicted: float


@dataclass(frozen=True)
class Ladder:
    """Choices by what they are predicted to lose, and what they leave of the cost."""

    offers: Sequence[Offer]
    left: Callable[[Choice], float]

    def rungs(self, limits: Sequence[float]) -> list[Rung]:
        """Choices that save most within each of the falling limits; none twice, none empty."""
        rungs: list[Rung] = []
        last: Choice = []
        for limit in limits:
            choice = allocate_within_loss(self.offers, self.left, limit)
            if any(choice) and choice != last:
                loss = total_loss(self.offers, choice)
                rungs.append(Rung(choice, loss, loss))
                last = choice
        return rungs

    def halvings(self) -> list[Rung]:
        """Choices from everything that may go downwards."""
        everything = [int(offer.counts[-1]) for offer in self.offers]
        most = total_loss(self.offers, everything)
        return self.rungs([most * 0.5**halving for halving in range(HALVINGS)])


def cost_left(pruning: Pruning, candidates: Candidates) -> Callable[[Choice], float]:
    """Fraction of the multiply-accumulates that a choice leaves; of bytes where none is known."""
    orders = candidates.orders()
    before = pruning.before

    def left(choice: Choice) -> float:
        after = pruning.cost(choice, orders)
        if before.macs:
            return after.macs / before.macs
        return after.bytes / max(before.bytes, 1)

    return left


def losses_at_outputs(
    pruning: Pruning, candidates: Candidates, counts_up: bool, data: FitData
) -> list[Curve]:
    """Share of the outputs' mean square that each group loses with its first n channels.

    `counts_up`: whether scores are already the loss of a channel and all before it.
    """
    scores = list(candidates.scores)
    if not counts_up:
        scores = [_counted_up(each) for each in scores]
    return output_losses(
        pruning.groups,
        pruning.solution,
        pruning.whole,
        scores,
        data,
    )


def _counted_up(scores: Scores) -> Scores:
    """Scores added up along the order of removal, which stays as it is."""
    order = np.argsort(scores, kind="stable")
    # constant channels score below zero: they add nothing
    rising = np.maximum(scores[order], 0.0)
    totals = np.empty(len(scores))
    totals[order] = np.cumsum(rising)
    return totals


def losses_of_weights(candidates: Candidates) -> list[Curve]:
    """Share of a group's squared scores that its first n channels have, n = 0 .. all."""
    losses = []
    for scores in candidates.scores:
        rising = np.maximum(np.sort(scores), 0.0)
        sums = np.cumsum(np.square(rising))
        total = max(float(sums[-1]), SMALLEST)
        losses.append(np.append(0.0, sums / total))
    return losses


def measured_rungs(
    rungs: Sequence[Rung], pruning: Pruning, candidates: Candidates, data: FitData
) -> list[Rung]:
    """The choices with the drift that each costs as a whole, its readers fitted, in one run."""
    drifts = choice_drifts(
        pruning.groups,
        pruning.solution,
        pruning.whole,
        candidates.scores,
        [rung.choice for rung in rungs],
        data,
    )
    measured = []
    for rung, drift in zip(rungs, drifts, strict=True):
        # NaN where no layer that could be fitted reads any of the channels
        predicted = rung.summed if math.isnan(drift) else drift
        measured.append(Rung(rung.choice, rung.summed, predicted))
    return measured
