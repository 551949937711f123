"""Normalisations and reductions: what runs over an axis, and what stays apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..._core.ops import normalizes_by_batch
from ..relations import (
    Axis,
    Factors,
    MixKind,
    Relations,
    axis_attribute,
    name_of,
    optional_input,
    required_input,
)
from ..surgery import Surgery, set_int
from ..table import rule, update
from .conv import freeze_spatial
from .elementwise import elementwise

SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"})
"""Reductions to which a zero adds nothing: they contract; the others normalise."""

# factors of the axes of a GroupNormalization
GROUP = 0
CHANNEL = 1


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(node: ir.Node, relations: Relations) -> None:
    """X (N, C, *S) and vectors (C,).

    InstanceNormalization normalises over S, BatchNormalization in training over N too.
    """
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)
    for value in (*node.inputs[1:], *node.outputs[1:]):
        if value is not None and relations.rank(value):
            relations.same(value, 0, data, 1)
    axes = list(range(2, relations.rank(data)))
    if normalizes_by_batch(node):
        axes.insert(0, 0)
    elif node.op_type != "InstanceNormalization":
        return
    normalised = [(0, axis) for axis in axes]
    relations.mix(node, "normalise", *normalised)


@rule("LayerNormalization", "RMSNormalization")
def trailing(node: ir.Node, relations: Relations) -> None:
    """Normalises over the axes from `axis` on; scale and bias are aligned at the last axis."""
    data = required_input(node, 0)
    result = node.outputs[0]
    rank = relations.rank(data)
    # mean and deviation, the further outputs, have axes of width 1 there
    first = axis_attribute(node, -1, rank)
    for value in node.inputs[1:]:
        if value is not None:
            elementwise(value, result, relations)
    elementwise(data, result, relations)
    for value in node.outputs[1:]:
        if relations.shape(value) is not None:
            elementwise(data, value, relations)
    normalised = [(0, axis) for axis in range(first, rank)]
    relations.mix(node, "normalise", *normalised)


@rule("GroupNormalization")
def group_norm(node: ir.Node, relations: Relations) -> None:
    """X (N, g*c, *S); scale and bias (g*c,), (g,) before opset 21.

    Whole groups go, or as many channels of each.
    """
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)
    freeze_spatial(data, relations)
    groups = node.attributes.get_int("num_groups", 1)
    channels = relations.size(data, 1)
    width = channels // groups
    axes: list[tuple[Axis, Factors]] = [((data, 1), (GROUP, CHANNEL))]
    mixed = [(0, 1)]
    for index, value in enumerate(node.inputs[1:], 1):
        if value is None:
            continue
        # one number a group before opset 21; a group one wide cannot be told from a channel
        if relations.shape(value) == (groups,) and width > 1:
            axes.append(((value, 0), (GROUP,)))
            mixed.append((index, 0))
        else:
            relations.same(value, 0, data, 1)
    relations.grouped(
        name_of(node),
        sizes=(groups, width),
        axes=axes,
        options=[(GROUP,), (CHANNEL,)],
    )
    relations.mix(node, "normalise", *mixed)


@update("GroupNormalization")
def fewer_groups(node: ir.Node, surgery: Surgery) -> None:
    """Set the groups of which some channel stays."""
    data = required_input(node, 0)
    kept = surgery.kept(data, 1)
    if kept is None:
        return
    before = node.attributes.get_int("num_groups", 1)
    channels = surgery.before(data)[1]
    width = channels // before
    groups = np.unique(kept // width)
    set_int(node, "num_groups", len(groups))


@rule(
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
def reduction(node: ir.Node, relations: Relations) -> None:
    """Reduced axes are mixed; the others are those of the result."""
    data = required_input(node, 0)
    result = node.outputs[0]
    axes = reduced_axes(node, relations)
    if axes is None:
        reason = f"the axes of {node.op_type} are computed at run time"
        relations.freeze_all(data, reason)
        relations.freeze_all(result, reason)
        return
    keeps_reduced = bool(node.attributes.get_int("keepdims", 1))
    position = 0
    for axis in range(relations.rank(data)):
        if axis not in axes:
            relations.same(data, axis, result, position)
        if keeps_reduced or axis not in axes:
            position += 1
    assert position == relations.rank(result)
    if axes:
        kind: MixKind = "contract" if node.op_type in SUMS else "normalise"
        summed = [(0, axis) for axis in sorted(axes)]
        relations.mix(node, kind, *summed)


def reduced_axes(node: ir.Node, relations: Relations) -> set[int] | None:
    """Axes of a reduction as non-negative numbers; None if they are computed."""
    rank = relations.rank(node.inputs[0])
    # an attribute in old opsets, an input since 13 or 18
    given: list[int] | None = list(node.attributes.get_ints("axes", []))
    computed = optional_input(node, 1)
    if computed is not None:
        given = relations.trace.constants(computed)
        if given is None:
            return None
    if given:
        return {axis % rank for axis in given}
    if node.attributes.get_int("noop_with_empty_axes", 0):
        return set()
    return set(range(rank))


@rule(
    "Softmax",
    "LogSoftmax",
    "Hardmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "CumSum",
    "CumProd",
)
def along_axis(node: ir.Node, relations: Relations) -> None:
    """Elementwise on all axes but the one it runs along, which stays."""
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)
    rank = relations.rank(data)
    for axis in _run_along(node, rank, relations):
        relations.freeze(data, axis, f"{node.op_type} needs all of it, in order")
    relations.freeze_further_inputs(node)


def _run_along(node: ir.Node, rank: int, relations: Relations) -> list[int]:
    if node.op_type == "MeanVarianceNormalization":
        axes = node.attributes.get_ints("axes", [0, 2, 3])
        return [axis % rank for axis in axes]
    if node.op_type in ("CumSum", "CumProd"):
        given = relations.trace.constants(node.inputs[1])
        if given is None:
            return list(range(rank))
        return [given[0] % rank]
    if node.op_type != "LpNormalization" and relations.trace.opset < 13:
        # the axes from `axis` on were flattened and normalised together
        first = axis_attribute(node, 1, rank)
        return list(range(first, rank))
    return [axis_attribute(node, -1, rank)]
