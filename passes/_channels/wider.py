"""Widths that a target does not like: where the next width that suits it is faster, it is taken
instead.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .._base import Context, Declined
from .select import Candidates, Choice

SECONDS = 1.0
"""Time for the paired runs of the two models."""


def wider_if_faster(
    narrow: Candidates,
    suited: Candidates,
    choice: Choice,
    build: Callable[[Choice], ir.Model],
    context: Context,
) -> tuple[Choice, list[Declined]]:
    """The choice with every width raised to the next that suits the target, if that model measures
    faster.

    `suited`: the same groups with the target's own widths. Certain only: three of four paired runs
    must agree.
    """
    raised = [min(count, _at_most(suited, i, count)) for i, count in enumerate(choice)]
    if raised == choice:
        return choice, []
    ratio = context.latency_ratio(build(choice), build(raised), SECONDS)
    if ratio is None or max(ratio) >= 1:
        return choice, []
    sizes = [len(group.channels) for group in narrow.groups]
    return raised, [
        Declined(
            group.name,
            f"{size - one} channels run slower than {size - two}: {size - two} stay",
        )
        for group, size, one, two in zip(
            narrow.groups, sizes, choice, raised, strict=True
        )
        if one != two
    ]


def _at_most(candidates: Candidates, index: int, count: int) -> int:
    """The most channels that may go, `count` at most, so that a suited width stays."""
    size = len(candidates.groups[index].channels)
    return size - int(
        min(width for width in candidates.widths[index] if width >= size - count)
    )
