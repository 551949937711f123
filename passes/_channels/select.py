"""Which channels go: a share of each group, of all, or of groups alike; widths that run well; a budget where one is set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .._allocation import share
from .._dims.groups import Group
from .importance import Scores

Scope = Literal["layer", "global", "isomorphic"]
Choice = list[int]
"""How many channels of each group go, the least important first."""

CONV_WIDTH = {"cpu": 16, "cuda": 8, "tensorrt": 8, "generic": 8}
"""Channels that a convolution kernel of a target handles at once. CPU: AVX-512 in ONNX Runtime's blocked layout, where
33 to 47 channels take the time of 48 and 63 more than 64 (measured); half of it for layers that are narrow themselves."""


@dataclass(frozen=True)
class Candidates:
    """Groups with the scores of their channels and the widths that they may have."""

    groups: Sequence[Group]
    scores: Sequence[Scores]
    widths: Sequence[NDArray[np.intp]]

    def order(self, index: int) -> NDArray[np.intp]:
        """Channel ids of a group, the least important first; ties in graph order."""
        return self.groups[index].channels[np.argsort(self.scores[index], kind="stable")]

    def removed(self, choice: Choice) -> NDArray[np.intp]:
        """The channel ids that go."""
        parts = [self.order(i)[:count] for i, count in enumerate(choice)]
        return np.concatenate(parts) if parts else np.empty(0, np.intp)

    def fitted(self, index: int, count: int) -> int:
        """The number of channels to remove that leaves the allowed width nearest to `count` removed; the less of two."""
        size = len(self.groups[index].channels)
        widths = self.widths[index]
        return size - int(widths[np.argmin(np.abs(widths - (size - count)))])


def allowed_widths(group: Group, multiple: int, convolved: bool, least: int, target: str) -> NDArray[np.intp]:
    """The widths that a group may keep, ascending. `multiple`: 0 for the target's own, 1 for any.

    A group whose channels take several slots of one axis keeps the axis a multiple.
    """
    size = len(group.channels)
    if multiple == 0:
        multiple = CONV_WIDTH[target] if convolved else 1
        while multiple > 1 and size < 2 * multiple:
            multiple //= 2
    slots = max(count for _, count in group.places)
    step = max(multiple // gcd(multiple, slots), 1)
    widths = np.arange(0, size, step)
    return np.append(widths[widths >= min(least, size)], size)


def choose(candidates: Candidates, scope: Scope, ratio: float) -> Choice:
    """Remove `ratio` of every group, or of all channels of a pool of groups, by score; then fit the widths."""
    if scope == "layer":
        return [candidates.fitted(i, share(ratio, len(g.channels))) for i, g in enumerate(candidates.groups)]
    choice = [0] * len(candidates.groups)
    for pool in _pools(candidates.groups, scope):
        scores = np.concatenate([candidates.scores[i] for i in pool])
        owner = np.repeat(pool, [len(candidates.groups[i].channels) for i in pool])
        lowest = owner[np.argsort(scores, kind="stable")[: share(ratio, len(scores))]]
        for i in pool:
            choice[i] = candidates.fitted(i, int((lowest == i).sum()))
    return choice


def _pools(groups: Sequence[Group], scope: Scope) -> list[list[int]]:
    """Groups that are ranked together: all, or those of which the same kinds of weights lose the same axes.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024 (arXiv:2407.04616).
    """
    pools: dict[object, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        shapes = tuple(sorted(
            (axis, *value.const_value.shape.numpy()[2:])
            for value, axis in group.weights if value.const_value is not None and len(value.const_value.shape) > 1))
        pools[shapes if scope == "isomorphic" else None].append(index)
    return list(pools.values())


def within(budget: Callable[[Choice], float], fraction: float, pick: Callable[[float], Choice]) -> tuple[Choice, bool]:
    """The choice of the smallest ratio whose cost is at most `fraction` of the whole; whether there is one."""
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
