"""Search for the parts of a change that can stay, where the change as a whole cannot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import TypeVar

T = TypeVar("T")


def kept_by_halving(
    parts: Sequence[T],
    works: Callable[[Sequence[T]], bool],
    trials: int,
    kind: Callable[[T], Hashable] = lambda part: None,
) -> list[T]:
    """Parts that work together, as many as `trials` tries find; all of them do not.

    `works` is asked for parts that are to stay while all others go. What it last agreed to is what
    is returned, so that no combination is believed untried. `kind`: parts that are alike fail
    alike, so kinds are told apart before single parts are.

    k parts of n that fail cost O(k log n) tries. Source: adaptive group testing by halving, Dorfman
    1943 and Hwang 1972; as a search for faults, Zeller and Hildebrandt, Simplifying and Isolating
    Failure-Inducing Input, 2002 (delta debugging).
    """
    kept: list[T] = []
    # the largest groups first: where the tries run out, most is decided
    everything = list(parts)
    waiting = deque([everything])
    while waiting:
        group = waiting.popleft()
        together = [*kept, *group]
        # everything together is known to fail
        if len(together) < len(everything):
            if not trials:
                break
            trials -= 1
            if works(together):
                kept += group
                continue
        halves = _halves(group, kind)
        waiting.extend(halves)
    return kept


def _halves(group: Sequence[T], kind: Callable[[T], Hashable]) -> list[list[T]]:
    """Both halves of a group, by whole kinds where it has several; none of a single part."""
    if len(group) < 2:
        return []
    alike: dict[Hashable, list[T]] = {}
    for part in group:
        own = alike.setdefault(kind(part), [])
        own.append(part)
    if len(alike) == 1:
        middle = len(group) // 2
        first = group[:middle]
        second = group[middle:]
        return [list(first), list(second)]
    kinds = list(alike.values())
    middle = len(kinds) // 2
    first_kinds = chain(*kinds[:middle])
    other_kinds = chain(*kinds[middle:])
    return [list(first_kinds), list(other_kinds)]
