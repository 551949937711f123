"""Ops that look elements up, write them in place, rank or count them: indexed axes stay, the others
go along.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from ..relations import Relations
from ..table import rule
from .elementwise import elementwise

INDEXED = "addressed by indices"


def axis_of(node: ir.Node, relations: Relations, default: int) -> int:
    """The attribute `axis` as a non-negative number of an axis of the first input."""
    return node.attributes.get_int("axis", default) % max(
        len(relations.shape(node.inputs[0]) or ()), 1
    )


def stays(
    value: ir.Value | None, axes: Collection[int], reason: str, relations: Relations
) -> None:
    """Freeze some axes of a value, negative ones counted from its end."""
    rank = len(relations.shape(value) or ())
    for axis in axes:
        if -rank <= axis < rank:
            relations.freeze(value, axis, reason)


def matching(
    one: ir.Value | None, other: ir.Value | None, axis: int, relations: Relations
) -> None:
    """One axis of two tensors that are walked side by side; where sizes differ, the first slots are
    meant.
    """
    assert one is not None
    assert other is not None
    if (relations.shape(one) or ())[axis] == (relations.shape(other) or ())[axis]:
        relations.same(one, axis, other, axis)
    else:
        stays(one, [axis], INDEXED, relations)
        stays(other, [axis], INDEXED, relations)


@rule("GatherElements")
def gather_elements(node: ir.Node, relations: Relations) -> None:
    """Data, indices and result of one rank; the result has the indices' shape."""
    data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert indices is not None
    chosen = axis_of(node, relations, 0)
    elementwise(indices, result, relations)
    relations.freeze(data, chosen, INDEXED)
    for axis in range(len(relations.shape(data) or ())):
        if axis != chosen:
            matching(data, indices, axis, relations)


@rule("ScatterElements", "Scatter")
def scatter_elements(node: ir.Node, relations: Relations) -> None:
    """The result has the data's shape, updates have that of the indices."""
    data, indices, updates = node.inputs[:3]
    assert data is not None
    assert updates is not None
    chosen = axis_of(node, relations, 0)
    elementwise(data, node.outputs[0], relations)
    relations.freeze(data, chosen, INDEXED)
    for axis in range(len(relations.shape(data) or ())):
        relations.same(updates, axis, indices or updates, axis)
        if axis != chosen:
            matching(data, updates, axis, relations)


@rule("GatherND")
def gather_nd(node: ir.Node, relations: Relations) -> None:
    """Data (*B, *looked up, *rest), indices (*B, *places, k) -> (*B, *places, *rest)."""
    data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None
    assert indices is not None
    places, depth = relations.shape(indices) or (), len(relations.shape(data) or ())
    batch = node.attributes.get_int("batch_dims", 0)
    for axis in range(batch):
        relations.same(data, axis, result, axis)
    for axis in range(len(places) - 1):
        relations.same(indices, axis, result, axis)
    stays(indices, [-1], "indices", relations)
    stays(data, range(batch, batch + places[-1]), INDEXED, relations)
    for back in range(1, depth - batch - places[-1] + 1):
        relations.same(data, -back, result, -back)


@rule("ScatterND")
def scatter_nd(node: ir.Node, relations: Relations) -> None:
    """Data (*looked up, *rest), indices (*places, k), updates (*places, *rest) -> as the data."""
    data, indices, updates = node.inputs[:3]
    assert data is not None
    assert indices is not None
    assert updates is not None
    places, depth = relations.shape(indices) or (), len(relations.shape(data) or ())
    elementwise(data, node.outputs[0], relations)
    stays(data, range(places[-1]), INDEXED, relations)
    stays(indices, [-1], "indices", relations)
    for axis in range(len(places) - 1):
        relations.same(indices, axis, updates, axis)
    for back in range(1, depth - places[-1] + 1):
        relations.same(data, -back, updates, -back)


@rule("TopK", "ArgMax", "ArgMin")
def ranked(node: ir.Node, relations: Relations) -> None:
    """Slots of one axis are compared with each other; the others stay apart."""
    data = node.inputs[0]
    assert data is not None
    chosen = axis_of(node, relations, -1 if node.op_type == "TopK" else 0)
    relations.freeze(data, chosen, f"{node.op_type} runs along it")
    keep = node.op_type == "TopK" or bool(node.attributes.get_int("keepdims", 1))
    for result in node.outputs:
        if not relations.shape(result):
            continue
        for axis in range(len(relations.shape(data) or ())):
            if axis != chosen:
                relations.same(
                    data, axis, result, axis if keep or axis < chosen else axis - 1
                )
            elif keep:
                relations.freeze(result, axis, f"{node.op_type} runs along it")
    for value in node.inputs[1:]:
        relations.freeze_all(value, f"read by {node.op_type}")


@rule("OneHot")
def one_hot(node: ir.Node, relations: Relations) -> None:
    """Indices (*A) -> (*A, depth, *rest): the new axis is compared with numbers."""
    indices, result = node.inputs[0], node.outputs[0]
    assert indices is not None
    rank = len(relations.shape(result) or ())
    new = node.attributes.get_int("axis", -1) % rank
    relations.freeze(result, new, "OneHot counts along it")
    for axis in range(rank - 1):
        relations.same(indices, axis, result, axis if axis < new else axis + 1)


@rule("Trilu", "ReverseSequence", "CenterCropPad", "DFT", "Det", "Compress")
def some_axes(node: ir.Node, relations: Relations) -> None:
    """Elementwise but for the axes that an op names or whose positions it reads."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    frozen = _positional(node, len(before), relations)
    for axis, size in enumerate(before):
        if axis not in frozen and axis < len(after) and size == after[axis]:
            relations.same(data, axis, result, axis)
            continue
        for value in (data, result):
            stays(value, [axis], f"{node.op_type} runs along it", relations)
    for other in node.inputs[1:]:
        relations.freeze_all(other, f"read by {node.op_type}")


def _positional(node: ir.Node, rank: int, relations: Relations) -> set[int]:
    """Axes whose positions an op reads; all of them where they are computed."""
    if node.op_type in ("Trilu", "Det"):
        return {rank - 2, rank - 1}
    if node.op_type == "ReverseSequence":
        return {
            node.attributes.get_int("time_axis", 0),
            node.attributes.get_int("batch_axis", 1),
        }
    if node.op_type == "DFT":
        return {rank - 1} | _transformed(node, rank, relations)
    if node.op_type == "Compress" and "axis" in node.attributes:
        return {node.attributes.get_int("axis", 0) % rank}
    return set() if node.op_type == "CenterCropPad" else set(range(rank))


def _transformed(node: ir.Node, rank: int, relations: Relations) -> set[int]:
    """The axis of a DFT: an attribute before opset 20, then an input."""
    if relations.trace.opset < 20:
        return {node.attributes.get_int("axis", 1) % rank}
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return {rank - 2}
    given = relations.trace.constants(node.inputs[2])
    return set(range(rank)) if given is None else {given[0] % rank}


MIXED = {
    "NonZero": "where its elements are not zero",
    "Unique": "which of its elements differ",
    "NonMaxSuppression": "which boxes overlap",
    "Multinomial": "draws from all of it",
    "MaxUnpool": "indices into the whole tensor",
    "STFT": "a spectrum",
    "MelWeightMatrix": "a filter bank",
    "SequenceConstruct": "a sequence of tensors",
    "SplitToSequence": "a sequence of tensors",
    "ConcatFromSequence": "a sequence of tensors",
    "SequenceInsert": "a sequence of tensors",
    "SequenceAt": "a sequence of tensors",
    "Optional": "an optional tensor",
    "OptionalGetElement": "an optional tensor",
    "Range": "numbers in a row",
    "EyeLike": "an identity matrix",
    "RandomNormal": "random numbers",
    "RandomUniform": "random numbers",
}
"""Ops that tie every slot to every other, and what they make."""


@rule(*MIXED)
def mixed(node: ir.Node, relations: Relations) -> None:
    for value in (*node.inputs, *node.outputs):
        relations.freeze_all(value, f"{node.op_type} makes {MIXED[node.op_type]}")
