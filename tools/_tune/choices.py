"""Choices of each weight, with what each loses and costs, and the best of them within a limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FLOAT = "float"
"""Form of a weight that no pass touches."""

MOST_SECONDS = 20.0
"""Time that the solver takes at most; what it found by then is used."""

GAP = 1e-4
"""Share of the cost by which a choice may miss the best one."""


@dataclass(frozen=True)
class FormChoice:
    """One form of a weight.

    `form`: as `quant(layers=…)` takes it, or `float`. `loss`: share of the outputs' mean square
    that it costs alone. `bytes`: of it in the file.
    """

    form: str
    loss: float
    bytes: float


Menu = Mapping[str, Sequence[FormChoice]]
"""Choices by the names of weights; of each weight there is at least one."""

Picks = dict[str, FormChoice]
"""One choice for each weight."""


def without_dominated(choices: Sequence[FormChoice]) -> list[FormChoice]:
    """Those to which no other is better in loss and in bytes, the largest first."""
    by_size = sorted(choices, key=lambda choice: (choice.bytes, choice.loss))
    kept: list[FormChoice] = []
    # from the smallest on: a larger one must lose less than all before it
    for choice in by_size:
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    kept.reverse()
    return kept


def cheapest(menu: Menu, most_loss: float) -> Picks | None:
    """The choices of fewest bytes whose losses add up to at most `most_loss`; None: there are none.

    A multiple-choice knapsack. Source: HiGHS (Huangfu and Hall, 2018), by scipy.
    """
    # here, not above: scipy takes half a second to load
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    names = list(menu)
    owners = np.repeat(np.arange(len(names)), [len(menu[name]) for name in names])
    every: list[FormChoice] = []
    for choices in menu.values():
        every += choices
    losses = np.array([choice.loss for choice in every])
    costs = np.array([choice.bytes for choice in every])
    if not every:
        return {}
    columns = np.arange(len(every))
    one_each = csr_array(
        (np.ones(len(every)), (owners, columns)), shape=(len(names), len(every))
    )
    # near 1: solvers take numbers below their tolerance for zero
    scale = max(most_loss, 1e-12)
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(csr_array(losses[None] / scale), -np.inf, 1),
    ]
    largest = max(float(costs.max()), 1.0)
    with _own_stdout():
        found = milp(
            costs / largest,
            constraints=constraints,
            integrality=np.ones(len(every)),
            bounds=Bounds(0, 1),
            options={"time_limit": MOST_SECONDS, "mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    picked = np.flatnonzero(np.round(found.x))
    return {names[owners[index]]: every[index] for index in picked}


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """Keep stdout for the account: HiGHS 1.12 prints a line there now and then, unasked."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def total_loss(picks: Picks) -> float:
    """Losses of all choices, if the errors of different weights are independent."""
    return sum(choice.loss for choice in picks.values())


def total_bytes(picks: Picks) -> float:
    """Bytes of all choices."""
    return sum(choice.bytes for choice in picks.values())
