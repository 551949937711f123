"""Convolutions and poolings: channels on axis 1, groups in blocks, spatial axes as they are."""

from __future__ import annotations

import onnx_ir as ir

from .relations import Relations
from .surgery import Surgery
from .table import mend, rule

SPATIAL = "a spatial axis"


def freeze_spatial(value: ir.Value | None, relations: Relations) -> None:
    """Everything behind axis 1 stays."""
    for axis in range(2, len(relations.shape(value) or ())):
        relations.freeze(value, axis, SPATIAL)


@rule("Conv", "ConvTranspose")
def convolution(node: ir.Node, relations: Relations) -> None:
    """Conv: X (N, g*c, *S), W (g*m, c, *K), Y (N, g*m, *S). ConvTranspose: W (g*c, m, *K).

    Grouped: whole groups go, or as many channels in each group.
    """
    data, weight, result = node.inputs[0], node.inputs[1], node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert data is not None
    assert weight is not None
    for value in (data, weight, result):
        freeze_spatial(value, relations)
    relations.same(data, 0, result, 0)
    relations.mix(node, "contract", (0, 1))
    read, made = (1, 0) if node.op_type == "Conv" else (0, 1)
    groups = node.attributes.get_int("group", 1)
    if bias is not None:
        relations.same(bias, 0, result, 1)
    if groups == 1:
        relations.same(data, 1, weight, read)
        relations.same(weight, made, result, 1)
        return
    width, out = (relations.shape(data) or ())[1] // groups, (relations.shape(result) or ())[1] // groups
    own = [(0, 2), (1,)] if node.op_type == "Conv" else [(0, 1), (2,)]
    relations.grouped(
        f"{node.op_type} {node.name}", (groups, width, out),
        [((data, 1), (0, 1)), ((weight, 0), own[0]), ((weight, 1), own[1]), ((result, 1), (0, 2))],
        [(0,), (1, 2)],
    )


@mend("Conv", "ConvTranspose")
def regroup(node: ir.Node, surgery: Surgery) -> None:
    """As many groups as the weight has room for."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    if node.op_type == "Conv":
        groups = surgery.after(data)[1] // surgery.after(weight)[1]
    else:
        groups = surgery.after(node.outputs[0])[1] // surgery.after(weight)[1]
    if groups != node.attributes.get_int("group", 1):
        node.attributes["group"] = ir.AttrInt64("group", groups)


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "LRN")
def pooling(node: ir.Node, relations: Relations) -> None:
    """Each channel by itself; LRN looks at neighbouring channels, so they stay."""
    data = node.inputs[0]
    assert data is not None
    for result in node.outputs:
        if relations.shape(result) is None:
            continue
        for axis in (0, 1):
            relations.same(data, axis, result, axis)
        freeze_spatial(result, relations)
    freeze_spatial(data, relations)
    if node.op_type == "LRN":
        relations.freeze(data, 1, "LRN sums over neighbouring channels")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        relations.freeze(data, 1, "MaxPool gives indices into the whole tensor")


@rule("Resize", "Upsample", "GridSample", "AffineGrid", "Col2Im")
def resize(node: ir.Node, relations: Relations) -> None:
    """Resize keeps the axes that keep their size; GridSample reads each channel by itself."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    kept = {"GridSample": (0, 1), "AffineGrid": (0,), "Col2Im": (0,)}.get(node.op_type, tuple(range(len(before))))
    for value in node.inputs[1:]:
        relations.freeze_all(value, f"read by {node.op_type}")
    for axis in range(max(len(before), len(after))):
        if axis in kept and before[axis] == after[axis] and (axis < 2 or node.op_type == "Resize"):
            relations.same(data, axis, result, axis)
        else:
            for value, shape in ((data, before), (result, after)):
                if axis < len(shape):
                    relations.freeze(value, axis, f"resampled by {node.op_type}")
