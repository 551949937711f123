"""Scores of channels: types that all criteria share, and how several weights' scores become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context
from ..._core.lazy import blocks
from ..._dims.groups import Group
from ..._dims.relations import Axis
from ..._dims.solve import FROZEN, Solution

Scores = NDArray[np.float64]
"""One number for each channel of a group, higher for what matters more, never negative."""

Found = list[Scores | str]
"""Scores of each group, or the reason why a criterion has none for it."""

Aggregate = Literal["mean", "max", "sum", "first"]
Normalise = Literal["mean", "max", "none", "std"]
Base = Literal["activation", "variance"]
"""Criteria that score the slots of one reader by means of its input."""


@dataclass(frozen=True)
class ScoreOptions:
    """Options of making scores.

    `aggregate`: over the weights (or readers) of a group, `first`: the producer's alone.
    `normalise`: what each weight's scores are divided by before. `samples`: of calibration, at
    most. `ratio`: fraction of the channels that would go, for `stability`.
    """

    aggregate: Aggregate = "mean"
    normalise: Normalise = "mean"
    samples: int = 64
    ratio: float = 0.5


Score = Callable[[Sequence[Group], Solution, ir.Model, Context, ScoreOptions], Found]
"""A criterion's function: scores of every group of a solved model."""


def combined(parts: Sequence[Scores], options: ScoreOptions) -> Scores:
    """Scores of one group from those of its weights, at least one, the producer's first."""
    scaled = [normalised(part, options.normalise) for part in parts]
    return aggregated(scaled, options.aggregate)


def aggregated(parts: Sequence[Scores], how: Aggregate) -> Scores:
    """Scores of several weights or readers as one, unscaled."""
    if how == "first":
        return parts[0]
    stacked = np.stack(parts)
    if how == "max":
        highest: Scores = stacked.max(axis=0)
        return highest
    total: Scores = stacked.sum(axis=0)
    if how == "mean":
        total = total / len(parts)
    return total


def normalised(scores: Scores, how: Normalise) -> Scores:
    """Scores over their mean, largest or standard deviation.

    Unchanged where that is zero: zeros stay zeros, and all-equal scores have no deviation.
    """
    if how == "none":
        return scores
    if how == "mean":
        scale = float(scores.mean())
    elif how == "max":
        scale = float(scores.max())
    else:
        scale = float(scores.std())
    if scale > 0:
        return scores / scale
    return scores


def by_channel(
    group: Group, solution: Solution, axis: Axis, per_slot: Scores
) -> Scores:
    """Sum over the slots of an axis that each channel of a group takes, (slots,) -> (channels,)."""
    count = len(group.channels)
    place = channel_places(group, solution, axis)
    sums = np.bincount(place, per_slot, count + 1)
    # the last sum is that of slots which are none of the group's
    return sums[:-1].astype(np.float64, copy=False)


def channel_places(group: Group, solution: Solution, axis: Axis) -> NDArray[np.intp]:
    """Position in `group.channels` of each slot of an axis; their count for slots of no channel."""
    slots = solution.slots(*axis)
    elsewhere = len(group.channels)
    position = np.full(solution.count + 1, elsewhere)
    position[group.channels] = np.arange(elsewhere)
    # FROZEN is -1, which as an index would be the last channel
    return np.where(slots == FROZEN, elsewhere, position[slots])


def power_sums(value: ir.Value, axis: int, power: Literal[1, 2]) -> Scores:
    """Sum |w|^power over everything but `axis`, (d_axis,). Streams the weight."""
    tensor = value.const_value
    assert tensor is not None
    shape = [int(d) for d in tensor.shape.numpy()]
    slots = shape[axis]
    inner = math.prod(shape[axis + 1 :])
    total = np.zeros(slots)
    granule = max(slots * inner, 1)
    # blocks hold whole runs along the axis, so that each reshapes
    for _, block in blocks(tensor, granule):
        floats = block.astype(np.float32, copy=False)
        sizes = np.abs(floats)
        parts = sizes.reshape(-1, slots, inner)
        if power == 2:
            total += np.einsum("aib,aib->i", parts, parts)
        else:
            total += parts.sum(axis=(0, 2))
    return total


def matrices(group: Group) -> list[Axis]:
    """(initializer, axis) of the group's kernels, matrices and tables: no vectors."""
    found = []
    for value, axis in group.weights:
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) > 1:
            found.append((value, axis))
    return found
