"""Choices of each weight, with what each loses and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FLOAT = "float"
"""Form of a weight that no pass touches."""


@dataclass(frozen=True)
class FormChoice:
    """One form of a weight.

    `form`: as `quant(layers=…)` takes it, or `float`. `loss`: share of the outputs' mean square
    that it costs alone. `cost`: what is to be small: its bytes in the file, or the ms of its layer.
    """

    form: str
    loss: float
    cost: float


Menu = Mapping[str, Sequence[FormChoice]]
"""Choices by the names of weights; of each weight there is at least one."""

Picks = dict[str, FormChoice]
"""One choice for each weight."""

Border = tuple[str, ...]
"""Weights of layers that have a value or a node in common."""

Borders = Mapping[Border, float]
"""Costs of weights of which some stay float and others do not."""


def without_dominated(choices: Sequence[FormChoice]) -> list[FormChoice]:
    """Those to which no other is better in loss and in cost, the dearest first."""
    by_cost = sorted(choices, key=lambda choice: (choice.cost, choice.loss))
    kept: list[FormChoice] = []
    # from the cheapest on: a dearer one must lose less than all before it
    for choice in by_cost:
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    kept.reverse()
    return kept


def total_loss(picks: Picks) -> float:
    """Losses of all choices, if the errors of different weights are independent."""
    return sum(choice.loss for choice in picks.values())


def total_cost(picks: Picks) -> float:
    """Costs of all choices, without those of borders."""
    return sum(choice.cost for choice in picks.values())
