"""Importance criteria as a table, and scores by any of them: group norms where one has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .... import UsageError
from ..._base import Context, Declined
from ..._dims.groups import Group
from ..._dims.solve import Solution
from .data import activation, variance
from .drift import drift
from .gradients import fisher, taylor
from .scores import Found, Score, ScoreOptions, Scores
from .stability import stability
from .weights import bn_scale, chance, geometric_median, l1, l2, magnitude


@dataclass(frozen=True)
class Criterion:
    """A measure of how much channels matter.

    `needs_gradients`: asks for a context that can differentiate.
    """

    score: Score
    source: str
    needs_data: bool = False
    needs_gradients: bool = False


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(
        l1,
        "Li et al., ICLR 2017 (arXiv:1608.08710); Fang et al., CVPR 2023 (arXiv:2301.12900)",
    ),
    "l2": Criterion(l2, "Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900)"),
    "geometric-median": Criterion(
        geometric_median, "He et al., FPGM, CVPR 2019 (arXiv:1811.00250)"
    ),
    "bn-scale": Criterion(
        bn_scale, "Liu et al., Network Slimming, ICCV 2017 (arXiv:1708.06519)"
    ),
    "random": Criterion(chance, "a control"),
    "activation": Criterion(
        activation, "Sun et al., Wanda, ICLR 2024 (arXiv:2306.11695)", needs_data=True
    ),
    "variance": Criterion(variance, "follows from the definition", needs_data=True),
    "drift": Criterion(
        drift,
        "Hassibi & Stork, NeurIPS 1992; Frantar & Alistarh, NeurIPS 2022 (arXiv:2208.11580)",
        needs_data=True,
    ),
    "stability": Criterion(
        stability,
        "Meinshausen & Buehlmann, JRSS B 2010 (arXiv:0809.2932)",
        needs_data=True,
    ),
    "taylor": Criterion(
        taylor,
        "Molchanov et al., CVPR 2019 (arXiv:1906.10771)",
        needs_data=True,
        needs_gradients=True,
    ),
    "fisher": Criterion(
        fisher,
        "LeCun et al., NeurIPS 1989; Theis et al., 2018 (arXiv:1801.05787)",
        needs_data=True,
        needs_gradients=True,
    ),
}
"""Every criterion by its name, as the option `importance` and docs/channels.md list them."""

NO_DATA = "it needs --data"


def scores_of(
    name: str,
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> tuple[list[Scores], list[Declined]]:
    """Score every group by a criterion, and by group L2 norms where the criterion has no scores.

    Returns the scores, and the groups without their own with the reasons. Errors: UsageError for a
    name that is none, and where gradients are wanted and the context has none.
    """
    criterion = CRITERIA.get(name)
    if criterion is None:
        raise UsageError(
            "importance",
            f"'{name}' is no criterion",
            f"choose one of {', '.join(CRITERIA)}",
        )
    found: Found
    # criteria of gradients say themselves what the run lacks
    wants_data = criterion.needs_data and not criterion.needs_gradients
    if wants_data and not context.has_data():
        found = [NO_DATA] * len(groups)
    else:
        found = criterion.score(
            groups,
            solution,
            model,
            context,
            options,
        )
    lacking = []
    declined = []
    for group, scores in zip(groups, found, strict=True):
        if isinstance(scores, str):
            lacking.append(group)
            declined.append(
                Declined(
                    group.name,
                    f"importance={name} is not possible here, l2 is used: {scores}",
                )
            )
    # norms are computed for those groups alone: weights may be large
    norms = magnitude(
        lacking,
        solution,
        2,
        options,
    )
    waiting = iter(norms)
    complete = [next(waiting) if isinstance(each, str) else each for each in found]
    return complete, declined
