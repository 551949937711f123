"""Convolutions and poolings: channels on axis 1, groups in blocks, spatial axes as they are."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.ops import CONVOLUTIONS
from ..relations import SPATIAL, Relations, name_of, optional_input, required_input
from ..surgery import Surgery, set_int
from ..table import rule, update

# factors of the axes of a grouped convolution
GROUP = 0
CHANNEL_READ = 1
CHANNEL_MADE = 2


def freeze_spatial(value: ir.Value | None, relations: Relations) -> None:
    """Freeze everything behind axis 1."""
    for axis in range(2, relations.rank(value)):
        relations.freeze(value, axis, SPATIAL)


@rule(*CONVOLUTIONS)
def convolution(node: ir.Node, relations: Relations) -> None:
    """Conv: X (N, g*c, *S), W (g*m, c, *K), Y (N, g*m, *S). ConvTranspose: W (g*c, m, *K).

    Grouped: whole groups go, or as many channels in each group.
    """
    data = required_input(node, 0)
    weight = required_input(node, 1)
    bias = optional_input(node, 2)
    result = node.outputs[0]
    _relate_spatial(node, relations)
    relations.same(data, 0, result, 0)
    relations.mix(node, "contract", (0, 1))
    if bias is not None:
        relations.same(bias, 0, result, 1)
    # FusedConv of ONNX Runtime comes here too, so the attribute is read as it is
    if node.attributes.get_int("group", 1) != 1:
        _relate_groups(node, relations)
    elif node.op_type == "ConvTranspose":
        relations.summed(data, 1, weight, 0)
        relations.same(weight, 1, result, 1)
    else:
        relations.summed(data, 1, weight, 1)
        relations.same(weight, 0, result, 1)


def _relate_spatial(node: ir.Node, relations: Relations) -> None:
    """Positions stay, but those of an axis along which the kernel is one wide, in steps of one.

    Such an axis keeps its positions apart from each other.
    """
    data = required_input(node, 0)
    weight = required_input(node, 1)
    result = node.outputs[0]
    freeze_spatial(weight, relations)
    kernel = relations.dims(weight)[2:]
    ones = [1] * len(kernel)
    strides = node.attributes.get_ints("strides", ones)
    pads = node.attributes.get_ints("pads", [])
    padded = any(pads)
    for axis, (width, step) in enumerate(zip(kernel, strides, strict=True), 2):
        if width == 1 and step == 1 and not padded:
            relations.same(data, axis, result, axis)
        else:
            relations.freeze(data, axis, SPATIAL)
            relations.freeze(result, axis, SPATIAL)


def _relate_groups(node: ir.Node, relations: Relations) -> None:
    """Channels as groups times channels of one group."""
    data = required_input(node, 0)
    weight = required_input(node, 1)
    result = node.outputs[0]
    groups = node.attributes.get_int("group", 1)
    channels = relations.size(data, 1)
    channels_of_weight = relations.size(weight, 0)
    if node.op_type != "ConvTranspose":
        channels_of_weight = relations.size(weight, 1) * groups
    if channels != channels_of_weight:
        reason = "it is grouped along an axis whose size follows the input"
        relations.freeze(data, 1, reason)
        relations.freeze(weight, 0, reason)
        relations.freeze(weight, 1, reason)
        relations.freeze(result, 1, reason)
        return
    if node.op_type == "ConvTranspose":
        weight_factors = [(GROUP, CHANNEL_READ), (CHANNEL_MADE,)]
    else:
        weight_factors = [(GROUP, CHANNEL_MADE), (CHANNEL_READ,)]
    relations.grouped(
        name_of(node),
        sizes=(
            groups,
            channels // groups,
            relations.size(result, 1) // groups,
        ),
        axes=[
            ((data, 1), (GROUP, CHANNEL_READ)),
            ((weight, 0), weight_factors[0]),
            ((weight, 1), weight_factors[1]),
            ((result, 1), (GROUP, CHANNEL_MADE)),
        ],
        options=[(GROUP,), (CHANNEL_READ, CHANNEL_MADE)],
    )


@update(*CONVOLUTIONS)
def regroup(node: ir.Node, surgery: Surgery) -> None:
    """Set as many groups as the weight has room for."""
    data = required_input(node, 0)
    weight = required_input(node, 1)
    # axis 1 of the weight holds the channels of one group, read ones or made ones
    whole = data
    if node.op_type == "ConvTranspose":
        whole = node.outputs[0]
    channels = surgery.after(whole)[1]
    channels_of_group = surgery.after(weight)[1]
    groups = channels // channels_of_group
    before = node.attributes.get_int("group", 1)
    if before != 1 and before != groups:
        set_int(node, "group", groups)


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
    data = required_input(node, 0)
    for result in node.outputs:
        if relations.shape(result) is None:
            continue
        relations.same(data, 0, result, 0)
        relations.same(data, 1, result, 1)
        freeze_spatial(result, relations)
    freeze_spatial(data, relations)
    if node.op_type == "LRN":
        relations.freeze(data, 1, "LRN sums over neighbouring channels")
    # such indices are offsets into all channels
    if len(node.outputs) > 1 and node.outputs[1].uses():
        relations.freeze(data, 1, "MaxPool gives indices into the whole tensor")


@rule("MaxRoiPool", "RoiAlign")
def regions(node: ir.Node, relations: Relations) -> None:
    """X (N, C, H, W), regions (R, 4 or 5) -> (R, C, h, w), each channel by itself."""
    data = required_input(node, 0)
    result = node.outputs[0]
    relations.same(data, 1, result, 1)
    for value in (data, result):
        freeze_spatial(value, relations)
        relations.freeze(value, 0, "it counts samples or regions, not channels")
    relations.freeze_further_inputs(node)


@rule("DeformConv")
def deformable(node: ir.Node, relations: Relations) -> None:
    """A Conv with offsets and masks (N, o*k, H, W).

    With several groups, of either kind, the input channels stay.
    """
    data = required_input(node, 0)
    weight = required_input(node, 1)
    offsets = required_input(node, 2)
    bias = optional_input(node, 3)
    mask = optional_input(node, 4)
    result = node.outputs[0]
    for value in (data, weight, offsets, mask, result):
        freeze_spatial(value, relations)
    for value in (offsets, mask):
        relations.freeze(value, 1, "it holds the positions that a DeformConv reads")
    relations.same(data, 0, result, 0)
    relations.same(data, 1, weight, 1)
    if bias is not None:
        relations.same(bias, 0, result, 1)
    groups = node.attributes.get_int("group", 1)
    offset_groups = node.attributes.get_int("offset_group", 1)
    several = "it belongs to a DeformConv of several groups"
    if groups > 1 or offset_groups > 1:
        relations.freeze(data, 1, several)
        relations.freeze(weight, 1, several)
    if groups > 1:
        relations.freeze(weight, 0, several)
        relations.freeze(result, 1, several)
    relations.same(weight, 0, result, 1)
    relations.mix(node, "contract", (0, 1))


NEVER_RESAMPLED = {
    "Resize": None,
    "Upsample": (0, 1),
    "GridSample": (0, 1),
    "AffineGrid": (0,),
    "Col2Im": (0,),
}
"""Axes that keep their slots where they keep their size; None: every axis may."""


@rule(*NEVER_RESAMPLED)
def resize(node: ir.Node, relations: Relations) -> None:
    """Resize keeps the axes that keep their size; GridSample reads each channel by itself."""
    data = required_input(node, 0)
    result = node.outputs[0]
    rank_read = relations.rank(data)
    rank_made = relations.rank(result)
    candidates = NEVER_RESAMPLED[node.op_type]
    relations.freeze_further_inputs(node)
    reason = f"{node.op_type} interpolates along it"
    # an AffineGrid makes more axes than it reads
    for axis in range(max(rank_read, rank_made)):
        kept = candidates is None or axis in candidates
        if kept and relations.size(data, axis) == relations.size(result, axis):
            relations.same(data, axis, result, axis)
            continue
        if axis < rank_read:
            relations.freeze(data, axis, reason)
        if axis < rank_made:
            relations.freeze(result, axis, reason)
