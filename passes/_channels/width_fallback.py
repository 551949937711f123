"""Width fallback: where the next width that suits the target is faster, it is taken instead."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .._base import Context, Declined
from .select import Candidates, Choice


def wider_if_faster(
    narrow: Candidates,
    suited: Candidates,
    choice: Choice,
    build: Callable[[Choice], ir.Model],
    context: Context,
) -> tuple[Choice, list[Declined]]:
    """Raise every width to the next that suits the target, if that model measures faster.

    `suited`: the same groups with the target's own widths. Returns the choice, and each group that
    keeps more channels than asked for.
    """
    raised = []
    for index, count in enumerate(choice):
        fewer = suited.fitted_at_most(index, count)
        raised.append(min(count, fewer))
    if raised == choice:
        return choice, []
    asked_model = build(choice)
    wider_model = build(raised)
    ratio = context.latency_ratio(asked_model, wider_model, limit=1.0)
    # it must be decided that wider is faster: the channels were asked for
    if ratio is None or ratio.verdict(limit=1.0) != "not slower":
        return choice, []
    declined = []
    for index, group in enumerate(narrow.groups):
        if choice[index] == raised[index]:
            continue
        size = narrow.size(index)
        asked = size - choice[index]
        kept = size - raised[index]
        reason = f"{asked} channels run slower than {kept}: {kept} stay"
        declined.append(Declined(group.name, reason))
    return raised, declined
