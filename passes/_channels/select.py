"""Which channels go: a share of each group, of all, or of groups alike; widths that run well; a
budget if any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .._core.targets import TARGETS
from .._dims.groups import Group
from .._sparsity.allocation import share
from .importance.scores import Scores

Scope = Literal["layer", "global", "isomorphic"]
Choice = list[int]
"""How many channels of each group go, the least important first."""


@dataclass(frozen=True)
class Candidates:
    """Groups with the scores of their channels and the widths that they may have."""

    groups: Sequence[Group]
    scores: Sequence[Scores]
    widths: Sequence[NDArray[np.intp]]
    was: Sequence[int]
    """Of each group its width before the model was pruned first: ratios count from there."""

    def orders(self) -> list[NDArray[np.intp]]:
        """`order` of every group."""
        return [self.order(index) for index in range(len(self.groups))]

    def already(self, index: int) -> int:
        """Channels that a group has lost before."""
        return self.was[index] - len(self.groups[index].channels)

    def order(self, index: int) -> NDArray[np.intp]:
        """Channel ids of a group, the least important first; ties in graph order."""
        return self.groups[index].channels[
            np.argsort(self.scores[index], kind="stable")
        ]

    def per_gain(self, gains: Sequence[float]) -> Candidates:
        """The same groups, scores divided by what one channel of a group saves: equal scores cost
        equal accuracy.
        """
        scores = [
            s / max(gain, 1e-12) for s, gain in zip(self.scores, gains, strict=True)
        ]
        return replace(self, scores=scores)

    def removed(self, choice: Choice) -> NDArray[np.intp]:
        """The channel ids that go."""
        parts = [self.order(i)[:count] for i, count in enumerate(choice)]
        return np.concatenate(parts) if parts else np.empty(0, np.intp)

    def fitted(self, index: int, count: int) -> int:
        """The number of channels to remove for the allowed width nearest to `count` removed, the
        wider of two.
        """
        size = len(self.groups[index].channels)
        widths = self.widths[index][::-1]
        return size - int(widths[np.argmin(np.abs(widths - (size - count)))])


def allowed_widths(
    group: Group, was: int, multiple: int, convolved: bool, least: int, target: str
) -> NDArray[np.intp]:
    """The widths that a group of formerly `was` channels may have, ascending. `multiple`: 0 for the
    target's own.

    A group whose channels take several slots of one axis keeps the axis a multiple.
    """
    size = len(group.channels)
    if multiple == 0:
        multiple = TARGETS[target].conv_width if convolved else 1
        while multiple > 1 and was < 2 * multiple:
            multiple //= 2
    slots = max(count for _, count in group.places)
    step = max(multiple // gcd(multiple, slots), 1)
    widths = np.arange(0, size, step)
    return np.append(widths[widths >= min(least, size)], size)


def choose(candidates: Candidates, scope: Scope, ratio: float) -> Choice:
    """Remove `ratio` of every group, or of all channels of a pool of groups, by score; then fit the
    widths.
    """
    if scope == "layer":
        wanted = (
            share(ratio, was) - candidates.already(i)
            for i, was in enumerate(candidates.was)
        )
        return [candidates.fitted(i, max(count, 0)) for i, count in enumerate(wanted)]
    choice = [0] * len(candidates.groups)
    for pool in _pools(candidates.groups, scope):
        scores = np.concatenate([candidates.scores[i] for i in pool])
        owner = np.repeat(pool, [len(candidates.groups[i].channels) for i in pool])
        count = share(ratio, sum(candidates.was[i] for i in pool)) - sum(
            map(candidates.already, pool)
        )
        lowest = owner[np.argsort(scores, kind="stable")[: max(count, 0)]]
        for i in pool:
            choice[i] = candidates.fitted(i, int((lowest == i).sum()))
    return choice


def increments(scores: Scores) -> Scores:
    """What each channel adds to a score that counts up along the order of removal; never less than
    those before.
    """
    order = np.argsort(scores, kind="stable")
    added = np.empty(len(scores))
    added[order] = np.maximum.accumulate(
        np.diff(np.maximum(scores[order], 0.0), prepend=0.0)
    )
    return added


def _pools(groups: Sequence[Group], scope: Scope) -> list[list[int]]:
    """Groups that are ranked together: all, or those of which the same kinds of weights lose the
    same axes.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024 (arXiv:2407.04616).
    """
    pools: dict[object, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        shapes = tuple(
            sorted(
                (axis, *value.const_value.shape.numpy()[2:])
                for value, axis in group.weights
                if value.const_value is not None and len(value.const_value.shape) > 1
            )
        )
        pools[shapes if scope == "isomorphic" else None].append(index)
    return list(pools.values())


def within(
    budget: Callable[[Choice], float], fraction: float, pick: Callable[[float], Choice]
) -> tuple[Choice, bool]:
    """The choice of the smallest ratio whose cost is at most `fraction` of the whole; whether there
    is one.
    """
    low, high = 0.0, 1.0
    if budget(pick(1.0)) > fraction:
        return pick(1.0), False
    for _ in range(24):
        middle = round((low + high) / 2, 9)
        if budget(pick(middle)) <= fraction:
            high = middle
        else:
            low = middle
    return pick(high), True
