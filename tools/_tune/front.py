"""Trials worth having: those that keep the goal, and those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence

from .goal import Goal
from .trend import likely_drop
from .trial import RecipeTrial

CAUTION = 1.0
"""Standard errors by which a drop has to stay within the budget.

At 1, five of six recipes that look just good enough are so on other data of the same size.
"""


def keeps_accuracy(
    trial: RecipeTrial,
    goal: Goal,
    others: Sequence[RecipeTrial] = (),
    slack: float = 0.0,
) -> bool:
    """True if a trial loses no more than the goal allows.

    `others`: trials of the same search, which tell how likely its drop is. `slack`: part of the
    drop that even the gentlest recipe shows by chance, and that no caution can take away.
    """
    if trial.failure:
        return False
    if goal.max_drop is not None:
        drop = cautious_drop(trial, others)
        if drop is None or not drop - slack <= goal.max_drop:
            return False
    # no noise at all has no SQNR
    if goal.min_sqnr is None or trial.sqnr_db is None:
        return True
    return trial.sqnr_db >= goal.min_sqnr


def cautious_drop(trial: RecipeTrial, others: Sequence[RecipeTrial]) -> float | None:
    """Drop that a trial is held to: the likely one, and what is to spare. None where it has none.

    `others`: as `keeps_accuracy` takes them.
    """
    drop = likely_drop(trial, others)
    if drop is None:
        return None
    return drop.value + CAUTION * drop.error


def looks_within(trial: RecipeTrial, goal: Goal) -> bool:
    """True if the figures that a trial shows keep the goal, whatever chance had in them."""
    if not keeps_cost(trial, goal):
        return False
    if goal.max_drop is None:
        return keeps_accuracy(trial, goal)
    return trial.drop is not None and trial.drop <= goal.max_drop


def is_beyond(trial: RecipeTrial, goal: Goal) -> bool:
    """True if a trial surely loses more than the goal allows, whatever chance had in it."""
    if trial.failure or goal.max_drop is None or trial.drop is None:
        return not keeps_accuracy(trial, goal)
    return trial.drop - CAUTION * (trial.error or 0.0) > goal.max_drop


def keeps_cost(trial: RecipeTrial, goal: Goal) -> bool:
    """True if a trial takes no more room or time than the goal allows, as far as it is known."""
    if trial.failure or trial.bytes is None:
        return False
    if goal.max_bytes is not None and trial.bytes > goal.max_bytes:
        return False
    limit = goal.max_latency_ms
    known = trial.latency_ms
    return limit is None or known is None or known <= limit


def cost_of(trial: RecipeTrial, goal: Goal) -> tuple[float, float]:
    """The figure that is to be small, and the one that decides between equals."""
    size = float(trial.bytes or 0)
    loss = loss_of(trial)
    if goal.objective == "accuracy":
        return loss, size
    if goal.objective == "latency" and trial.ratio is not None:
        return trial.ratio, size
    if goal.objective == "macs" and trial.macs is not None:
        return float(trial.macs), size
    return size, loss


def loss_of(trial: RecipeTrial) -> float:
    """Drop of the metric, or without one the loss of SQNR."""
    if trial.drop is not None:
        return trial.drop
    return -trial.sqnr_db if trial.sqnr_db is not None else float("-inf")


def front_of(trials: Sequence[RecipeTrial], chosen: str = "") -> list[RecipeTrial]:
    """Trials that no other beats in bytes, MACs, latency and accuracy, the smallest first.

    `chosen`: a recipe whose trial is among them in any case.
    """
    sound = [trial for trial in trials if not trial.failure and trial.bytes is not None]
    kept = []
    for trial in sound:
        beaten = [other for other in sound if _beats(other, trial)]
        if not beaten or trial.recipe == chosen:
            kept.append(trial)
    return sorted(kept, key=lambda trial: trial.bytes or 0)


def _beats(first: RecipeTrial, second: RecipeTrial) -> bool:
    """True if the first is nowhere worse and somewhere better."""
    own = _figures(first)
    others = _figures(second)
    if own == others:
        return False
    return all(a <= b for a, b in zip(own, others, strict=True))


def _figures(trial: RecipeTrial) -> tuple[float, ...]:
    """Figures that a user trades, the less the better; 0 where none is known of any trial."""
    size = float(trial.bytes or 0)
    work = float(trial.macs or 0)
    time = trial.ratio or 0.0
    return size, work, time, loss_of(trial)
