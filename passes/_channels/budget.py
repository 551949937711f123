"""The least loss within a budget: every group gives channels where they save the most for what they
cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .._core.targets import TARGETS
from .._dims.groups import Group
from .select import Candidates, Choice

Curve = NDArray[np.float64]
"""Something of a group once its first n channels are gone, n = 0 .. all."""

Budget = Callable[[Choice], float]
"""What a choice leaves, as a fraction of the whole."""

IDLE = 0.05
"""Of what a channel costs, the share saved when it leaves a block of which others stay (measured: 0
to 0.1).
"""

ROUNDS = 4
"""Times that savings are counted anew, at the choice that the last ones led to."""


@dataclass(frozen=True)
class Offer:
    """What a group may give: `counts` of channels, ascending from 0, each with its `loss` and what
    it `saves`.

    Savings are in channels: those within a block that the target computes at once count less than
    the last of it.
    """

    counts: NDArray[np.intp]
    loss: Curve
    saves: Curve


def thriftiest(
    candidates: Candidates,
    losses: Sequence[Curve],
    cost: Budget,
    most: float,
    target: str,
) -> Choice:
    """The choice of least total loss whose cost is at most `most`; the cheapest one where there is
    none.

    Every group gives the count at which loss - price * savings is least, for the lowest price that
    meets the budget; what then is left of the budget takes back what loses most for what it saves.

    Source: Everett, Generalized Lagrange Multiplier Method, Operations Research 11 (1963), 399-417.
    """
    offers = [
        _offer(candidates, index, loss, target) for index, loss in enumerate(losses)
    ]
    everything = [int(offer.counts[-1]) for offer in offers]
    best, least, choice = everything, np.inf, [0] * len(offers)
    for _ in range(ROUNDS):
        priced = [
            replace(offer, saves=offer.saves * gain)
            for offer, gain in zip(
                offers, _gains(choice, everything, cost), strict=True
            )
        ]
        choice = _at_lowest_price(priced, cost, most)
        if cost(choice) > most:
            break
        choice = _taken_back(choice, priced, cost, most)
        loss = sum(
            offer.loss[np.searchsorted(offer.counts, n)]
            for offer, n in zip(offers, choice, strict=True)
        )
        if loss < least:
            best, least = choice, loss
    return best


def _offer(candidates: Candidates, index: int, loss: Curve, target: str) -> Offer:
    group, widths = candidates.groups[index], candidates.widths[index]
    size, block = len(group.channels), 1
    if _convolved(group):
        block = TARGETS[target].conv_width
        widths = widths[
            (widths % TARGETS[target].width_step == 0)
            | (widths == widths[0])
            | (widths == size)
        ]
    counts = np.sort(size - widths)
    blocks = (-(-size // block) - -(-(size - counts) // block)) * block
    return Offer(
        counts, loss[counts], IDLE * counts + (1 - IDLE) * np.minimum(blocks, size)
    )


def _convolved(group: Group) -> bool:
    return any(
        v.const_value is not None and len(v.const_value.shape) > 2
        for v, _ in group.weights
    )


def _gains(choice: Choice, everything: Choice, cost: Budget) -> list[float]:
    """Of each group what one channel saves on average, the other groups being as chosen."""
    gains = []
    for i, most in enumerate(everything):
        none, all_of_it = (
            cost([*choice[:i], count, *choice[i + 1 :]]) for count in (0, most)
        )
        gains.append((none - all_of_it) / max(most, 1))
    return gains


def _at_lowest_price(offers: Sequence[Offer], cost: Budget, most: float) -> Choice:
    """What every group gives at the lowest price per saving that meets the budget, or at an
    exorbitant one.
    """

    def at(price: float) -> Choice:
        return [
            int(offer.counts[np.argmin(offer.loss - price * offer.saves)])
            for offer in offers
        ]

    low, high = 1e-12, 1e12
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if cost(at(middle)) <= most else (middle, high)
    return at(high)


def _taken_back(
    choice: Choice, offers: Sequence[Offer], cost: Budget, most: float
) -> Choice:
    """Widen groups while the budget lasts: each time the step that regains most for what it costs,
    of those left.
    """
    choice, steps = (
        list(choice),
        [(_steps(offer, count)) for offer, count in zip(offers, choice, strict=True)],
    )
    while any(steps):
        i = max((i for i, each in enumerate(steps) if each), key=lambda i: steps[i][0])
        _, count = steps[i].pop(0)
        wider = [*choice[:i], count, *choice[i + 1 :]]
        if cost(wider) <= most:
            choice, steps[i] = wider, _steps(offers[i], count)
    return choice


def _steps(offer: Offer, count: int) -> list[tuple[float, int]]:
    """(loss regained for each saving given up, count) for every smaller count, the best first."""
    place = int(np.searchsorted(offer.counts, count))
    spent = np.maximum(offer.saves[place] - offer.saves[:place], 1e-12)
    worth = (offer.loss[place] - offer.loss[:place]) / spent
    return sorted(
        (
            (float(w), int(n))
            for w, n in zip(worth, offer.counts, strict=False)
            if w > 0
        ),
        reverse=True,
    )
