"""Choices of each weight, with what each loses and costs, and the best of them within a limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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
    that it costs alone. `cost`: what is to be small: its bytes in the file, or the ms of its layer.
    """

    form: str
    loss: float
    cost: float


Menu = Mapping[str, Sequence[FormChoice]]
"""Choices by the names of weights; of each weight there is at least one."""

Picks = dict[str, FormChoice]
"""One choice for each weight."""

Borders = Mapping[tuple[str, str], float]
"""Cost of two weights of which one stays float and the other does not."""


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


def cheapest(
    menu: Menu, most_loss: float, borders: Borders | None = None
) -> Picks | None:
    """The choices of least cost whose losses add up to at most `most_loss`; None: there are none.

    `borders`: costs that pairs of choices add. A multiple-choice knapsack. Source: HiGHS (Huangfu
    and Hall, 2018), by scipy.
    """
    # here, not above: scipy takes half a second to load
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, identity, vstack

    names = list(menu)
    owners = np.repeat(np.arange(len(names)), [len(menu[name]) for name in names])
    every: list[FormChoice] = []
    for choices in menu.values():
        every += choices
    if not every:
        return {}
    losses = np.array([choice.loss for choice in every])
    costs = np.array([choice.cost for choice in every])
    columns = np.arange(len(every))
    one_each = csr_array(
        (np.ones(len(every)), (owners, columns)), shape=(len(names), len(every))
    )
    differences, border_costs = _borders_of(menu, every, owners, borders or {})
    # one more variable for each border: 1 where the forms of its weights differ
    count = len(border_costs)
    no_border = csr_array((1, count))
    marks = csr_array(identity(count))
    # near 1: solvers take numbers below their tolerance for zero
    scale = max(most_loss, 1e-12)
    within = hstack([csr_array(losses[None] / scale), no_border])
    constraints = [
        LinearConstraint(hstack([one_each, csr_array((len(names), count))]), 1, 1),
        LinearConstraint(within, -np.inf, 1),
    ]
    if count:
        both_ways = vstack(
            [hstack([differences, marks]), hstack([-differences, marks])]
        )
        constraints.append(LinearConstraint(both_ways, 0, np.inf))
    objective = np.concatenate([costs, border_costs])
    largest = float(objective.max()) or 1.0
    with _own_stdout():
        found = milp(
            objective / largest,
            constraints=constraints,
            integrality=np.concatenate([np.ones(len(every)), np.zeros(count)]),
            bounds=Bounds(0, 1),
            options={"time_limit": MOST_SECONDS, "mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    picked = np.flatnonzero(np.round(found.x[: len(every)]))
    return {names[owners[index]]: every[index] for index in picked}


def _borders_of(
    menu: Menu,
    every: Sequence[FormChoice],
    owners: NDArray[np.intp],
    borders: Borders,
) -> tuple[csr_array, NDArray[np.float64]]:
    """For each border a row that tells whether its first weight is float and its second is not.

    Returned as 1, 0 or -1 by the choices (borders, choices), with the costs of the borders.
    """
    from scipy.sparse import lil_array

    floats = {}
    names = list(menu)
    for index, choice in enumerate(every):
        if choice.form == FLOAT:
            floats[names[owners[index]]] = index
    # a weight without a choice never differs from what its neighbours were measured with
    told = [edge for edge in borders if floats.keys() & set(edge)]
    rows = lil_array((len(told), len(every)))
    for row, (first, second) in enumerate(told):
        if first in floats:
            rows[row, floats[first]] -= 1
        if second in floats:
            rows[row, floats[second]] += 1
    return rows.tocsr(), np.array([borders[edge] for edge in told], float)


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


def total_cost(picks: Picks) -> float:
    """Costs of all choices, without those of borders."""
    return sum(choice.cost for choice in picks.values())
