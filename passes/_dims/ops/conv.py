"""Convolutions and poolings: channels on axis 1, groups in blocks, spatial axes as they are."""

from __future__ import annotations

import onnx_ir as ir

from ..relations import Relations
from ..surgery import Surgery
from ..table import mend, rule

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
    _spatial(node, data, weight, result, relations)
    relations.same(data, 0, result, 0)
    relations.mix(node, "contract", (0, 1))
    read, made = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
    groups = node.attributes.get_int("group", 1)
    if bias is not None:
        relations.same(bias, 0, result, 1)
    if groups == 1:
        relations.summed(data, 1, weight, read)
        relations.same(weight, made, result, 1)
        return
    if (relations.shape(data) or ())[1] != (relations.shape(weight) or ())[read] * (
        1 if read == 0 else groups
    ):
        for value, axis in ((data, 1), (weight, 0), (weight, 1), (result, 1)):
            relations.freeze(value, axis, "in groups of an axis of open size")
        return
    width, out = (
        (relations.shape(data) or ())[1] // groups,
        (relations.shape(result) or ())[1] // groups,
    )
    own = [(0, 2), (1,)] if read == 1 else [(0, 1), (2,)]
    relations.grouped(
        f"{node.op_type} {node.name}",
        (groups, width, out),
        [
            ((data, 1), (0, 1)),
            ((weight, 0), own[0]),
            ((weight, 1), own[1]),
            ((result, 1), (0, 2)),
        ],
        [(0,), (1, 2)],
    )


def _spatial(
    node: ir.Node,
    data: ir.Value,
    weight: ir.Value,
    result: ir.Value,
    relations: Relations,
) -> None:
    """A kernel one wide, in steps of one, leaves the positions of an axis apart from each other;
    others stay.
    """
    freeze_spatial(weight, relations)
    kernel = (relations.shape(weight) or ())[2:]
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    padded = any(node.attributes.get_ints("pads", []))
    for axis, (width, step) in enumerate(zip(kernel, strides, strict=True), 2):
        if width == step == 1 and not padded:
            relations.same(data, axis, result, axis)
        else:
            relations.freeze(data, axis, SPATIAL)
            relations.freeze(result, axis, SPATIAL)


@mend("Conv", "ConvTranspose")
def regroup(node: ir.Node, surgery: Surgery) -> None:
    """As many groups as the weight has room for."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    whole = node.outputs[0] if node.op_type == "ConvTranspose" else data
    groups = surgery.after(whole)[1] // surgery.after(weight)[1]
    if 1 != node.attributes.get_int("group", 1) != groups:
        node.attributes["group"] = ir.AttrInt64("group", groups)


@rule(
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
    "LRN",
)
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


@rule("MaxRoiPool", "RoiAlign")
def regions(node: ir.Node, relations: Relations) -> None:
    """X (N, C, H, W), regions (R, 4 or 5) -> (R, C, h, w), each channel by itself."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    relations.same(data, 1, result, 1)
    for value in (data, result):
        freeze_spatial(value, relations)
        relations.freeze(value, 0, "samples and regions")
    for other in node.inputs[1:]:
        relations.freeze_all(other, f"read by {node.op_type}")


@rule("DeformConv")
def deformable(node: ir.Node, relations: Relations) -> None:
    """A Conv with offsets and masks (N, o*k, H, W); with several groups, of either kind, the input
    channels stay.
    """
    data, weight, offsets, bias, mask = [*node.inputs, None, None][:5]
    result = node.outputs[0]
    assert data is not None
    assert weight is not None
    for one in (data, weight, offsets, mask, result):
        freeze_spatial(one, relations)
    for one in (offsets, mask):
        relations.freeze(one, 1, "offsets of a kernel's positions")
    relations.same(data, 0, result, 0)
    relations.same(data, 1, weight, 1)
    if bias is not None:
        relations.same(bias, 0, result, 1)
    groups, apart = (
        node.attributes.get_int("group", 1),
        node.attributes.get_int("offset_group", 1),
    )
    if groups > 1 or apart > 1:
        relations.freeze(data, 1, "a DeformConv of several groups")
        relations.freeze(weight, 1, "a DeformConv of several groups")
    if groups > 1:
        relations.freeze(weight, 0, "a DeformConv of several groups")
        relations.freeze(result, 1, "a DeformConv of several groups")
    relations.same(weight, 0, result, 1)
    relations.mix(node, "contract", (0, 1))


@rule("Resize", "Upsample", "GridSample", "AffineGrid", "Col2Im")
def resize(node: ir.Node, relations: Relations) -> None:
    """Resize keeps the axes that keep their size; GridSample reads each channel by itself."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    kept = {"GridSample": (0, 1), "AffineGrid": (0,), "Col2Im": (0,)}.get(
        node.op_type, tuple(range(len(before)))
    )
    for value in node.inputs[1:]:
        relations.freeze_all(value, f"read by {node.op_type}")
    for axis in range(max(len(before), len(after))):
        if (
            axis in kept
            and before[axis] == after[axis]
            and (axis < 2 or node.op_type == "Resize")
        ):
            relations.same(data, axis, result, axis)
        else:
            for value, shape in ((data, before), (result, after)):
                if axis < len(shape):
                    relations.freeze(value, axis, f"resampled by {node.op_type}")
