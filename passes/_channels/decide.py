"""Decision how many channels each group loses: by ratio, cost budget, output error or stability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .._base import Context
from .budget import allocate_under_budget, smallest_ratio
from .costs import CostKind
from .importance.scores import Scores
from .importance.stability import removal_frequencies
from .pruning import Pruning
from .select import Candidates, Choice, Scope, choose, increments
from .sensitivity import MEASURED, FitData, output_losses

MOST_RUNS = 2048
"""Samples times groups there, at most: models of many groups take fewer. Chosen by hand, not
measured.
"""


@dataclass(frozen=True)
class BudgetLimit:
    """Largest fraction of a cost that may stay; `option`: the option of the pass that sets it."""

    option: str
    kind: CostKind
    fraction: float


@dataclass(frozen=True)
class SelectionRule:
    """Rule by which the number of channels that go is decided.

    `criterion`: name of the importance by which they are scored. Without `budget` and `drift` the
    `ratio` counts. `drift`: share of their outputs' variance that a group's readers may lose.
    `frequency`: share of the halves of the data that must agree, for `stability`. `samples`,
    `damp`: of calibration data where losses are measured at the model's outputs.
    """

    criterion: str
    scope: Scope
    ratio: float
    budget: BudgetLimit | None
    drift: float | None
    frequency: float | None
    samples: int
    damp: float

    def weighs_losses(self, context: Context) -> bool:
        """Return whether widths follow from losses at the outputs and savings on the target.

        Then any width may pay; else widths are those that run well.
        """
        if self.budget is None or self.scope != "global":
            return False
        return self.criterion == "drift" and context.has_data()


def decide(
    rule: SelectionRule,
    pruning: Pruning,
    candidates: Candidates,
    context: Context,
    losses: Callable[[], Sequence[Scores]],
) -> Choice:
    """Number of channels of each group to remove; the cheapest where a budget cannot be met.

    `losses`: gives the groups' losses at the outputs, asked for only where they are weighed.
    """
    if rule.drift is not None:
        return _within_drift(candidates, rule.drift)
    if rule.budget is not None and rule.weighs_losses(context):
        choice = allocate_under_budget(
            candidates,
            losses(),
            fraction_left(rule.budget, pruning, candidates),
            rule.budget.fraction,
            context.target,
        )
    else:
        if rule.scope != "layer" and rule.criterion == "drift":
            # drift counts up along a group: ranked with others, each channel is worth its own part
            added = [increments(scores) for scores in candidates.scores]
            candidates = replace(candidates, scores=added)
        if rule.budget is None:
            choice = choose(candidates, rule.scope, rule.ratio)
        else:
            choice = _of_smallest_ratio(
                rule,
                rule.budget,
                pruning,
                candidates,
            )
    if rule.frequency is not None:
        choice = _cut_to_sure(candidates, choice, rule.frequency)
    return choice


def _within_drift(candidates: Candidates, most: float) -> Choice:
    """All channels of each group that cost its readers at most so much drift."""
    choice = []
    for index, scores in enumerate(candidates.scores):
        count = int((scores <= most).sum())
        choice.append(candidates.fitted(index, count))
    return choice


def _cut_to_sure(candidates: Candidates, choice: Choice, frequency: float) -> Choice:
    """A choice cut to channels that would go in at least this share of the halves of the data."""
    cut = []
    for index, scores in enumerate(candidates.scores):
        sure = int((removal_frequencies(scores) >= frequency).sum())
        cut.append(candidates.fitted(index, min(choice[index], sure)))
    return cut


def surely_superfluous(candidates: Candidates, frequency: float) -> Candidates:
    """The groups with widths that keep what fewer halves of the data than that would remove."""
    widths = []
    for index, scores in enumerate(candidates.scores):
        sure = int((removal_frequencies(scores) >= frequency).sum())
        own = candidates.widths[index]
        widths.append(own[own >= candidates.size(index) - sure])
    return replace(candidates, widths=widths)


def measured_losses(
    rule: SelectionRule, pruning: Pruning, scores: Sequence[Scores], context: Context
) -> list[Scores]:
    """Losses at the model's outputs, on as many samples as the number of groups allows."""
    # every group is measured by variants of the model of its own
    affordable = max(MOST_RUNS // len(pruning.groups), 1)
    samples = min(rule.samples, MEASURED, affordable)
    return output_losses(
        pruning.groups,
        pruning.solution,
        pruning.whole,
        scores,
        FitData(
            fitting=context,
            judging=context,
            fitted=samples,
            judged=samples,
            damp=rule.damp,
        ),
    )


def _of_smallest_ratio(
    rule: SelectionRule,
    limit: BudgetLimit,
    pruning: Pruning,
    candidates: Candidates,
) -> Choice:
    """Choice of the smallest ratio that meets a budget.

    Under scope=global channels count by what they take, too.
    """
    left = fraction_left(limit, pruning, candidates)
    ranked = candidates
    # within one layer all channels save alike; across layers they do not
    if rule.scope == "global":
        ranked = candidates.per_gain(
            pruning.costs.saved_by_one(pruning.groups, limit.kind)
        )

    def pick(ratio: float) -> Choice:
        return choose(ranked, rule.scope, ratio)

    return smallest_ratio(left, limit.fraction, pick)


def fraction_left(
    limit: BudgetLimit, pruning: Pruning, candidates: Candidates
) -> Callable[[Choice], float]:
    """Fraction of a cost that a choice leaves, counted from the model before its first pruning."""
    orders = candidates.orders()
    original = pruning.history.cost or pruning.before
    whole = max(int(getattr(original, limit.kind)), 1)

    def left(choice: Choice) -> float:
        return int(getattr(pruning.cost(choice, orders), limit.kind)) / whole

    return left
