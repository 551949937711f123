"""Importance from the weights alone: group norms, distance from the geometric median, BN scales,
chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context
from ..._core.edit import is_constant
from ..._core.lazy import blocks
from ..._core.ops import is_standard
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
"""Elements of each slice that distances take at a time, in float64: 128 KiB a channel."""

DEFAULT = ScoreOptions()
"""Options of norms where nothing else is asked for."""


def magnitude(
    groups: Sequence[Group],
    solution: Solution,
    power: Literal[1, 2],
    options: ScoreOptions = DEFAULT,
) -> list[Scores]:
    """Group norms: the L1 or L2 norm of a channel's slices of each weight, combined over weights.

    Source: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900); Li et al., ICLR 2017
    (arXiv:1608.08710) for one layer.
    """
    found = []
    by_group = _made_first(groups, solution)
    for group, weights in zip(groups, by_group, strict=True):
        parts = []
        for axis in weights:
            slots = power_sums(*axis, power)
            part = by_channel(group, solution, axis, slots)
            if power == 2:
                part = np.sqrt(part)
            parts.append(part)
        found.append(combined(parts, options))
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
    """Sum of the distances of a channel's slice of the producing weight to those of the others.

    Near the median it is small. O(n^2) in channels. Source: He et al., Filter Pruning via Geometric
    Median, CVPR 2019 (arXiv:1811.00250), eq. 5.
    """
    found: Found = []
    producers = producers_of(groups, solution)
    weights = _made_first(groups, solution)
    for group, made, axes in zip(groups, producers, weights, strict=True):
        # without a producer (a table, a gate) the first weight has to serve
        count = max(len(made), 1)
        chosen = axes[:count]
        parts = [_distances(group, solution, axis) for axis in chosen]
        found.append(combined(parts, options))
    return found


def _made_first(groups: Sequence[Group], solution: Solution) -> list[list[Axis]]:
    """Matrices of each group: those that make its channels, others (tables), then its readers'."""
    producers = producers_of(groups, solution)
    consumers = consumers_of(groups, solution)
    result = []
    for group, made, read in zip(groups, producers, consumers, strict=True):
        rank = {}
        for reader in read:
            axis = (reader.weight, reader.weight_axis)
            rank[axis] = 2
        # a weight that makes and reads the channels counts as a producer
        for producer in made:
            axis = (producer.weight, producer.weight_axis)
            rank[axis] = 0
        own = matrices(group)
        ranks = [rank.get(axis, 1) for axis in own]
        # stable: within a rank the weights stay in graph order
        order = np.argsort(ranks, kind="stable")
        ordered = [own[index] for index in order]
        result.append(ordered)
    return result


def _distances(group: Group, solution: Solution, axis: Axis) -> Scores:
    """Sum of the Euclidean distances of each channel's slice to all others, (channels,)."""
    rows = _slices(group, solution, axis)
    count, elements = rows.shape
    products = np.zeros((count, count))
    for start in range(0, elements, COLUMNS):
        end = start + COLUMNS
        part = rows[:, start:end].astype(np.float64)
        products += part @ part.T
    squares = np.diagonal(products)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b; rounding may leave it below zero
    both = squares[:, None] + squares
    apart = both - 2 * products
    apart = np.maximum(apart, 0)
    lengths = np.sqrt(apart)
    distances: Scores = lengths.sum(axis=1)
    return distances


def _slices(group: Group, solution: Solution, axis: Axis) -> NDArray[np.float32]:
    """Slices of an initializer that each channel of a group takes, (channels, elements).

    The weight is read block by block.
    """
    value, index = axis
    tensor = value.const_value
    assert tensor is not None
    shape = [int(d) for d in tensor.shape.numpy()]
    flat = np.empty(tensor.size, np.float32)
    for start, block in blocks(tensor):
        end = start + block.size
        flat[start:end] = block
    whole = flat.reshape(shape)
    slots = np.moveaxis(whole, index, 0)
    count = shape[index]
    slots = slots.reshape(count, -1)
    channels = len(group.channels)
    place = channel_places(group, solution, axis)
    is_taken = place < channels
    taken = int(is_taken.sum())
    # slots of one channel come to lie together, those of none come last
    order = np.argsort(place, kind="stable")
    order = order[:taken]
    rows = np.ascontiguousarray(slots[order])
    return rows.reshape(channels, -1)


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
    scales = _batchnorm_scales(model, solution)
    found: Found = []
    for group in groups:
        parts = []
        for root, _ in group.places:
            for scale in scales.get(root, ()):
                axis = (scale, 0)
                magnitudes = power_sums(scale, 0, 1)
                part = by_channel(group, solution, axis, magnitudes)
                parts.append(part)
        if parts:
            found.append(combined(parts, options))
        else:
            found.append("it has no BatchNormalization")
    return found


def _batchnorm_scales(model: ir.Model, solution: Solution) -> dict[int, list[ir.Value]]:
    """Constant scales of BatchNormalization nodes by the class of their axis."""
    scales: dict[int, list[ir.Value]] = {}
    for node in model.graph:
        if not is_standard(node, "BatchNormalization"):
            continue
        scale = node.inputs[1]
        if scale is None or not is_constant(scale):
            continue
        root = solution.classes.get((scale, 0))
        if root is not None:
            scales.setdefault(root, []).append(scale)
    return scales


def chance(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Numbers from the run's seed: what every criterion has to beat."""
    random = np.random.default_rng(context.seed)
    sizes = [len(group.channels) for group in groups]
    return [random.random(size) for size in sizes]
