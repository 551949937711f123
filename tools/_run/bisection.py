"""Search for the rewrites that make a pass's result bad: by halving, each named and left out.

As `-opt-bisect-limit` of LLVM, with the search that its users do by hand.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ...passes._core.rewrites import Gate, Rewrite, through

TRIES = 40
SECONDS = 120.0
"""Runs of a pass, and seconds, after which a search gives up: about three culprits of a thousand.

Both chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Problem:
    """Reason not to keep a model: a fault in it or, where not `is_fault`, a cost.

    `fix`: what a user can do; "" where that depends on the pass alone.
    """

    text: str
    is_fault: bool = True
    fix: str = ""


class Judged(Protocol):
    """Result of a pass; `problem` None: it is good."""

    @property
    def problem(self) -> Problem | None: ...


T = TypeVar("T", bound=Judged)


@dataclass(frozen=True)
class Culprit:
    """A rewrite without which the result is good, or better: number `number` of `count`."""

    rewrite: Rewrite
    number: int
    count: int
    problem: Problem


class GaveUp(Exception):
    """The search has taken more runs or time than it may."""


@dataclass
class Bisection(Generic[T]):
    """Runs of one pass from the same model, through gates; `attempt` clones and judges."""

    attempt: Callable[[], T]
    tries: int = TRIES
    deadline: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    used: int = 0

    def run(
        self, left_out: frozenset[Rewrite] = frozenset(), limit: int | None = None
    ) -> tuple[T, Gate]:
        """Make the first `limit` rewrites without those left out. Errors: GaveUp."""
        if self.used >= self.tries or time.monotonic() > self.deadline:
            raise GaveUp
        self.used += 1
        gate = Gate(limit, left_out)
        with through(gate):
            return self.attempt(), gate

    def culprit(
        self,
        left_out: frozenset[Rewrite],
        problem: Problem,
        gate: Gate,
        low: int = 0,
    ) -> Culprit | None:
        """The rewrite with which the result turns bad; None where it is bad without any.

        `problem`, `gate`: of the run without a limit. `low`: rewrites with which it is good.
        """
        # the one that was asked for last and not made: the pass may have failed in it
        rewrites = [*gate.made, *gate.asked]

        def problem_after(limit: int) -> Problem | None:
            return self.run(left_out, limit)[0].problem

        found = first_bad(low, len(rewrites), problem_after, problem)
        if found is None:
            return None
        number, why = found
        return Culprit(rewrites[number - 1], number, max(number, len(gate.made)), why)


def first_bad(
    low: int,
    high: int,
    problem_after: Callable[[int], Problem | None],
    problem: Problem,
) -> tuple[int, Problem] | None:
    """The first number of changes that is bad while one less is good, and why; by halving.

    `problem`: of `high` changes. `low`: changes known to be good; 0 is tried if it comes to that.
    None where no change makes it bad.
    """
    is_known = low > 0
    while high - low > 1:
        middle = (low + high) // 2
        found = problem_after(middle)
        if found is None:
            low = middle
            is_known = True
        else:
            high = middle
            problem = found
    if high == 0:
        return None
    if not is_known and problem_after(0) is not None:
        return None
    return high, problem


def without_culprits(search: Bisection[T]) -> tuple[T, list[Culprit]] | None:
    """Result of a pass without the rewrites that make it bad, and those.

    A rule that is found a second time is left out everywhere, and so are all found where the search
    gives up. None where that does not help, or no rewrite is to blame.
    """
    culprits: list[Culprit] = []
    left_out: frozenset[Rewrite] = frozenset()
    low = 0
    try:
        result, gate = search.run()
        while result.problem is not None:
            found = search.culprit(left_out, result.problem, gate, low)
            if found is None:
                return None
            rule = found.rewrite.everywhere
            low = found.number - 1
            if any(each.rewrite.everywhere == rule for each in culprits):
                found = dataclasses.replace(found, rewrite=rule)
                # what was made before it is no longer the same
                low = 0
                culprits = [e for e in culprits if e.rewrite.everywhere != rule]
            culprits.append(found)
            left_out = frozenset(each.rewrite for each in culprits)
            result, gate = search.run(left_out)
    except GaveUp:
        return _without_rules(search, culprits)
    return result, culprits


def _without_rules(
    search: Bisection[T], culprits: list[Culprit]
) -> tuple[T, list[Culprit]] | None:
    """The last resort, one run: the rules found so far are left out everywhere."""
    rules = {each.rewrite.everywhere: each for each in culprits}
    widened = [dataclasses.replace(each, rewrite=rule) for rule, each in rules.items()]
    if not rules:
        return None
    with through(Gate(left_out=frozenset(rules))):
        result = search.attempt()
    if result.problem is not None:
        return None
    return result, widened
