"""Importance from the weights alone: group norms, distance from the geometric median, BN scales,
chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context
from ..._core.edit import is_constant
from ..._core.lazy import blocks
from ..._dims.groups import Group
from ..._dims.relations import Axis
from ..._dims.solve import Solution
from ..contractions import consumers_of, producers_of
from .scores import (
    Found,
    ScoreOptions,
    Scores,
    by_channel,
    channel_places,
    combined,
    matrices,
    power_sums,
)

COLUMNS = 1 << 14
"""Elements of each slice that distances take at a time, in float64."""


def magnitude(
    groups: Sequence[Group],
    solution: Solution,
    power: int,
    options: ScoreOptions | None = None,
) -> list[Scores]:
    """Group norms: of each weight the L1 or L2 norm of a channel's slices, then combined over
    weights.

    Source: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900); Li et al., ICLR 2017
    (arXiv:1608.08710) for one layer.
    """
    found = []
    for group, made in zip(groups, _made_first(groups, solution), strict=True):
        parts = []
        for axis in made:
            sums = by_channel(group, solution, axis, power_sums(*axis, power))
            parts.append(np.sqrt(sums) if power == 2 else sums)
        found.append(combined(parts, options or ScoreOptions()))
    return found


def l1(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Sum of |w| over a channel's slices."""
    return [*magnitude(groups, solution, 1, options)]


def l2(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Root of the sum of w^2 over a channel's slices."""
    return [*magnitude(groups, solution, 2, options)]


def geometric_median(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Sum of the distances of a channel's slice of the producing weight to those of the others:
    near the median, less.

    O(n^2) in channels. Source: He et al., Filter Pruning via Geometric Median, CVPR 2019
    (arXiv:1811.00250), eq. 5.
    """
    found: Found = []
    made = producers_of(groups, solution)
    for group, producers, axes in zip(
        groups, made, _made_first(groups, solution), strict=True
    ):
        chosen = axes[: len(producers)] or axes[:1]
        found.append(
            combined([_distances(group, solution, axis) for axis in chosen], options)
        )
    return found


def _made_first(groups: Sequence[Group], solution: Solution) -> list[list[Axis]]:
    """The matrices of each group: those that make its channels, others (tables), then those that
    read them.
    """
    result = []
    for group, made, read in zip(
        groups,
        producers_of(groups, solution),
        consumers_of(groups, solution),
        strict=True,
    ):
        rank = {(c.weight, c.weight_axis): 2 for c in read} | {
            (p.weight, p.weight_axis): 0 for p in made
        }
        result.append(
            [
                axis
                for wanted in range(3)
                for axis in matrices(group)
                if rank.get(axis, 1) == wanted
            ]
        )
    return result


def _distances(group: Group, solution: Solution, axis: Axis) -> Scores:
    rows = _slices(group, solution, axis)
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], COLUMNS):
        part = rows[:, start : start + COLUMNS].astype(np.float64)
        products += part @ part.T
    squares = np.diagonal(products)
    distances: Scores = np.sqrt(
        np.maximum(squares[:, None] + squares - 2 * products, 0)
    ).sum(1)
    return distances


def _slices(group: Group, solution: Solution, axis: Axis) -> NDArray[np.float32]:
    """(channels, elements): the slices of an initializer that each channel of a group takes. Read
    block by block.
    """
    value, index = axis
    tensor = value.const_value
    assert tensor is not None
    shape = [int(d) for d in tensor.shape.numpy()]
    whole = np.empty(tensor.size, np.float32)
    for start, block in blocks(tensor):
        whole[start : start + block.size] = block
    slots = np.moveaxis(whole.reshape(shape), index, 0).reshape(shape[index], -1)
    place = channel_places(group, solution, axis)
    order = np.argsort(place, kind="stable")[: int((place < len(group.channels)).sum())]
    return np.ascontiguousarray(slots[order]).reshape(len(group.channels), -1)


def bn_scale(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """|gamma| of the BatchNormalization behind a channel.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV
    2017 (arXiv:1708.06519).
    """
    scales: dict[int, list[ir.Value]] = {}
    for node in model.graph:
        scale = (
            node.inputs[1]
            if node.op_type == "BatchNormalization" and node.domain == ""
            else None
        )
        if scale is not None and is_constant(scale) and (scale, 0) in solution.classes:
            scales.setdefault(solution.classes[scale, 0], []).append(scale)
    found: Found = []
    for group in groups:
        own = [scale for root, _ in group.places for scale in scales.get(root, ())]
        parts = [
            by_channel(group, solution, (scale, 0), power_sums(scale, 0, 1))
            for scale in own
        ]
        found.append(
            combined(parts, options) if parts else "it has no BatchNormalization"
        )
    return found


def chance(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Numbers from the run's seed: what every criterion has to beat."""
    random = np.random.default_rng(context.seed)
    return [random.random(len(group.channels)) for group in groups]
