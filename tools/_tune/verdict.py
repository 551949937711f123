"""The verdict: the best recipes once more, judged on the half that the search never saw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ... import CheckError
from .._run.driver import optimize_model
from .._run.result import RunResult
from .._run.settings import RunSettings
from ..functions import verify
from .front import cost_of, loss_of
from .goal import Goal
from .search import Searched
from .trial import UNSEEN, RecipeTrial, Task, trial_of

MOST = 4
"""Recipes that are held against the other half of the data, at most."""


@dataclass(frozen=True)
class JudgedRecipe:
    """A recipe that keeps the goal on both halves.

    `result`: its run. `seen`, `unseen`: its figures on either half.
    """

    result: RunResult
    seen: RecipeTrial
    unseen: RecipeTrial


def verdict(
    settings: RunSettings,
    goal: Goal,
    task: Task,
    found: Searched,
    recovered: str | None = None,
) -> JudgedRecipe:
    """Judge the best recipes until one keeps the goal; nothing is written.

    `settings`: those of the result. `found`: is told which recipes failed. `recovered`: a recipe
    that trains, and comes first; no trial was made of it. Errors: CheckError where none keeps it:
    the nearest is named.
    """
    candidates = candidates_of(found, goal)
    if recovered is not None:
        candidates.insert(0, RecipeTrial(recovered))
    for trial in candidates:
        final = dataclasses.replace(
            task.settings(trial.recipe, UNSEEN),
            layers=settings.layers,
            explain_loss=settings.explain_loss,
            report=settings.report,
            progress=settings.progress,
            max_drop=goal.max_drop,
        )
        try:
            result = optimize_model(final)
        except CheckError as error:
            found.missed[trial.recipe] = f"{error.where}: {error.problem}"
            continue
        unseen = _on_unseen(trial, result, task)
        problem = _problem(unseen, goal)
        if problem is None:
            return JudgedRecipe(result, trial, unseen)
        found.missed[trial.recipe] = problem
    raise _impossible(goal, found)


def candidates_of(found: Searched, goal: Goal) -> list[RecipeTrial]:
    """Trials to be judged until one keeps the goal: the cheapest, and last the gentlest.

    The cheapest lose much the same, so that where three fail on other data the fourth does, too
    (ResNet-20: two of twenty searches ended so without a result).
    """
    fitting = found.fitting(goal)
    fitting.sort(key=lambda trial: cost_of(trial, goal))
    cheapest, others = fitting[: MOST - 1], fitting[MOST - 1 :]
    # by SQNR, which has less chance in it than a drop
    gentlest = max(others, key=_quality_of, default=None)
    return cheapest if gentlest is None else [*cheapest, gentlest]


def _quality_of(trial: RecipeTrial) -> float:
    """SQNR of a trial in dB; without one, its loss, negated."""
    return -loss_of(trial) if trial.sqnr_db is None else trial.sqnr_db


def _on_unseen(trial: RecipeTrial, result: RunResult, task: Task) -> RecipeTrial:
    """Figures of a result on the unseen half."""
    unseen = trial_of(trial.recipe, result)
    if task.labelled is not None:
        return unseen
    # a run without labels judges on a part of what it was given, and that is the other half
    facts: Any = verify(task.model, result.model, task.half_of_data(UNSEEN))
    return dataclasses.replace(unseen, sqnr_db=facts["overall"]["sqnr_db"])


def _problem(unseen: RecipeTrial, goal: Goal) -> str | None:
    """Limit that a result misses on the unseen half; the drop was judged by its run."""
    limit = goal.max_latency_ms
    taken = unseen.latency_ms
    if limit is not None and taken is not None and taken > limit:
        return f"--max-latency-ms: it takes {taken:.3g} ms, more than {limit:g}"
    kept = unseen.sqnr_db
    # no noise at all has no SQNR
    if goal.min_sqnr is not None and kept is not None and kept < goal.min_sqnr:
        return f"--min-sqnr: it keeps {kept:.1f} dB, less than {goal.min_sqnr:g}"
    if goal.max_bytes is not None and (unseen.bytes or 0) > goal.max_bytes:
        return f"--max-bytes: it has {unseen.bytes:,}, more than {goal.max_bytes:,}"
    return None


def _impossible(goal: Goal, found: Searched) -> CheckError:
    """Error where no recipe keeps the budget, with the one that comes nearest."""
    sound = [trial for trial in found.trials if not trial.failure]
    limits = ", ".join(f"{key}={value:g}" for key, value in goal.as_dict().items())
    if not sound:
        reasons = "; ".join(dict.fromkeys(trial.failure for trial in found.trials))
        return CheckError(
            "tune",
            f"no recipe could be run: {reasons}",
            "mend what is named, then search again",
        )
    if goal.limits_accuracy and found.missed:
        *_, recipe = found.missed
        reason = found.missed[recipe]
        words = f"on data that the search did not see: {reason}"
    else:
        nearest = min(sound, key=lambda trial: _distance(trial, goal))
        recipe = nearest.recipe
        words = _in_words(nearest)
    return CheckError(
        "tune",
        f"no recipe of {len(sound)} keeps {limits}: the nearest is '{recipe}' ({words})",
        "give a wider budget; or take this recipe: --passes with the text above",
    )


def _distance(trial: RecipeTrial, goal: Goal) -> float:
    """Distance of a trial from the goal, as a share of its limits."""
    parts = []
    if goal.max_drop is not None and trial.drop is not None:
        parts.append((trial.drop - goal.max_drop) / max(goal.max_drop, 1e-3))
    if goal.min_sqnr is not None and trial.sqnr_db is not None:
        parts.append((goal.min_sqnr - trial.sqnr_db) / 10)
    if goal.max_bytes is not None and trial.bytes is not None:
        parts.append(trial.bytes / goal.max_bytes - 1)
    if goal.max_latency_ms is not None and trial.latency_ms is not None:
        parts.append(trial.latency_ms / goal.max_latency_ms - 1)
    return max(parts, default=0.0)


def _in_words(trial: RecipeTrial) -> str:
    words = [] if trial.bytes is None else [f"{trial.bytes:,} bytes"]
    if trial.drop is not None:
        words.append(f"drop {trial.drop:.4g}")
    if trial.sqnr_db is not None:
        words.append(f"{trial.sqnr_db:.1f} dB")
    return ", ".join(words)
