"""How much each channel of a group matters, from the weights alone or with calibration data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._dims.groups import Group
from .._dims.relations import Axis
from .._dims.solve import FROZEN, Solution
from .._lazy import blocks

Scores = NDArray[np.float64]
"""One number for each channel of a group, higher for what matters more."""


def by_channel(group: Group, solution: Solution, axis: Axis, per_slot: Scores) -> Scores:
    """Sum what the slots of an axis have over the channels of a group."""
    slots = solution.slots(*axis)
    number = np.full(solution.count + 1, len(group.channels))
    number[group.channels] = np.arange(len(group.channels))
    place = np.where(slots == FROZEN, len(group.channels), number[slots])
    sums: Scores = np.bincount(place, per_slot, len(group.channels) + 1)[:-1]
    return sums


def power_sums(value: ir.Value, axis: int, power: int) -> Scores:
    """sum |w|^power over everything but `axis`, (d_axis,). Streams."""
    tensor = value.const_value
    assert tensor is not None
    shape = [int(d) for d in tensor.shape.numpy()]
    after = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    total = np.zeros(shape[axis])
    for _, block in blocks(tensor, shape[axis] * after):
        parts = np.abs(block.astype(np.float32, copy=False)).reshape(-1, shape[axis], after)
        total += np.einsum("aib,aib->i", parts, parts) if power == 2 else parts.sum((0, 2))
    return total


def magnitude(groups: Sequence[Group], solution: Solution, power: int) -> list[Scores]:
    """Group norms: of each weight the L1 or L2 norm of a channel's slices over their mean; then the mean over weights.

    Source: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900); Li et al., ICLR 2017 (arXiv:1608.08710) for one layer.
    """
    found = []
    for group in groups:
        parts = []
        for value, axis in group.weights:
            if value.const_value is not None and len(value.const_value.shape) > 1:
                sums = by_channel(group, solution, (value, axis), power_sums(value, axis, power))
                norms = np.sqrt(sums) if power == 2 else sums
                parts.append(norms / (norms.mean() or 1.0))
        found.append(np.mean(parts, 0))
    return found
