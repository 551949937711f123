"""Choice of as many channels as the outputs can bear: predicted, then measured on the result.

With data every group's loss at the outputs is measured, choices of several groups are compared in
one run, and the greediest that keeps to the budget is made; where the result itself does not, a
more cautious one. Without data results are made and compared on made-up inputs, by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._base import Chosen, Context, Declined
from .._core.drift_budget import CHANNELS_WITH_DATA, WITHOUT_DATA, lost_share, sqnr_of
from .._reconstruct.evidence import Evidence, measured_loss
from .account import account_of
from .budget import offers_of
from .ladder import (
    LIMITS,
    Ladder,
    Rung,
    cost_left,
    losses_at_outputs,
    losses_of_weights,
    measured_rungs,
)
from .pruning import Pruned, Pruning
from .select import Candidates, Choice
from .sensitivity import MEASURED, FitData

FITTED = 128
"""Samples that readers are fitted to where losses are predicted, at most. Chosen by hand, not
measured.
"""

ATTEMPTS = 4
"""Results that are made and measured with data, at most. Chosen by hand: one held on ResNet-20,
EfficientNet-Lite0 and MiniLM.
"""

CAUTION = 0.8
"""Part of what the last result's loss would allow that the next may be predicted to lose: another
result costs as much time as all predictions. Chosen by hand, not measured.
"""

WORTH = 0.02
"""Share of the cost that must be saved to be worth drift: without data EfficientNet-Lite0 lost a
point of top-1 for 1.4 % of its multiply-accumulates, ResNet-20 0.4 points for 0.7 %.
"""


@dataclass(frozen=True)
class Terms:
    """Terms on which channels are taken.

    `min_sqnr`: dB that the outputs keep; None for the default. `samples`, `damp`: of fitting, none
    with 0. `counts_up`: whether scores are the loss of a channel and all before it, as `drift`.
    """

    min_sqnr: float | None
    samples: int
    damp: float
    counts_up: bool

    def budget(self, context: Context) -> float:
        """Share of the outputs' mean square that may be lost."""
        if self.min_sqnr is not None:
            return lost_share(self.min_sqnr)
        if context.has_data():
            return lost_share(CHANNELS_WITH_DATA)
        return lost_share(WITHOUT_DATA)


@dataclass(frozen=True)
class Attempt:
    """A pruned model with what was predicted and measured of it.

    `predicted`, `loss`: shares of the outputs' mean square, NaN where they are not known. `error`:
    of the proof.
    """

    choice: Choice
    pruned: Pruned
    error: float | None
    predicted: float
    loss: float


@dataclass(frozen=True)
class Bearable:
    """Result that the outputs bear, and the account of every group.

    `attempt`: None where nothing may go; `declined` then says why, of every group.
    """

    attempt: Attempt | None
    chosen: list[Chosen]
    declined: list[Declined]


Make = Callable[[Rung], Attempt]
"""Makes the choice of a rung, and measures the result."""


def most_bearable(
    pruning: Pruning, candidates: Candidates, terms: Terms, context: Context
) -> Bearable:
    """Take from each group as much as the outputs can bear, if it is worth the drift."""
    whole = pruning.whole
    budget = terms.budget(context)
    # choices are made without the data that judges their results
    evidence = Evidence.of(context)
    judging = evidence.judging
    sure = budget / evidence.allowance

    def build(removed: NDArray[np.intp], samples: int) -> tuple[Pruned, float]:
        pruned = pruning.built(removed, samples, terms.damp, evidence.fitting)
        loss = measured_loss(whole, pruned.model, judging)
        return pruned, loss

    def make(rung: Rung) -> Attempt:
        choice, error = pruning.verified(candidates, rung.choice)
        removed = candidates.removed(choice)
        pruned, loss = build(removed, terms.samples)
        if loss > sure and pruned.fitted:
            # a fit to few samples may do harm
            unfitted, other = build(removed, 0)
            if other < loss:
                pruned = unfitted
                loss = other
        # without data losses are of weights, not of outputs
        predicted = rung.predicted if on_data else math.nan
        return Attempt(
            choice,
            pruned,
            error,
            predicted,
            loss,
        )

    noise = measured_loss(whole, whole, judging)
    is_known = not math.isnan(noise)
    on_data = is_known and context.has_data()
    if on_data:
        data = _fit_data(evidence.fitting, terms)
        losses = losses_at_outputs(pruning, candidates, terms.counts_up, data)
    else:
        losses = losses_of_weights(candidates)
    offers = offers_of(candidates, losses, context.target)
    costs = cost_left(pruning, candidates)
    ladder = Ladder(offers, costs)
    attempt = None
    if on_data:
        limits = [sure * factor for factor in LIMITS]
        rungs = ladder.rungs(limits)
        rungs = measured_rungs(rungs, pruning, candidates, data)
        attempt = first_that_holds(rungs, sure, make)
    elif is_known:
        halvings = ladder.halvings()
        attempt = greediest_that_holds(halvings, sure, make)
    reason = ""
    if not _is_worth_it(attempt, ladder):
        reason = _why_so_little(attempt, ladder, budget, is_known)
        if not is_known:
            context.warn("prune-channels", reason)
        attempt = _without_loss(ladder, sure, make)
    choice = [0] * len(offers)
    if attempt is not None:
        choice = attempt.choice
    chosen = account_of(candidates, offers, choice, budget, on_data)
    if any(choice):
        return Bearable(attempt, chosen, [])
    declined = [Declined(each.where, reason) for each in chosen]
    return Bearable(None, chosen, declined)


def _is_worth_it(attempt: Attempt | None, ladder: Ladder) -> bool:
    """True for a result that saves enough for its drift."""
    if attempt is None:
        return False
    left = ladder.left(attempt.choice)
    return left <= 1 - WORTH


def _without_loss(ladder: Ladder, sure: float, make: Make) -> Attempt | None:
    """Make the choice that is predicted to lose nothing: it goes all the same, if that is so."""
    free = ladder.rungs([0.0])
    if not free:
        return None
    attempt = make(free[0])
    # free on the data that choices are made by
    if attempt.loss > sure:
        return None
    return attempt


def _fit_data(context: Context, terms: Terms) -> FitData:
    """Data on which losses are predicted, of a context."""
    evidence = Evidence.of(context)
    return FitData(
        fitting=evidence.fitting,
        judging=evidence.judging,
        fitted=min(terms.samples or FITTED, FITTED),
        judged=MEASURED,
        damp=terms.damp,
    )


def first_that_holds(
    rungs: Sequence[Rung], budget: float, make: Make
) -> Attempt | None:
    """Make choices, the greediest that is predicted to keep to a budget first, until one does."""
    most = math.inf
    made = 0
    for rung in rungs:
        # the first by what it lost as a whole; then each has to be as much more cautious
        is_too_greedy = rung.summed > most if made else rung.predicted > budget
        if is_too_greedy:
            continue
        attempt = make(rung)
        if attempt.loss <= budget:
            return attempt
        made += 1
        if made == ATTEMPTS:
            return None
        most = CAUTION * rung.summed * budget / attempt.loss
    return None


def greediest_that_holds(
    rungs: Sequence[Rung], budget: float, make: Make
) -> Attempt | None:
    """Bisect for the greediest result that keeps to a budget; more cautious ones lose less."""
    best = None
    low, high = 0, len(rungs)
    while low < high:
        middle = (low + high) // 2
        attempt = make(rungs[middle])
        if attempt.loss <= budget:
            best = attempt
            high = middle
        else:
            low = middle + 1
    return best


def _why_so_little(
    attempt: Attempt | None, ladder: Ladder, budget: float, is_known: bool
) -> str:
    """Reason why nothing goes that would be missed."""
    least = f"{sqnr_of(budget):.1f} dB"
    if not is_known:
        return "the model was not run, so how much the outputs bear is not known: give a ratio"
    if attempt is None:
        return f"the outputs would keep less than {least}: give a lower min_sqnr, or a ratio"
    saved = 1 - ladder.left(attempt.choice)
    return (
        f"at {least} only {saved:.1%} of the multiply-accumulates would go, too few for the drift: "
        "give more data, a lower min_sqnr, or a ratio"
    )
