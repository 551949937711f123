"""What every importance criterion is made of: scores of channels, and how those of several weights
become one.
"""

from __future__ import annotations

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
"""For each group its scores, or why a criterion has none for it."""

Aggregate = Literal["mean", "max", "sum", "first"]
Normalise = Literal["mean", "max", "none", "std"]
Base = Literal["activation", "variance"]


@dataclass(frozen=True)
class ScoreOptions:
    """How scores are made. `aggregate`: of the weights (or consumers) of a group, `first`: the
    producer's alone.

    `normalise`: what each weight's scores are divided by before. `samples`: of calibration, at
    most. For `stability`: `ratio` that would go (fraction), `rounds` of halves of the data, `base`
    criterion. For `drift`: `damp`, the share of the mean variance added to every variance.
    """

    aggregate: Aggregate = "mean"
    normalise: Normalise = "mean"
    samples: int = 64
    ratio: float = 0.5
    rounds: int = 100
    base: Base = "variance"
    damp: float = 1e-4


Score = Callable[[Sequence[Group], Solution, ir.Model, Context, ScoreOptions], Found]


@dataclass(frozen=True)
class Criterion:
    """A way to say which channels matter. `needs_gradients`: of a context that can
    differentiate.
    """

    name: str
    needs_data: bool
    needs_gradients: bool
    source: str
    function: Score


def combined(parts: Sequence[Scores], options: ScoreOptions) -> Scores:
    """The scores of one group from those of its weights, at least one, the producer's first."""
    scaled = [normalised(part, options.normalise) for part in parts]
    if options.aggregate == "first":
        return scaled[0]
    stacked = np.stack(scaled)
    result: Scores = stacked.max(0) if options.aggregate == "max" else stacked.sum(0)
    return result / len(scaled) if options.aggregate == "mean" else result


def normalised(scores: Scores, how: Normalise) -> Scores:
    """Scores over their mean, largest or standard deviation; zeros stay zeros, and all-equal ones
    have no deviation.
    """
    if how == "none":
        return scores
    scale = float(
        scores.mean()
        if how == "mean"
        else scores.max()
        if how == "max"
        else scores.std()
    )
    return scores / scale if scale > 0 else scores


def by_channel(
    group: Group, solution: Solution, axis: Axis, per_slot: Scores
) -> Scores:
    """Sum what the slots of an axis have over the channels of a group."""
    place = channel_places(group, solution, axis)
    return np.bincount(place, per_slot, len(group.channels) + 1)[:-1].astype(
        np.float64, copy=False
    )


def channel_places(group: Group, solution: Solution, axis: Axis) -> NDArray[np.intp]:
    """Of each slot of an axis its position in `group.channels`; their count where it is none of the
    group's.
    """
    slots = solution.slots(*axis)
    number = np.full(solution.count + 1, len(group.channels))
    number[group.channels] = np.arange(len(group.channels))
    return np.where(slots == FROZEN, len(group.channels), number[slots])


def power_sums(value: ir.Value, axis: int, power: int) -> Scores:
    """Sum |w|^power over everything but `axis`, (d_axis,). Streams."""
    tensor = value.const_value
    assert tensor is not None
    shape = [int(d) for d in tensor.shape.numpy()]
    after = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    total = np.zeros(shape[axis])
    for _, block in blocks(tensor, max(shape[axis] * after, 1)):
        parts = np.abs(block.astype(np.float32, copy=False)).reshape(
            -1, shape[axis], after
        )
        total += (
            np.einsum("aib,aib->i", parts, parts) if power == 2 else parts.sum((0, 2))
        )
    return total


def matrices(group: Group) -> list[Axis]:
    """(initializer, axis) of the group's kernels, matrices and tables: what is not a vector."""
    return [
        (v, axis)
        for v, axis in group.weights
        if v.const_value is not None and len(v.const_value.shape) > 1
    ]
