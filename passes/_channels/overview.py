"""Overview of a model's channel groups as plain data, for tools that show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._base import Declined, NullContext
from .._dims.groups import Group
from .branches import droppable
from .importance.scores import Scores
from .importance.weights import magnitude
from .pruning import Pruning


@dataclass(frozen=True)
class GroupMember:
    """An axis of a weight that loses slots with the group; `slots`: of each channel."""

    weight: str
    axis: int
    slots: int


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest L2 norm of a group's channels, each weight's over its mean."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together.

    `width`: channels now; `first_width`: before the model's first pruning. `norms`: None where
    weights were not to be read. `droppable`: whether the model works on without any of them.
    """

    name: str
    width: int
    first_width: int
    members: tuple[GroupMember, ...]
    norms: Spread | None
    droppable: bool


@dataclass(frozen=True)
class ChannelGroups:
    """Channel groups of a model in graph order; `frozen`: axes of weights that keep all slots."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Declined, ...]


def channel_groups(model: ir.Model, *, norms: bool = True) -> ChannelGroups:
    """Find the channel groups that `prune-channels` works on; the model stays as it is.

    `norms`: read the weights, once, block by block, for the spread of each group.
    """
    pruning = Pruning(
        model,
        NullContext(),
        "heads",
        keep_batchnorm=False,
    )
    groups = []
    scores: list[Scores] = []
    if norms:
        scores = magnitude(pruning.groups, pruning.solution, 2)
    for index, group in enumerate(pruning.groups):
        spread = _spread(scores[index]) if norms else None
        described = _described(group, spread, pruning)
        groups.append(described)
    return ChannelGroups(
        groups=tuple(groups),
        frozen=tuple(pruning.declined),
    )


def _spread(scores: Scores) -> Spread:
    quantiles = np.quantile(scores, [0, 0.5, 1])
    least, median, most = quantiles.tolist()
    return Spread(least, median, most)


def _described(group: Group, norms: Spread | None, pruning: Pruning) -> ChannelGroup:
    slots = dict(group.places)
    members = []
    for value, axis in group.weights:
        root = pruning.solution.classes[value, axis]
        member = GroupMember(
            weight=value.name or "",
            axis=axis,
            slots=slots[root],
        )
        members.append(member)
    return ChannelGroup(
        name=group.name,
        width=len(group.channels),
        first_width=pruning.was[group.name],
        members=tuple(members),
        norms=norms,
        droppable=droppable(group, pruning.solution),
    )
