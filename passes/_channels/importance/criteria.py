"""The table of importance criteria, and scores that are always there: where a criterion has none,
group norms serve.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .... import UsageError
from ..._base import Context, Declined
from ..._dims.groups import Group
from ..._dims.solve import Solution
from .data import activation, variance
from .drift import drift
from .gradients import fisher, taylor
from .scores import Criterion, Found, Score, ScoreOptions, Scores
from .stability import stability
from .weights import bn_scale, chance, geometric_median, l1, l2, magnitude


def _criterion(
    name: str,
    function: Score,
    source: str,
    *,
    data: bool = False,
    gradients: bool = False,
) -> Criterion:
    return Criterion(name, data, gradients, source, function)


CRITERIA: dict[str, Criterion] = {
    c.name: c
    for c in (
        _criterion(
            "l1",
            l1,
            "Li et al., ICLR 2017 (arXiv:1608.08710); Fang et al., CVPR 2023 (arXiv:2301.12900)",
        ),
        _criterion("l2", l2, "Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900)"),
        _criterion(
            "geometric-median",
            geometric_median,
            "He et al., FPGM, CVPR 2019 (arXiv:1811.00250)",
        ),
        _criterion(
            "bn-scale",
            bn_scale,
            "Liu et al., Network Slimming, ICCV 2017 (arXiv:1708.06519)",
        ),
        _criterion("random", chance, "a control"),
        _criterion(
            "activation",
            activation,
            "Sun et al., Wanda, ICLR 2024 (arXiv:2306.11695)",
            data=True,
        ),
        _criterion("variance", variance, "follows from the definition", data=True),
        _criterion(
            "drift",
            drift,
            "Hassibi & Stork, NeurIPS 1992; Frantar & Alistarh, NeurIPS 2022 (arXiv:2208.11580)",
            data=True,
        ),
        _criterion(
            "stability",
            stability,
            "Meinshausen & Buehlmann, JRSS B 2010 (arXiv:0809.2932)",
            data=True,
        ),
        _criterion(
            "taylor",
            taylor,
            "Molchanov et al., CVPR 2019 (arXiv:1906.10771)",
            data=True,
            gradients=True,
        ),
        _criterion(
            "fisher",
            fisher,
            "LeCun et al., NeurIPS 1989; Theis et al., 2018 (arXiv:1801.05787)",
            data=True,
            gradients=True,
        ),
    )
}


def scores_of(
    name: str,
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> tuple[list[Scores], list[Declined]]:
    """Scores of every group by the criterion, group L2 norms where it has none; those groups and
    why.

    Errors: UsageError for a name that is none, and where gradients are wanted and the context has
    none.
    """
    criterion = CRITERIA.get(name)
    if criterion is None:
        raise UsageError(
            "importance",
            f"'{name}' is no criterion",
            f"choose one of {', '.join(CRITERIA)}",
        )
    found: Found
    if (
        criterion.needs_data
        and not criterion.needs_gradients
        and not context.has_data()
    ):
        found = ["there is no calibration data (--data)"] * len(groups)
    else:
        found = criterion.function(groups, solution, model, context, options)
    lacking = [
        group
        for group, scores in zip(groups, found, strict=True)
        if isinstance(scores, str)
    ]
    norms = iter(magnitude(lacking, solution, 2, options))
    scores = [next(norms) if isinstance(each, str) else each for each in found]
    declined = [
        Declined(group.name, f"{name}: {reason}; scored by l2")
        for group, reason in zip(groups, found, strict=True)
        if isinstance(reason, str)
    ]
    return scores, declined
