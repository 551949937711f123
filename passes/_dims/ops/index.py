"""Ops that look elements up, write them in place, rank or count them.

Indexed axes stay, the others go along.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from ..relations import Relations, axis_attribute, optional_input, required_input
from ..table import rule
from .elementwise import elementwise, last_axes

INDEXED = "its elements are found by index"


def stays(
    value: ir.Value | None,
    axes: Collection[int],
    reason: str,
    relations: Relations,
) -> None:
    """Freeze some axes of a value, negative ones counted from its end."""
    rank = relations.rank(value)
    for axis in axes:
        if -rank <= axis < rank:
            relations.freeze(value, axis, reason)


def matching(one: ir.Value, other: ir.Value, axis: int, relations: Relations) -> None:
    """Relate one axis of two tensors that are walked side by side.

    Where sizes differ, the first slots are meant.
    """
    size = relations.size(one, axis)
    if relations.size(other, axis) == size:
        relations.same(one, axis, other, axis)
    else:
        stays(one, [axis], INDEXED, relations)
        stays(other, [axis], INDEXED, relations)


@rule("GatherElements")
def gather_elements(node: ir.Node, relations: Relations) -> None:
    """Data, indices and result of one rank; the result has the indices' shape."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    rank = relations.rank(data)
    chosen = axis_attribute(node, 0, rank)
    result = node.outputs[0]
    elementwise(indices, result, relations)
    relations.freeze(data, chosen, INDEXED)
    for axis in range(rank):
        if axis != chosen:
            matching(data, indices, axis, relations)


@rule("ScatterElements", "Scatter")
def scatter_elements(node: ir.Node, relations: Relations) -> None:
    """The result has the data's shape, updates have that of the indices."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    updates = required_input(node, 2)
    rank = relations.rank(data)
    chosen = axis_attribute(node, 0, rank)
    result = node.outputs[0]
    elementwise(data, result, relations)
    relations.freeze(data, chosen, INDEXED)
    for axis in range(rank):
        relations.same(updates, axis, indices, axis)
        if axis != chosen:
            matching(data, updates, axis, relations)


@rule("GatherND")
def gather_nd(node: ir.Node, relations: Relations) -> None:
    """Data (*B, *looked up, *rest), indices (*B, *places, k) -> (*B, *places, *rest)."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    result = node.outputs[0]
    *places, depth = relations.dims(indices)
    batch = node.attributes.get_int("batch_dims", 0)
    for axis in range(batch):
        relations.same(data, axis, result, axis)
    for axis in range(len(places)):
        relations.same(indices, axis, result, axis)
    stays(indices, [-1], "it holds indices", relations)
    stays(
        data,
        range(batch, batch + depth),
        INDEXED,
        relations,
    )
    rest = relations.rank(data) - batch - depth
    last_axes(data, result, rest, relations)


@rule("ScatterND")
def scatter_nd(node: ir.Node, relations: Relations) -> None:
    """Data (*looked up, *rest), indices (*places, k), updates (*places, *rest) -> as the data."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    updates = required_input(node, 2)
    *places, depth = relations.dims(indices)
    result = node.outputs[0]
    elementwise(data, result, relations)
    # an index addresses the first axes of the data, so many as it has numbers
    stays(data, range(depth), INDEXED, relations)
    stays(indices, [-1], "it holds indices", relations)
    for axis in range(len(places)):
        relations.same(indices, axis, updates, axis)
    rest = relations.rank(data) - depth
    last_axes(data, updates, rest, relations)


@rule("TopK", "ArgMax", "ArgMin")
def ranked(node: ir.Node, relations: Relations) -> None:
    """Slots of one axis are compared with each other; the others stay apart."""
    data = required_input(node, 0)
    rank = relations.rank(data)
    is_top = node.op_type == "TopK"
    default = -1 if is_top else 0
    chosen = axis_attribute(node, default, rank)
    reason = f"{node.op_type} needs all of it, in order"
    relations.freeze(data, chosen, reason)
    keeps_axis = is_top or bool(node.attributes.get_int("keepdims", 1))
    for result in node.outputs:
        if not relations.rank(result):
            continue
        for axis in range(rank):
            if axis == chosen and keeps_axis:
                relations.freeze(result, axis, reason)
            elif axis != chosen:
                # axes behind one that is dropped move up
                is_behind = axis > chosen and not keeps_axis
                after = axis - 1 if is_behind else axis
                relations.same(data, axis, result, after)
    relations.freeze_further_inputs(node)


@rule("OneHot")
def one_hot(node: ir.Node, relations: Relations) -> None:
    """Indices (*A) -> (*A, depth, *rest): the new axis is compared with numbers."""
    indices = required_input(node, 0)
    result = node.outputs[0]
    rank = relations.rank(result)
    new = axis_attribute(node, -1, rank)
    relations.freeze(result, new, "OneHot makes a slot for each class along it")
    for axis in range(rank - 1):
        # the new axis moves those behind it
        after = axis if axis < new else axis + 1
        relations.same(indices, axis, result, after)


@rule("Trilu", "ReverseSequence", "CenterCropPad", "DFT", "Det", "Compress")
def some_axes(node: ir.Node, relations: Relations) -> None:
    """Elementwise but for the axes that an op names or whose positions it reads."""
    data = required_input(node, 0)
    result = node.outputs[0]
    before = relations.dims(data)
    after = relations.dims(result)
    frozen = _positional(node, len(before), relations)
    reason = f"{node.op_type} needs all of it, in order"
    for axis, size in enumerate(before):
        keeps_size = axis < len(after) and size == after[axis]
        if axis not in frozen and keeps_size:
            relations.same(data, axis, result, axis)
            continue
        stays(data, [axis], reason, relations)
        stays(result, [axis], reason, relations)
    relations.freeze_further_inputs(node)


def _positional(node: ir.Node, rank: int, relations: Relations) -> set[int]:
    """Axes whose positions an op reads; all of them where they are computed."""
    attributes = node.attributes
    if node.op_type in ("Trilu", "Det"):
        return {rank - 2, rank - 1}
    if node.op_type == "ReverseSequence":
        time = attributes.get_int("time_axis", 0)
        batch = attributes.get_int("batch_axis", 1)
        return {time, batch}
    if node.op_type == "DFT":
        # the last axis holds real and imaginary parts
        return {rank - 1} | _transformed(node, rank, relations)
    if node.op_type == "Compress" and "axis" in attributes:
        return {axis_attribute(node, 0, rank)}
    if node.op_type == "CenterCropPad":
        return set()
    return set(range(rank))


def _transformed(node: ir.Node, rank: int, relations: Relations) -> set[int]:
    """Axis of a DFT: an attribute before opset 20, then an input."""
    if relations.trace.opset < 20:
        return {axis_attribute(node, 1, rank)}
    axis = optional_input(node, 2)
    if axis is None:
        return {rank - 2}
    given = relations.trace.constants(axis)
    if given is None:
        return set(range(rank))
    return {given[0] % rank}


MIXED = (
    "NonZero",
    "Unique",
    "NonMaxSuppression",
    "Multinomial",
    "MaxUnpool",
    "STFT",
    "MelWeightMatrix",
    "SequenceConstruct",
    "SplitToSequence",
    "ConcatFromSequence",
    "SequenceInsert",
    "SequenceAt",
    "Optional",
    "OptionalGetElement",
    "Range",
    "EyeLike",
    "RandomNormal",
    "RandomUniform",
)
"""Ops that tie every slot to every other."""


@rule(*MIXED)
def mixed(node: ir.Node, relations: Relations) -> None:
    """Left whole."""
    reason = f"{node.op_type} ties all of it together"
    relations.freeze_node(node, reason)
