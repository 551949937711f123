"""Precision of labels: the least drop that so many rows can tell from none."""

from __future__ import annotations

import math

from ... import RefusedError
from .goal import Goal
from .trial import SEEN, Task

CHANGED = 0.02
"""Share of rows that a good recipe decides otherwise than the original: by it the smallest drop is
told that so many rows can show, before anything was tried. ResNet-20 at a tenth of its size: 0.03.
"""

ONE_SIDED_95 = 1.645
"""Standard errors above which a drop lies by chance in one case of twenty."""


def warnings_of_precision(task: Task, goal: Goal) -> list[str]:
    """Say what drop the labels cannot show. Errors: RefusedError without labels."""
    feeds = task.half(SEEN)
    if feeds is None or goal.max_drop is None or task.metric not in ("top1", "top5"):
        return []
    rows = sum(len(batch.labels) for batch in feeds if batch.labels is not None)
    if not rows:
        raise RefusedError(
            "data", "it has no labels", "give --eval-data with labels, or no --metric"
        )
    smallest = ONE_SIDED_95 * math.sqrt(CHANGED / rows)
    if smallest <= goal.max_drop:
        return []
    allowed = max(goal.max_drop, 1e-9)
    for_each_half = CHANGED * (ONE_SIDED_95 / allowed) ** 2
    needed = math.ceil(2 * for_each_half)
    return [
        f"--max-drop: {rows} rows for the search, and as many for the verdict, tell a drop from "
        f"none from about {smallest:.2g} on, not from {goal.max_drop:g}: chance has a part in what "
        f"is chosen (about {needed:,} labelled rows in all would do)"
    ]
