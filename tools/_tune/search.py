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
from statistics import median

from ...passes._core.pipeline import parse
from .engines import TrialEngine
from .families import Proposal, RecipeFamily
from .front import is_beyond, keeps_accuracy, keeps_cost
from .goal import Goal
from .plans import SearchPlan
from .trial import RecipeTrial, Task

ROUND = 4
"""Recipes of a round."""

WIDTH_DB = 0.35
"""Interval of predicted SQNR in which it is no longer looked for a better recipe."""

MOST_ROUNDS = 4

REACH_DB = 3.0
"""SQNR by which a smaller recipe of another kind may be predicted to keep less than the limit."""

WORTHWHILE = 0.02
"""Share of the bytes that a smaller recipe has to save to be tried. Both chosen by hand."""

GROWTH = 0.005
"""Share of its bytes by which a file may be larger than predicted, or grow while it is trained:
codes that move are stored in a few bytes more.
"""

GENTLER_STEP_DB = 10.0
GENTLER_TRIALS = 3
"""Gentler recipes where even the gentlest loses too much: steps in dB, and how many are tried.

At 30 dB more nearly all layers stay float. Chosen by hand.
"""


@dataclass
class Searched:
    """All trials so far; `slack`: as `keeps_accuracy` takes it.

    `is_cut_short`: the time was up. `missed`: recipes that failed on the unseen half, each with the
    reason.
    """

    trials: list[RecipeTrial] = field(default_factory=list)
    slack: float = 0.0
    is_cut_short: bool = False
    missed: dict[str, str] = field(default_factory=dict)

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
        (gentle,) = self._try_proposals(found, [family.proposal(low)])
        found.slack = self._slack(gentle)
        for _ in range(GENTLER_TRIALS):
            if not self.goal.limits_accuracy or found.keeps_accuracy(gentle, self.goal):
                break
            gentler = family.proposal(low + GENTLER_STEP_DB)
            if not _changes_weights(gentler.recipe):
                break
            low, high = low + GENTLER_STEP_DB, low
            (gentle,) = self._try_proposals(found, [gentler])
        self._try_templates(found, self.plan.templates)
        for number in range(MOST_ROUNDS):
            if abs(low - high) < WIDTH_DB:
                break
            if self._is_late(found):
                break
            targets = _between(low, high, ROUND if number == 0 else ROUND - 1)
            proposals = [family.proposal(target) for target in targets]
            tried = self._try_proposals(found, proposals)
            pairs = list(zip(targets, tried, strict=True))
            low, high = self._narrowed(low, high, pairs, found)
        if self.goal.objective == "size" and self.goal.limits_accuracy:
            self._try_smaller(found, family, low)
        if self.goal.max_bytes is not None and not self.goal.limits_accuracy:
            self._try_within(found, family, self.goal.max_bytes)

    def _is_late(self, found: Searched) -> bool:
        """True if the time is up, which `found` then tells."""
        if time.monotonic() <= self.deadline:
            return False
        found.is_cut_short = True
        return True

    def _try_smaller(
        self, found: Searched, family: RecipeFamily, limit_db: float
    ) -> None:
        """Try smaller recipes of each kind than the best so far, as long as one keeps the goal.

        Predictions of one kind, as behind passes that prune, err otherwise than those of another:
        at the same prediction not all kinds lose the same.
        """
        for _ in range(MOST_ROUNDS):
            most = self._bytes_to_beat(found)
            if most is None or self._is_late(found):
                return
            known = {trial.recipe for trial in found.trials}
            proposals = [
                each
                for each in family.smaller(most)
                if each.sqnr_db > limit_db - REACH_DB and each.recipe not in known
            ]
            tried = self._try_proposals(found, proposals[:ROUND])
            fitting = found.fitting(self.goal)
            if not any(trial in fitting for trial in tried):
                return

    def _try_within(
        self, found: Searched, family: RecipeFamily, max_bytes: int
    ) -> None:
        """Try the recipe of each kind that is to lose least of those within so many bytes."""
        for _ in range(MOST_ROUNDS):
            rest = _bytes_of_rest(found)
            if rest is None or self._is_late(found):
                return
            proposals = family.smaller((1 - GROWTH) * max_bytes - rest)
            known = {trial.recipe for trial in found.trials}
            new = [each for each in proposals if each.recipe not in known]
            if not new:
                return
            self._try_proposals(found, new)

    def _bytes_to_beat(self, found: Searched) -> float | None:
        """Bytes of weights of a recipe that is smaller than the best one by what is worth it."""
        fitting = [trial.bytes for trial in found.fitting(self.goal) if trial.bytes]
        rest = _bytes_of_rest(found)
        if not fitting or rest is None:
            return None
        return (1 - WORTHWHILE) * min(fitting) - rest

    def _try_proposals(
        self, found: Searched, proposals: Sequence[Proposal]
    ) -> list[RecipeTrial]:
        """Trials of proposals; those that were tried before are not tried again."""
        known = {trial.recipe: trial for trial in found.trials}
        by_recipe = {each.recipe: each for each in proposals}
        new = [recipe for recipe in by_recipe if recipe not in known]
        for trial in self.engine.run(self.task, new):
            proposal = by_recipe[trial.recipe]
            trial = dataclasses.replace(
                trial,
                predicted_db=proposal.sqnr_db,
                predicted_ms=proposal.latency_ms,
                weight_bytes=proposal.weight_bytes,
            )
            known[trial.recipe] = trial
            found.trials.append(trial)
            self.tell(trial)
        return [known[each.recipe] for each in proposals]

    def _try_templates(self, found: Searched, templates: Sequence[str]) -> None:
        """Pipelines from gentle to harsh, as long as each is within the budget, or all of them.

        The first in any case: what one would take without a search.
        """
        for number, template in enumerate(templates):
            if number and self._is_late(found):
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


def _bytes_of_rest(found: Searched) -> float | None:
    """Bytes in a file beside those of the weights, nearly the same in all; None if unknown."""
    rests = [
        trial.bytes - trial.weight_bytes
        for trial in found.trials
        if trial.bytes is not None and trial.weight_bytes is not None
    ]
    return median(rests) if rests else None


def _changes_weights(recipe: str) -> bool:
    """True if a recipe gains anything: one that leaves all weights float does not."""
    return any(pass_.effect == "lossy" for pass_ in parse(recipe).passes)


def _between(low: float, high: float, count: int) -> list[float]:
    """So many values between two, evenly spread, neither of them among these."""
    step = (high - low) / (count + 1)
    return [round(low + step * (number + 1), 3) for number in range(count)]
