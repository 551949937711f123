"""Normalisations and reductions: what runs over an axis, and what stays apart."""

from __future__ import annotations

import onnx_ir as ir

from ..relations import Axis, Relations
from ..surgery import Surgery
from ..table import mend, rule
from .conv import freeze_spatial
from .elementwise import elementwise

SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"})
"""Reductions to which a zero adds nothing: they contract; the others normalise."""


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(node: ir.Node, relations: Relations) -> None:
    """X (N, C, *S) and vectors (C,). InstanceNormalization normalises over S, BatchNormalization in
    training N too.
    """
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    elementwise(data, result, relations)
    for value in (*node.inputs[1:], *node.outputs[1:]):
        if value is not None and relations.shape(value):
            relations.same(value, 0, data, 1)
    training = bool(node.attributes.get_int("training_mode", 0))
    if node.op_type == "InstanceNormalization" or training:
        rank = len(relations.shape(data) or ())
        relations.mix(
            node,
            "normalise",
            *(
                (0, axis)
                for axis in range(rank)
                if axis > 1 or (training and axis == 0)
            ),
        )


@rule("LayerNormalization", "RMSNormalization")
def trailing(node: ir.Node, relations: Relations) -> None:
    """Normalises over the axes from `axis` on; scale and bias are aligned at the last axis."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    rank = len(relations.shape(data) or ())
    first = node.attributes.get_int("axis", -1) % rank
    for value in node.inputs[1:]:
        if value is not None:
            elementwise(value, result, relations)
    elementwise(data, result, relations)
    for value in node.outputs[1:]:
        if relations.shape(value) is not None:
            elementwise(data, value, relations)
    relations.mix(node, "normalise", *((0, axis) for axis in range(first, rank)))


@rule("GroupNormalization")
def group_norm(node: ir.Node, relations: Relations) -> None:
    """X (N, g*c, *S); scale and bias (g*c,), (g,) before opset 21. Whole groups go, or as many
    channels of each.
    """
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    elementwise(data, result, relations)
    freeze_spatial(data, relations)
    groups = node.attributes.get_int("num_groups", 1)
    width = (relations.shape(data) or ())[1] // groups
    axes: list[tuple[Axis, tuple[int, ...]]] = [((data, 1), (0, 1))]
    mixed = [(0, 1)]
    for index, value in enumerate(node.inputs[1:], 1):
        if value is not None and relations.shape(value) == (groups,) and width > 1:
            axes.append(((value, 0), (0,)))
            mixed.append((index, 0))
        elif value is not None:
            relations.same(value, 0, data, 1)
    relations.grouped(
        f"{node.op_type} {node.name}", (groups, width), axes, [(0,), (1,)]
    )
    relations.mix(node, "normalise", *mixed)


@mend("GroupNormalization")
def fewer_groups(node: ir.Node, surgery: Surgery) -> None:
    """The groups of which some channel stays."""
    data = node.inputs[0]
    kept = surgery.kept(data, 1)
    if data is None or kept is None:
        return
    width = surgery.before(data)[1] // node.attributes.get_int("num_groups", 1)
    node.attributes["num_groups"] = ir.AttrInt64(
        "num_groups", len(set((kept // width).tolist()))
    )


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
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    axes = reduced_axes(node, relations)
    if axes is None:
        relations.freeze_all(data, f"{node.op_type} over axes that are computed")
        relations.freeze_all(result, f"{node.op_type} over axes that are computed")
        return
    keep = node.attributes.get_int("keepdims", 1)
    position = 0
    for axis in range(len(before)):
        if axis not in axes:
            relations.same(data, axis, result, position)
        position += keep or axis not in axes
    assert position == len(after)
    if axes:
        kind = "contract" if node.op_type in SUMS else "normalise"
        relations.mix(node, kind, *((0, axis) for axis in sorted(axes)))  # type: ignore[arg-type]


def reduced_axes(node: ir.Node, relations: Relations) -> set[int] | None:
    """The axes of a reduction as non-negative numbers; None if they are computed."""
    rank = len(relations.shape(node.inputs[0]) or ())
    given: list[int] | None = list(node.attributes.get_ints("axes", []))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = relations.trace.constants(node.inputs[1])
        if given is None:
            return None
    if not given:
        return (
            set()
            if node.attributes.get_int("noop_with_empty_axes", 0)
            else set(range(rank))
        )
    return {axis % rank for axis in given}


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
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    elementwise(data, result, relations)
    rank = len(relations.shape(data) or ())
    for axis in _run_along(node, rank, relations):
        relations.freeze(data, axis, f"{node.op_type} runs along it")
    for value in node.inputs[1:]:
        relations.freeze_all(value, f"read by {node.op_type}")


def _run_along(node: ir.Node, rank: int, relations: Relations) -> list[int]:
    if node.op_type == "MeanVarianceNormalization":
        return [a % rank for a in node.attributes.get_ints("axes", [0, 2, 3])]
    if node.op_type in ("CumSum", "CumProd"):
        given = relations.trace.constants(node.inputs[1])
        return list(range(rank)) if given is None else [given[0] % rank]
    default = -1
    axis = node.attributes.get_int("axis", default)
    if (
        node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
        and relations.trace.opset < 13
    ):
        return list(range(node.attributes.get_int("axis", 1) % rank, rank))
    return [axis % rank]
