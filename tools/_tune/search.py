"""The search: recipes of more and more loss are tried until the goal's limit lies between two.

What choices lose at the outputs is predicted by adding up the menu; what of that the goal bears is
found by trials. Each round tries several predicted losses at once, so that any number of processes
comes to the same recipes, and the next round divides the interval in which the limit lies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .engines import TrialEngine
from .families import RecipeFamily
from .front import is_beyond, keeps_accuracy, keeps_cost
from .goal import Goal
from .plans import SearchPlan
from .trial import RecipeTrial, Task

ROUND = 4
"""Recipes of a round."""

WIDTH_DB = 0.35
"""Interval of predicted SQNR in which it is no longer looked for a better recipe."""

MOST_ROUNDS = 4

GENTLER_STEP_DB = 10.0
GENTLER_TRIALS = 3
"""Gentler recipes where even the gentlest loses too much: steps in dB, and how many are tried.

At 30 dB more nearly all layers stay float. Chosen by hand.
"""


@dataclass
class Searched:
    """All trials so far; `slack`: as `keeps_accuracy` takes it.

    `is_cut_short`: the time was up.
    """

    trials: list[RecipeTrial] = field(default_factory=list)
    slack: float = 0.0
    is_cut_short: bool = False

    def keeps_accuracy(self, trial: RecipeTrial, goal: Goal) -> bool:
        """True if a trial loses no more than the goal allows, as far as all of them tell."""
        return keeps_accuracy(
            trial,
            goal,
            self.trials,
            self.slack,
        )

    def fitting(self, goal: Goal) -> list[RecipeTrial]:
        """Trials that keep the goal."""
        return [
            trial
            for trial in self.trials
            if self.keeps_accuracy(trial, goal) and keeps_cost(trial, goal)
        ]


@dataclass(frozen=True)
class RecipeSearch:
    """A goal, a plan of recipes, and where trials run.

    `deadline`: seconds of `time.monotonic` after which no round begins. `tell`: is told of each
    trial.
    """

    goal: Goal
    plan: SearchPlan
    task: Task
    engine: TrialEngine
    deadline: float
    tell: Callable[[RecipeTrial], None] = lambda trial: None

    def run(self, found: Searched) -> None:
        """Search; `found` holds what was tried, also where it ends early."""
        family = self.plan.family
        if family is None:
            self._try_templates(found, self.plan.templates)
            return
        low = family.gentlest_db
        high = family.harshest_db
        (gentle,) = self._tried(found, [family.proposal(low).recipe])
        found.slack = self._slack(gentle)
        for _ in range(GENTLER_TRIALS):
            if not self.goal.limits_accuracy or found.keeps_accuracy(gentle, self.goal):
                break
            low, high = low + GENTLER_STEP_DB, low
            ((_, gentle),) = self._try_targets(found, family, [low])
        self._try_templates(found, self.plan.templates)
        for number in range(MOST_ROUNDS):
            if abs(low - high) < WIDTH_DB:
                break
            if self._is_late(found):
                break
            targets = _between(low, high, ROUND if number == 0 else ROUND - 1)
            tried = self._try_targets(found, family, targets)
            low, high = self._narrowed(low, high, tried, found)

    def _is_late(self, found: Searched) -> bool:
        """True if the time is up, which `found` then tells."""
        if time.monotonic() <= self.deadline:
            return False
        found.is_cut_short = True
        return True

    def _try_targets(
        self, found: Searched, family: RecipeFamily, targets: Sequence[float]
    ) -> list[tuple[float, RecipeTrial]]:
        known = {trial.recipe: trial for trial in found.trials}
        proposals = [family.proposal(target) for target in targets]
        recipes = [proposal.recipe for proposal in proposals]
        new = [recipe for recipe in dict.fromkeys(recipes) if recipe not in known]
        for trial in self.engine.run(self.task, new):
            index = recipes.index(trial.recipe)
            trial = dataclasses.replace(
                trial,
                predicted_db=targets[index],
                predicted_ms=proposals[index].latency_ms,
            )
            known[trial.recipe] = trial
            found.trials.append(trial)
            self.tell(trial)
        pairs = zip(targets, recipes, strict=True)
        return [(target, known[recipe]) for target, recipe in pairs]

    def _try_templates(self, found: Searched, templates: Sequence[str]) -> None:
        """Pipelines from gentle to harsh, as long as each is within the budget, or all of them."""
        for template in templates:
            # something is tried even where there is no time at all
            if found.trials and self._is_late(found):
                return
            (trial,) = self._tried(found, [template])
            if self.plan.tries_all:
                continue
            # the next one loses more
            if is_beyond(trial, self.goal):
                return

    def _tried(self, found: Searched, recipes: Sequence[str]) -> list[RecipeTrial]:
        """Trials of recipes, which `found` has at once."""
        trials = []
        for trial in self.engine.run(self.task, recipes):
            trials.append(trial)
            found.trials.append(trial)
            self.tell(trial)
        return trials

    def _slack(self, gentle: RecipeTrial) -> float:
        """Part of a drop that is chance alone, and that no caution keeps within the budget."""
        limit = self.goal.max_drop
        if limit is None or gentle.drop is None:
            return 0.0
        error = gentle.error or 0.0
        # so few labels that even 8 bits cannot be told from too great a loss
        is_hidden = gentle.drop + error > limit
        return error if is_hidden and gentle.drop <= limit else 0.0

    def _narrowed(
        self,
        low: float,
        high: float,
        tried: Sequence[tuple[float, RecipeTrial]],
        found: Searched,
    ) -> tuple[float, float]:
        """The interval in which the limit lies: from what is borne to what is not.

        Where only the cost is limited it is the other way round: from what is too large to what
        fits. One good result behind a bad one is luck, and does not count.
        """
        for target, trial in sorted(tried, key=lambda pair: -pair[0]):
            if self.goal.limits_accuracy:
                goes_on = found.keeps_accuracy(trial, self.goal)
            else:
                goes_on = not keeps_cost(trial, self.goal)
            if not goes_on:
                return low, target
            low = target
        return low, high


def _between(low: float, high: float, count: int) -> list[float]:
    """So many values between two, evenly spread, neither of them among these."""
    step = (high - low) / (count + 1)
    return [round(low + step * (number + 1), 3) for number in range(count)]
