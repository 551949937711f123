"""Allocation under a budget: every group gives channels where they save most for their loss."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .._core.targets import TARGETS
from .._dims.groups import Group
from .importance.scores import matrices
from .select import Candidates, Choice

Curve = NDArray[np.float64]
"""A quantity of a group once its first n channels are gone, n = 0 .. all."""

Budget = Callable[[Choice], float]
"""Cost of what a choice leaves, as a fraction of the whole."""

IDLE = 0.05
"""Share of a channel's cost that is saved when it leaves a block of which others stay (measured: 0
to 0.1).
"""

ROUNDS = 4
"""Times that savings are counted anew, at the choice that the last ones led to. Chosen by hand: the
best choice of all rounds is taken.
"""

BISECTIONS = 50
"""Halvings of the range of prices, in logarithms: 24 decades become less than rounding."""

LOWEST_PRICE, HIGHEST_PRICE = 1e-12, 1e12
"""Loss per saving at which nothing goes, and at which everything does that may."""

RATIO_BISECTIONS = 24
"""Halvings of the range of ratios: a ten-millionth, less than one channel of any model."""


@dataclass(frozen=True)
class Offer:
    """Channels that a group may give.

    `counts` of channels, ascending from 0, each with its `loss` and what it `saves`. Savings are in
    channels: those within a block that the target computes at once count less than the last of it.
    """

    counts: NDArray[np.intp]
    loss: Curve
    saves: Curve

    def loss_at(self, count: int) -> float:
        """Loss of one of the counts."""
        place = np.searchsorted(self.counts, count)
        return float(self.loss[place])


def allocate_under_budget(
    candidates: Candidates,
    losses: Sequence[Curve],
    cost: Budget,
    most: float,
    target: str,
) -> Choice:
    """Choice of least total loss whose cost is at most `most`; the cheapest where there is none.

    Every group gives the count at which loss - price * savings is least, for the lowest price that
    meets the budget; what then is left of the budget takes back what loses most for what it saves.

    Source: Everett, Generalized Lagrange Multiplier Method, Operations Research 11 (1963), 399-417.
    """
    offers = offers_of(candidates, losses, target)
    everything = [int(offer.counts[-1]) for offer in offers]
    best = everything
    least = np.inf
    choice = [0] * len(offers)
    for _ in range(ROUNDS):
        # what a channel saves depends on how wide its neighbours are left
        priced = _priced(offers, choice, cost)
        choice = _at_lowest_price(priced, cost, most)
        if cost(choice) > most:
            break
        choice = _taken_back(
            choice,
            priced,
            cost,
            most,
        )
        loss = total_loss(offers, choice)
        if loss < least:
            best = choice
            least = loss
    return best


def allocate_within_loss(offers: Sequence[Offer], cost: Budget, most: float) -> Choice:
    """Choice of least cost whose total loss is at most `most`; nothing where there is none.

    The counterpart of `allocate_under_budget`: the highest price is sought that keeps to the loss,
    and what is left of it takes what saves most for it.
    """
    best = [0] * len(offers)
    least = np.inf
    choice = best
    for _ in range(ROUNDS):
        priced = _priced(offers, choice, cost)
        choice = _at_highest_price(priced, most)
        choice = _taken_further(choice, priced, most)
        left = cost(choice)
        if left < least:
            best = choice
            least = left
    return best


def offers_of(
    candidates: Candidates, losses: Sequence[Curve], target: str
) -> list[Offer]:
    """Offers of all groups, by what they lose once its first n channels are gone, n = 0 .. all."""
    offers = []
    for index, curve in enumerate(losses):
        offer = _offer(
            candidates,
            index,
            curve,
            target,
        )
        offers.append(offer)
    return offers


def _priced(offers: Sequence[Offer], choice: Choice, cost: Budget) -> list[Offer]:
    """The offers with savings as fractions of the cost, the other groups being as chosen."""
    everything = [int(offer.counts[-1]) for offer in offers]
    gains = _gains(choice, everything, cost)
    priced = []
    for offer, gain in zip(offers, gains, strict=True):
        saves = offer.saves * gain
        priced.append(replace(offer, saves=saves))
    return priced


def _offer(candidates: Candidates, index: int, loss: Curve, target: str) -> Offer:
    """Counts that the widths of a group allow; of a convolution those that run well."""
    group = candidates.groups[index]
    widths = candidates.widths[index]
    size = candidates.size(index)
    block = 1
    if is_convolved(group):
        facts = TARGETS[target]
        block = facts.conv_width
        fits = widths % facts.width_step == 0
        # the least width and the present one are offered whatever the step
        least = widths == widths[0]
        present = widths == size
        widths = widths[fits | least | present]
    counts = np.sort(size - widths)
    # -(-a // b) is a / b rounded up: a block is computed whole however few channels it holds
    blocks = -(-size // block)
    left = size - counts
    blocks_left = -(-left // block)
    emptied = (blocks - blocks_left) * block
    in_whole_blocks = np.minimum(emptied, size)
    at_once = (1 - IDLE) * in_whole_blocks
    saves = IDLE * counts + at_once
    return Offer(counts, loss[counts], saves)


def is_convolved(group: Group) -> bool:
    """Return whether a group has places in a convolution's kernel."""
    for value, _ in matrices(group):
        tensor = value.const_value
        # (M, C, *K): a matrix has no spatial axes
        if tensor is not None and len(tensor.shape) > 2:
            return True
    return False


def total_loss(offers: Sequence[Offer], choice: Choice) -> float:
    """Sum of what the groups of a choice lose."""
    pairs = zip(offers, choice, strict=True)
    return sum(offer.loss_at(count) for offer, count in pairs)


def _gains(choice: Choice, everything: Choice, cost: Budget) -> list[float]:
    """Average saving by one channel of each group, the other groups being as chosen."""
    gains = []
    for index, most in enumerate(everything):
        whole = _with(choice, index, 0)
        narrowest = _with(choice, index, most)
        saved = cost(whole) - cost(narrowest)
        gains.append(saved / max(most, 1))
    return gains


def _with(choice: Choice, index: int, count: int) -> Choice:
    """A choice with another count for one group."""
    other = list(choice)
    other[index] = count
    return other


def _at_lowest_price(offers: Sequence[Offer], cost: Budget, most: float) -> Choice:
    """Choice at the lowest price per saving that meets the budget, or at an exorbitant one."""
    low, high = LOWEST_PRICE, HIGHEST_PRICE
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low * high))
        if cost(_at(middle, offers)) <= most:
            high = middle
        else:
            low = middle
    return _at(high, offers)


def _at_highest_price(offers: Sequence[Offer], most: float) -> Choice:
    """Choice at the highest price per saving that keeps to a loss; nothing where none does."""
    low, high = LOWEST_PRICE, HIGHEST_PRICE
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low * high))
        if total_loss(offers, _at(middle, offers)) <= most:
            low = middle
        else:
            high = middle
    choice = _at(low, offers)
    if total_loss(offers, choice) > most:
        return [0] * len(offers)
    return choice


def _at(price: float, offers: Sequence[Offer]) -> Choice:
    """Every group at the count where its loss less the price of its savings is least."""
    choice = []
    for offer in offers:
        balance = offer.loss - price * offer.saves
        best = np.argmin(balance)
        count = int(offer.counts[best])
        choice.append(count)
    return choice


def _taken_further(choice: Choice, offers: Sequence[Offer], most: float) -> Choice:
    """Narrow groups while the loss lasts, each time by the step that saves most for its loss."""
    choice = list(choice)
    left = most - total_loss(offers, choice)
    waiting: list[tuple[float, int, int]] = []

    def wait(index: int) -> None:
        step = _best_step(offers[index], choice[index], left)
        if step is not None:
            worth, count = step
            # a heap pops its least
            heapq.heappush(waiting, (-worth, index, count))

    for index in range(len(offers)):
        wait(index)
    while waiting:
        _, index, count = heapq.heappop(waiting)
        added = offers[index].loss_at(count) - offers[index].loss_at(choice[index])
        # others may have used up the loss since
        if added <= left:
            choice[index] = count
            left -= added
        wait(index)
    return choice


def _best_step(offer: Offer, count: int, left: float) -> tuple[float, int] | None:
    """(saving for each loss added, count) of the best step that adds at most `left`; or None."""
    place = int(np.searchsorted(offer.counts, count))
    after = place + 1
    saved = offer.saves[after:] - offer.saves[place]
    added = offer.loss[after:] - offer.loss[place]
    # what adds no loss is worth anything
    divisors = np.maximum(added, 1e-12)
    worth = saved / divisors
    fits = added <= left
    pays = saved > 0
    worth = np.where(fits & pays, worth, 0.0)
    if not worth.any():
        return None
    best = int(np.argmax(worth))
    best_worth = float(worth[best])
    best_count = int(offer.counts[after + best])
    return best_worth, best_count


def _taken_back(
    choice: Choice, offers: Sequence[Offer], cost: Budget, most: float
) -> Choice:
    """Widen groups while the budget lasts.

    Each time by the step that regains most loss for the saving it gives up, of those left.
    """
    steps = []
    for offer, count in zip(offers, choice, strict=True):
        steps.append(_steps(offer, count))
    while any(steps):
        waiting = [index for index, each in enumerate(steps) if each]
        # each list begins with the best step of its group
        index = max(waiting, key=lambda i: steps[i][0])
        _, count = steps[index].pop(0)
        wider = _with(choice, index, count)
        # a step beyond the budget is dropped, smaller ones of the group remain
        if cost(wider) <= most:
            choice = wider
            steps[index] = _steps(offers[index], count)
    return choice


def _steps(offer: Offer, count: int) -> list[tuple[float, int]]:
    """(loss regained for each saving given up, count) for every smaller count, the best first."""
    counts = offer.counts
    loss = offer.loss
    saves = offer.saves
    place = int(np.searchsorted(counts, count))
    spent = saves[place] - saves[:place]
    regained = loss[place] - loss[:place]
    # giving back what saves nothing is worth anything
    spent = np.maximum(spent, 1e-12)
    worth = regained / spent
    steps = []
    for each, smaller in zip(worth, counts[:place], strict=True):
        if each > 0:
            step = (float(each), int(smaller))
            steps.append(step)
    steps.sort(reverse=True)
    return steps


def smallest_ratio(
    budget: Budget, fraction: float, pick: Callable[[float], Choice]
) -> Choice:
    """Choice of the smallest ratio whose cost is at most `fraction` of the whole.

    That of ratio 1 where none is. What it leaves of the budget goes to groups that are wider under
    the next smaller ratio: there many groups may change at once.
    """
    if budget(pick(1.0)) > fraction:
        return pick(1.0)
    low, high = 0.0, 1.0
    for _ in range(RATIO_BISECTIONS):
        # rounded, so that `share` reads the ratio as a short decimal number
        half_way = (low + high) / 2
        middle = round(half_way, 9)
        if budget(pick(middle)) <= fraction:
            high = middle
        else:
            low = middle
    choice = pick(high)
    for index, count in enumerate(pick(low)):
        wider = _with(choice, index, min(count, choice[index]))
        if budget(wider) <= fraction:
            choice = wider
    return choice
