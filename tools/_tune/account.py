"""The account of a search: the JSON object `tune`."""

from __future__ import annotations

from typing import Any

from .agreement import AnsweredBy
from .front import cautious_drop, cost_of, front_of, keeps_cost, looks_within
from .goal import Goal
from .precision import ONE_SIDED_95
from .search import Searched
from .trial import RecipeTrial, Task
from .verdict import JudgedRecipe


def search_facts(
    goal: Goal, task: Task, found: Searched, judged: JudgedRecipe, seconds: float
) -> dict[str, Any]:
    """Goal, recipe, its figures on both halves, and every trial with what speaks against it."""
    # what beats the chosen one may have failed on the unseen half
    front = front_of(found.trials, judged.seen.recipe)
    on_front = {each.recipe for each in front}
    points = []
    for trial in front:
        why = _why_not_taken(trial, goal, found, judged)
        points.append({**trial.as_dict(), "reason": why})
    rejected = []
    for trial in found.trials:
        if trial.recipe not in on_front:
            reason = _reason(trial, goal, found)
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
        "front": points,
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


def _why_not_taken(
    trial: RecipeTrial, goal: Goal, found: Searched, judged: JudgedRecipe
) -> str | None:
    """Reason for which a trial was not taken that seems better than the chosen one.

    None where its figures on the seen half say it: it costs more, or misses the budget.
    """
    # one that was trained at the end has figures of the unseen half alone
    chosen = judged.unseen if judged.seen.bytes is None else judged.seen
    if trial.recipe == chosen.recipe or not looks_within(trial, goal):
        return None
    own = cost_of(trial, goal)
    taken = cost_of(chosen, goal)
    if own >= taken:
        return None
    doubt = _doubt(trial, goal, found)
    return doubt or NOT_JUDGED


NOT_JUDGED = (
    "not judged on data that the search did not see: others failed there, and the gentlest came "
    "before this one"
)


def _reason(trial: RecipeTrial, goal: Goal, found: Searched) -> str:
    """Reason for which a trial is not on the front."""
    doubt = _doubt(trial, goal, found)
    if doubt is not None:
        return doubt
    if trial.failure:
        return trial.failure
    if not found.keeps_accuracy(trial, goal):
        return "loses more than the budget allows"
    if not keeps_cost(trial, goal):
        return "costs more than the budget allows"
    return "another one is better in all figures"


def _doubt(trial: RecipeTrial, goal: Goal, found: Searched) -> str | None:
    """Reason against a trial whose own figures are within the budget; None: nothing is."""
    missed = found.missed.get(trial.recipe)
    if missed is not None:
        return f"on data that the search did not see: {missed}"
    if found.keeps_accuracy(trial, goal) or not looks_within(trial, goal):
        return None
    drop = cautious_drop(trial, found.trials)
    return (
        "too close to the budget to be sure of: with one standard error more, the drop is "
        f"{drop:.4f}"
    )
