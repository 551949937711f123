"""The account of a search: the JSON object `tune`."""

from __future__ import annotations

from typing import Any

from .agreement import AnsweredBy
from .front import front_of, keeps_cost
from .goal import Goal
from .precision import ONE_SIDED_95
from .search import Searched
from .trial import RecipeTrial, Task
from .verdict import JudgedRecipe


def search_facts(
    goal: Goal, task: Task, found: Searched, judged: JudgedRecipe, seconds: float
) -> dict[str, Any]:
    """Goal, recipe, its figures on both halves, and every trial with what speaks against it."""
    front = front_of(found.trials)
    on_front = {each.recipe for each in front}
    rejected = []
    for trial in found.trials:
        if trial.recipe not in on_front:
            reason = _reason(trial, goal, found, judged)
            rejected.append({**trial.as_dict(), "reason": reason})
    return {
        "objective": goal.objective,
        "budget": goal.as_dict(),
        "recipe": judged.seen.recipe,
        "measured_by": _measure_of(task),
        "split": {
            "seed": task.seed,
            "seen": _half_facts(judged.seen),
            "unseen": _half_facts(judged.unseen),
        },
        "trials": len(found.trials),
        "seconds": round(seconds, 1),
        "front": [trial.as_dict() for trial in front],
        "rejected": rejected,
    }


def _measure_of(task: Task) -> str:
    """Measure that the budget for accuracy is held against, in words."""
    if task.metric is None:
        return "SQNR of the outputs to the original's"
    if isinstance(task.labelled, AnsweredBy):
        return "agreement with the original's own classes (no labels were given)"
    return str(task.metric)


def _half_facts(trial: RecipeTrial) -> dict[str, float | None]:
    """Figures of a recipe on one half of the data."""
    smallest = None if trial.error is None else ONE_SIDED_95 * trial.error
    return {
        "metric": trial.metric,
        "drop": trial.drop,
        "standard_error": trial.error,
        "smallest_difference": smallest,
        "sqnr_db": trial.sqnr_db,
    }


def _reason(
    trial: RecipeTrial, goal: Goal, found: Searched, judged: JudgedRecipe
) -> str:
    """Reason for which a trial is not on the front."""
    for other, reason in judged.missed:
        if other.recipe == trial.recipe:
            return f"on data that the search did not see: {reason}"
    if trial.failure:
        return trial.failure
    if not found.keeps_accuracy(trial, goal):
        return "loses more than the budget allows"
    if not keeps_cost(trial, goal):
        return "costs more than the budget allows"
    return "another one is better in all figures"
