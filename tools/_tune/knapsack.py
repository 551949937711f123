"""The best choices of all weights within a limit: a multiple-choice knapsack.

Source of the solver: HiGHS (Huangfu and Hall, 2018), by scipy.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .choices import FLOAT, Borders, FormChoice, Menu, Picks

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array

MOST_SECONDS = 20.0
"""Time that the solver takes at most; what it found by then is used."""

GAP = 1e-4
"""Share of the cost by which a choice may miss the best one."""

Vector = NDArray[np.float64]


def cheapest(
    menu: Menu, most_loss: float, borders: Borders | None = None
) -> Picks | None:
    """The choices of least cost whose losses add up to at most `most_loss`; None: there are none.

    `borders`: costs of weights whose choices are not all of one form.
    """
    every = _MenuColumns.of(menu)
    losses = np.array([choice.loss for choice in every.choices])
    costs = np.array([choice.cost for choice in every.choices])
    return _solved(
        every,
        costs,
        losses,
        most_loss,
        borders or {},
    )


def gentlest(menu: Menu, most_cost: float) -> Picks | None:
    """The choices of least loss whose costs add up to at most `most_cost`; None: there are none."""
    every = _MenuColumns.of(menu)
    losses = np.array([choice.loss for choice in every.choices])
    costs = np.array([choice.cost for choice in every.choices])
    return _solved(
        every,
        losses,
        costs,
        most_cost,
        {},
    )


@dataclass(frozen=True)
class _MenuColumns:
    """Choices of all weights in a row; `owners`: the number of each one's weight in `names`."""

    names: list[str]
    choices: list[FormChoice]
    owners: NDArray[np.intp]

    @classmethod
    def of(cls, menu: Menu) -> _MenuColumns:
        names = list(menu)
        counts = [len(menu[name]) for name in names]
        every: list[FormChoice] = []
        for choices in menu.values():
            every += choices
        return cls(names, every, np.repeat(np.arange(len(names)), counts))


def _solved(
    every: _MenuColumns,
    minimized: Vector,
    limited: Vector,
    limit: float,
    borders: Borders,
) -> Picks | None:
    """One choice for each weight, of the least sum of one figure within a limit to the other's."""
    # here, not above: scipy takes half a second to load
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count = len(every.choices)
    if not count:
        return {}
    ones = (np.ones(count), (every.owners, np.arange(count)))
    one_each = csr_array(ones, shape=(len(every.names), count))
    # near 1: solvers take numbers below their tolerance for zero
    scale = max(limit, 1e-12)
    within = csr_array(limited[None] / scale)
    problem = _Problem(
        minimized,
        np.ones(count),
        [
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(within, -np.inf, 1),
        ],
    )
    if borders:
        problem = _with_borders(problem, every, borders)
    largest = float(problem.costs.max()) or 1.0
    with _own_stdout():
        found = milp(
            problem.costs / largest,
            constraints=problem.constraints,
            integrality=problem.whole,
            bounds=Bounds(0, 1),
            options={"time_limit": MOST_SECONDS, "mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    picked = np.flatnonzero(np.round(found.x[:count]))
    return {every.names[every.owners[index]]: every.choices[index] for index in picked}


@dataclass(frozen=True)
class _Problem:
    """Costs of variables between 0 and 1, which are whole numbers, and their constraints."""

    costs: Vector
    whole: Vector
    constraints: list[LinearConstraint]


def _with_borders(problem: _Problem, every: _MenuColumns, borders: Borders) -> _Problem:
    """The problem with a variable for each border: 1 where its weights are of both forms."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array, hstack

    differences, marks, costs = _borders_of(every, borders)
    if not costs.size:
        return problem
    constraints = []
    for each in problem.constraints:
        rows = each.A.shape[0]
        without = csr_array((rows, costs.size))
        matrix = hstack([each.A, without])
        constraints.append(LinearConstraint(matrix, each.lb, each.ub))
    # at least the difference of neighbours, whichever of them is float
    for signed in (differences, -differences):
        matrix = hstack([signed, marks])
        constraints.append(LinearConstraint(matrix, 0, np.inf))
    fractions = np.zeros(costs.size)
    return _Problem(
        np.concatenate([problem.costs, costs]),
        np.concatenate([problem.whole, fractions]),
        constraints,
    )


def _borders_of(
    every: _MenuColumns, borders: Borders
) -> tuple[csr_array, csr_array, Vector]:
    """Rows that tell for neighbours in a border whether only one is float, and the borders' costs.

    Returned: 1, 0 or -1 by the choices (neighbours, choices); 1 at the border of each row
    (neighbours, borders); the costs.
    """
    from scipy.sparse import csr_array

    floats = {}
    for index, choice in enumerate(every.choices):
        if choice.form == FLOAT:
            floats[every.names[every.owners[index]]] = index
    # a weight without a choice never differs from what its neighbours were measured with
    told = [border for border in borders if floats.keys() & set(border)]
    owners: list[int] = []
    places: list[tuple[int, int]] = []
    signs: list[float] = []
    for number, border in enumerate(told):
        for pair in itertools.pairwise(border):
            row = len(owners)
            owners.append(number)
            for name, sign in zip(pair, (-1.0, 1.0), strict=True):
                if name in floats:
                    places.append((row, floats[name]))
                    signs.append(sign)
    neighbours = len(owners)
    rows, columns = np.array(places, int).reshape(-1, 2).T
    differences = csr_array(
        (signs, (rows, columns)), shape=(neighbours, len(every.choices))
    )
    ones = np.ones(neighbours)
    each = np.arange(neighbours)
    marks = csr_array((ones, (each, owners)), shape=(neighbours, len(told)))
    costs = np.array([borders[border] for border in told], float)
    return differences, marks, costs


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """Keep stdout for the account: HiGHS 1.12 prints a line there now and then, unasked."""
    kept = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    _flush()
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        # what C holds back for a pipe would come out once stdout is there again
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _flush() -> None:
    """Have Python and C write what they hold back for stdout."""
    # a process may have no stdout; on Windows there is no such library
    with contextlib.suppress(AttributeError, OSError, TypeError):
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
