"""Selection of channels: a share of each group, of all or of groups alike; allowed widths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .._core.targets import TARGETS
from .._dims.groups import Group
from .._sparsity.allocation import share
from .importance.scores import Scores, matrices

Scope = Literal["layer", "global", "isomorphic"]
Choice = list[int]
"""Number of channels of each group that go, the least important first."""


@dataclass(frozen=True)
class Candidates:
    """Groups with the scores of their channels and the widths that they may have.

    `was`: width of each group before the model was pruned first, from which ratios count.
    """

    groups: Sequence[Group]
    scores: Sequence[Scores]
    widths: Sequence[NDArray[np.intp]]
    was: Sequence[int]

    def orders(self) -> list[NDArray[np.intp]]:
        """`order` of every group."""
        count = len(self.groups)
        return [self.order(index) for index in range(count)]

    def size(self, index: int) -> int:
        """Channels that a group has now."""
        group = self.groups[index]
        return len(group.channels)

    def already(self, index: int) -> int:
        """Channels that a group has lost before."""
        size = self.size(index)
        return self.was[index] - size

    def order(self, index: int) -> NDArray[np.intp]:
        """Channel ids of a group, the least important first; ties in graph order."""
        group = self.groups[index]
        scores = self.scores[index]
        ascending = np.argsort(scores, kind="stable")
        return group.channels[ascending]

    def per_gain(self, gains: Sequence[float]) -> Candidates:
        """The same groups, scores divided by what one channel of a group saves.

        Equal scores then cost equal accuracy.
        """
        scores = []
        for own, gain in zip(self.scores, gains, strict=True):
            # a group that saves nothing is taken last
            divisor = max(gain, 1e-12)
            scores.append(own / divisor)
        return replace(self, scores=scores)

    def removed(self, choice: Choice) -> NDArray[np.intp]:
        """Channel ids that go under a choice."""
        if not choice:
            return np.empty(0, np.intp)
        parts = []
        for index, count in enumerate(choice):
            order = self.order(index)
            parts.append(order[:count])
        return np.concatenate(parts)

    def fitted(self, index: int, count: int) -> int:
        """Channels to remove for the allowed width nearest to `count` removed, the wider of two."""
        size = self.size(index)
        wanted = size - count
        # widest first, so that argmin prefers the wider of two as near
        ascending = self.widths[index]
        widths = ascending[::-1]
        distances = np.abs(widths - wanted)
        nearest = np.argmin(distances)
        width = int(widths[nearest])
        return size - width

    def fitted_at_most(self, index: int, count: int) -> int:
        """Channels to remove, `count` at most, so that an allowed width stays."""
        size = self.size(index)
        widths = self.widths[index]
        least = size - count
        # there is one: the present width is always allowed
        wide_enough = widths[widths >= least]
        narrowest = int(wide_enough.min())
        return size - narrowest


def allowed_widths(
    group: Group,
    was: int,
    multiple: int | None,
    convolved: bool,
    least: int,
    target: str,
) -> NDArray[np.intp]:
    """Widths that a group of formerly `was` channels may have, ascending.

    `multiple`: None for the target's own. A group whose channels take several slots of one axis
    keeps the axis a multiple.
    """
    size = len(group.channels)
    if multiple is None:
        multiple = 1
        if convolved:
            multiple = TARGETS[target].conv_width
        # a narrow layer would have no choice but all or nothing
        while multiple > 1 and was < 2 * multiple:
            multiple //= 2
    slots = max(count for _, count in group.places)
    common = gcd(multiple, slots)
    step = max(multiple // common, 1)
    widths = np.arange(0, size, step)
    fewest = min(least, size)
    wide_enough = widths[widths >= fewest]
    # the present width is allowed, whatever it is
    return np.append(wide_enough, size)


def choose(candidates: Candidates, scope: Scope, ratio: float) -> Choice:
    """Remove `ratio` of every group, or of all channels of a pool of groups, by score.

    The widths are fitted to those allowed.
    """
    if scope == "layer":
        return _of_each(candidates, ratio)
    choice = [0] * len(candidates.groups)
    for pool in _pools(candidates.groups, scope):
        was = 0
        already = 0
        for index in pool:
            was += candidates.was[index]
            already += candidates.already(index)
        wanted = share(ratio, was)
        # an earlier pruning may have taken more than this one asks for in all
        count = max(wanted - already, 0)
        lowest = _lowest_of(pool, candidates, count)
        for index, own in lowest:
            choice[index] = candidates.fitted(index, own)
    return choice


def _lowest_of(
    pool: Sequence[int], candidates: Candidates, count: int
) -> Iterator[tuple[int, int]]:
    """Channels of each group of a pool among the `count` of lowest score."""
    sizes = [candidates.size(index) for index in pool]
    owner = np.repeat(pool, sizes)
    parts = [candidates.scores[index] for index in pool]
    scores = np.concatenate(parts)
    # ties go in graph order
    ascending = np.argsort(scores, kind="stable")
    first = ascending[:count]
    lowest = owner[first]
    for index in pool:
        is_own = lowest == index
        own = np.count_nonzero(is_own)
        yield index, int(own)


def _of_each(candidates: Candidates, ratio: float) -> Choice:
    choice = []
    for index, was in enumerate(candidates.was):
        wanted = share(ratio, was)
        already = candidates.already(index)
        count = max(wanted - already, 0)
        fitted = candidates.fitted(index, count)
        choice.append(fitted)
    return choice


def increments(scores: Scores) -> Scores:
    """Part of a score that each channel adds, where scores count up along the order of removal.

    Never less than those before: a channel cannot go before one that is less important.
    """
    order = np.argsort(scores, kind="stable")
    # constant channels score below zero: they add nothing
    rising = np.maximum(scores[order], 0.0)
    steps = np.diff(rising, prepend=0.0)
    never_falling = np.maximum.accumulate(steps)
    added = np.empty(len(scores))
    added[order] = never_falling
    return added


def _pools(groups: Sequence[Group], scope: Scope) -> list[list[int]]:
    """Groups that are ranked together: all, or those alike.

    Groups are alike where the same kinds of weights lose the same axes.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024 (arXiv:2407.04616).
    """
    pools: dict[object, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        kind = None
        if scope == "isomorphic":
            kind = _kinds(group)
        pools[kind].append(index)
    return list(pools.values())


def _kinds(group: Group) -> object:
    """Axes that a group has in kernels and matrices, and the sizes of the kernels."""
    kinds = []
    for value, axis in matrices(group):
        assert value.const_value is not None
        shape = value.const_value.shape.numpy()
        kinds.append((axis, *shape[2:]))
    return tuple(sorted(kinds))
