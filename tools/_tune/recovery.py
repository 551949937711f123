"""Recovery: a recipe that loses more than the budget allows, and training that makes up for it."""

from __future__ import annotations

from ...passes._core.pipeline import Pipeline, parse
from .front import cost_of, keeps_cost, loss_of
from .goal import Goal
from .search import Searched
from .trial import RecipeTrial

RECOVERED_DB = 6.0
"""SQNR that training is trusted to win back: three quarters of the noise. Chosen by hand."""


def require_training() -> None:
    """Raise UsageError where models cannot be trained: without PyTorch."""
    from ...frontends import trainable  # noqa: F401 - the import raises it


def recovered_recipe(goal: Goal, found: Searched, minutes: float) -> str | None:
    """The recipe to train for so many minutes; None where no trial ended.

    The cheapest trial that keeps no more than `RECOVERED_DB` less than the best one within the
    budget; that one itself where there is none.
    """
    sound = [trial for trial in found.trials if not trial.failure]
    if not sound:
        return None
    fitting = found.fitting(goal)
    if fitting:
        best = min(fitting, key=lambda trial: cost_of(trial, goal))
    else:
        best = min(sound, key=loss_of)
    within_reach = [trial for trial in sound if _is_within_reach(trial, best, goal)]
    chosen = min(within_reach, key=lambda trial: cost_of(trial, goal), default=best)
    return _trained(chosen.recipe, minutes)


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
    last = max(index for index, each in enumerate(passes) if each.effect == "lossy")
    passes.insert(last + 1, training)
    return str(Pipeline(tuple(passes)))
