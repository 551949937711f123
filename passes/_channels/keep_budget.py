"""Results as asked for: by a ratio, or within a budget that holds at the end.

What the proof or the fit takes back is taken elsewhere: a group that fails the proof stays, so the
others give more; biases that fits add are parameters, too. Where nothing more can go, a warning
says how far the result is from its budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from .._base import Context
from .decide import BudgetLimit, SelectionRule, decide, fraction_left, measured_losses
from .importance.scores import Scores
from .pruning import Pruned, Pruning
from .select import Candidates, Choice

ROUNDS = 4
"""Results that are made at most; the second makes room for what fits add. Chosen by hand: two hold
the budgets of all models tried.
"""

DIGITS = 6
"""Decimals of a percentage at most: a budget missed by little is told from one that is kept."""

Build = Callable[[Choice], Pruned]
"""Makes the model of a choice that is not empty, its layers fitted."""

Made = tuple[Choice, Pruned, float | None]
"""A choice, its model, and the error of its proof."""


def made_as_asked(
    rule: SelectionRule,
    pruning: Pruning,
    candidates: Candidates,
    context: Context,
    build: Build,
) -> Made | None:
    """Make what a rule asks for; None where nothing goes. Warns where a budget is not kept."""
    limit = rule.budget
    if limit is None:
        choice = decide(rule, pruning, candidates, context, list)
        choice, error = pruning.verified(candidates, choice)
        return (choice, build(choice), error) if any(choice) else None

    @cache
    def losses() -> list[Scores]:
        return measured_losses(rule, pruning, candidates.scores, context)

    def proved(goal: float) -> tuple[Choice, float | None]:
        """Choice within a goal that the proof leaves whole."""
        aim = replace(rule, budget=replace(limit, fraction=goal))
        open_to = pruning.without_failed(candidates)
        while True:
            choice = decide(aim, pruning, open_to, context, losses)
            kept, error = pruning.verified(open_to, choice)
            if kept == choice:
                return choice, error
            open_to = pruning.without_failed(open_to)

    planned = fraction_left(limit, pruning, candidates)
    goal = limit.fraction
    made = None
    for _ in range(ROUNDS):
        choice, error = proved(goal)
        left = plan = planned(choice)
        if not any(choice):
            break
        made = (choice, build(choice), error)
        added = pruning.added(limit.kind, made[1], choice, candidates)
        left = plan + added
        # a plan beyond its goal has nothing more to give
        if left <= limit.fraction or plan > goal:
            break
        goal = max(limit.fraction - added, 0.0)
    if left > limit.fraction:
        _warn_of(rule, limit, left, context)
    return made


def _warn_of(
    rule: SelectionRule, limit: BudgetLimit, left: float, context: Context
) -> None:
    rest = "what cannot lose channels"
    if rule.frequency is not None:
        rest = f"{rest}, or less surely than frequency={rule.frequency:g}"
    stays, asked = _told_apart(left, limit.fraction)
    context.warn(
        "prune-channels",
        f"{stays} of the {limit.option} stay, not {asked}: the rest is in {rest}",
    )


def _told_apart(left: float, asked: float) -> tuple[str, str]:
    """Two percentages, with as many decimals as it takes to tell them apart."""
    pair = ("", "")
    for digits in range(DIGITS):
        pair = (f"{left:.{digits}%}", f"{asked:.{digits}%}")
        if pair[0] != pair[1]:
            break
    return pair
