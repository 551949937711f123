"""Recovery: a recipe that loses more than the budget allows, and training that makes up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...passes._core.pipeline import Pipeline, parse
from .families import RecipeFamily
from .front import cost_of, keeps_cost, loss_of
from .goal import Goal
from .search import GROWTH, Searched
from .trial import RecipeTrial

RECOVERED_DB = 4.5
"""SQNR that training is trusted to win back: two thirds of the noise.

Of ResNet-20, eight minutes took the drop of a recipe 6.0 dB below the best one within a budget of
0.005 from 0.018 to 0.0072, which is too much.
"""


def require_training() -> None:
    """Raise UsageError where models cannot be trained: without PyTorch."""
    from ...frontends import trainable  # noqa: F401 - the import raises it


def recovered_recipe(
    goal: Goal, found: Searched, family: RecipeFamily | None, minutes: float
) -> str | None:
    """The recipe to train for so many minutes; None where no trial takes as little as it may.

    The cheapest trial that keeps no more than `RECOVERED_DB` less than the best one within the
    budget. Where that is the best one itself: the recipe of `family` that is to keep so much less;
    without a family, or where accuracy has no budget, the best one.
    """
    sound = [trial for trial in found.trials if not trial.failure]
    if not sound:
        return None
    if goal.max_bytes is not None:
        with_room = replace(goal, max_bytes=int((1 - GROWTH) * goal.max_bytes))
        if any(keeps_cost(trial, with_room) for trial in sound):
            goal = with_room
    if not goal.limits_accuracy and not any(keeps_cost(trial, goal) for trial in sound):
        # training makes nothing smaller or faster
        return None
    best = _best(goal, found, sound)
    chosen = best
    for trial in sound:
        if not _is_within_reach(trial, best, goal):
            continue
        if cost_of(trial, goal) < cost_of(chosen, goal):
            chosen = trial
    recipe = chosen.recipe
    if goal.limits_accuracy and chosen is best and family is not None:
        recipe = _harsher(best, family)
    return _trained(recipe, minutes)


def _harsher(best: RecipeTrial, family: RecipeFamily) -> str:
    """The recipe that is to keep `RECOVERED_DB` less than a trial."""
    if best.sqnr_db is None:
        return best.recipe
    return family.proposal(best.sqnr_db - RECOVERED_DB).recipe


def _best(goal: Goal, found: Searched, sound: Sequence[RecipeTrial]) -> RecipeTrial:
    """The cheapest trial within the budget; where there is none, the one that loses least."""
    fitting = found.fitting(goal)
    if fitting:
        return min(fitting, key=lambda trial: cost_of(trial, goal))
    return min(sound, key=loss_of)


def _is_within_reach(trial: RecipeTrial, best: RecipeTrial, goal: Goal) -> bool:
    """True if training may make a trial as good as the best one."""
    if not keeps_cost(trial, goal):
        return False
    if trial.sqnr_db is None or best.sqnr_db is None:
        return False
    return trial.sqnr_db >= best.sqnr_db - RECOVERED_DB


def _trained(recipe: str, minutes: float) -> str:
    """The recipe with training behind all that changes weights: on the grid that is deployed."""
    passes = list(parse(recipe).passes)
    (training,) = parse(f"finetune(minutes={minutes:g})").passes
    behind = 0
    for index, pass_ in enumerate(passes):
        if pass_.effect == "lossy":
            behind = index + 1
    passes.insert(behind, training)
    return str(Pipeline(tuple(passes)))
