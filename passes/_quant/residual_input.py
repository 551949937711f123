"""Images in two limbs: x ~ s * (q1 - z) + s/16 * (q2 - z), read by one integer Conv.

The input of a net has few channels, and what its rounding loses no later layer gives back. A Conv
on the codes q1 and q2 as channels beside each other, with weights w and w/16, sums both products in
int32:

    (C channels) x -> Q -> q1;  x - DQ(q1) -> Q at scale s/16 -> q2;  [q1, q2, q1, q2 …,
        z …] -> DQ at scale s -> Conv

That costs nothing: kernels for a multiple of 4 channels are faster than those for 3. As w/16 has
but 4 bits left, its weights are off by 3 %, of a remainder that is small. Each channel's two limbs
are neighbours: that way no two codes of the image meet in an instruction that saturates
(_core/saturation.py), which parts a large product from others.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .._core.saturation import PAIR_LIMIT
from .._core.targets import QuantRules
from .inserter import Inserter
from .layers import Layer, int_attribute
from .placement import Placement

if TYPE_CHECKING:
    from .qparams import Parameters

IMAGE_RANK = 4
"""Of a 2-D Conv's weight. With one dimension kernels are long and channels one: four times the
products, and slower.
"""

RATIO = 16
"""The second limb's scale is so many times finer: 24 dB less noise."""

ROOM = RATIO // 2
"""Codes that the second limb needs on either side of zero: what remains is at most half a step of
the first.
"""


def in_two_limbs(
    placement: Placement, packed: Container[Layer], rules: QuantRules
) -> set[ir.Value]:
    """The values that are cheaply given twice: what a Conv reads of an image, and no other int8
    node.

    `packed`: layers whose weights take less than a byte.
    """
    found = set()
    for layer in placement.layers:
        value = layer.input
        readers = [use for use in value.uses() if use.node in placement.int8_nodes]
        if value in placement.int8_made or len(readers) > 1 or layer in packed:
            continue
        if _has_few_channels(layer.node, layer.tensor.shape.numpy(), rules):
            found.add(value)
    return found


def reads_an_image(node: ir.Node, shape: Sequence[int], rules: QuantRules) -> bool:
    """Whether a layer that nothing is quantized around yet will read its input in two limbs."""
    value = node.inputs[0]
    return (
        value is not None
        and value.is_graph_input()
        and len(value.uses()) == 1
        and _has_few_channels(node, shape, rules)
    )


def _has_few_channels(node: ir.Node, shape: Sequence[int], rules: QuantRules) -> bool:
    """Whether a node is a 2-D Conv without groups of as few channels as images have."""
    plain = (
        node.op_type == "Conv"
        and len(shape) == IMAGE_RANK
        and int_attribute(node, "group", 1) == 1
    )
    return plain and 0 < int(shape[1]) <= rules.image_channels


def with_room(range_: tuple[float, float], rules: QuantRules) -> tuple[float, float]:
    """The range widened where the zero point would leave less than `ROOM` codes on either side."""
    levels = int(np.iinfo(rules.activation).max)
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    least = max(-low, high) * ROOM / (levels - ROOM)
    return min(low, -least), max(high, least)


def _padding(channels: int, rules: QuantRules) -> int:
    return -2 * channels % rules.channel_multiple


def limbed_weight(codes: ir.TensorProtocol, rules: QuantRules) -> ir.TensorProtocol:
    """(M, C, *K) int8 codes -> (M, 2 C + padding, *K): each code and a 16th of it, zeros; small
    enough to hold.

    The 16th is cut where both would be beyond the limit of a pair: only weights above 120 have one.
    """
    first = codes.numpy().astype(np.int16)
    most = PAIR_LIMIT - np.abs(first) if rules.limits_pairs else ROOM
    second = np.clip(np.rint(first / RATIO), -most, most)
    both = np.stack([first, second], axis=2).reshape(
        first.shape[0], -1, *first.shape[2:]
    )
    padding = np.zeros(
        (first.shape[0], _padding(first.shape[1], rules), *first.shape[2:])
    )
    return ir.Tensor(np.concatenate([both, padding], axis=1).astype(np.int8))


def insert_limbs(
    inserter: Inserter, layer: Layer, parameters: Parameters, rules: QuantRules
) -> None:
    """What `layer` reads: both limbs of its input, quantized and dequantized."""
    value, channels = layer.input, int(layer.tensor.shape.numpy()[1])
    code = ir.DataType[rules.activation.upper()]
    zero = inserter.constant("zero", np.array(parameters.zero_point, code.numpy()))
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    finer = inserter.constant("scale", np.array(parameters.scale / np.float32(RATIO)))

    first = inserter.node(
        "QuantizeLinear", [value, scale, zero], "quantized", code, value.shape
    )
    coarse = inserter.node(
        "DequantizeLinear",
        [first.outputs[0], scale, zero],
        "coarse",
        ir.DataType.FLOAT,
        value.shape,
    )
    rest = inserter.node(
        "Sub", [value, coarse.outputs[0]], "rest", ir.DataType.FLOAT, value.shape
    )
    second = inserter.node(
        "QuantizeLinear", [rest.outputs[0], finer, zero], "quantized", code, value.shape
    )
    # The rows of each channel and of its second limb behind each other are, as they lie, two
    # channels.
    stacked = inserter.node(
        "Concat",
        [first.outputs[0], second.outputs[0]],
        "limbs",
        code,
        _with_dims(value, {2: None}),
        {"axis": 2},
    )
    both = inserter.node(
        "Reshape",
        [stacked.outputs[0], _limbed_shape(inserter, value, 2 * channels)],
        "limbs",
        code,
        _with_dims(value, {1: 2 * channels}),
    )
    nodes, last = [first, coarse, rest, second, stacked, both], both.outputs[0]
    if padding := _padding(channels, rules):
        pads = np.array([0, 0, 0, 0, 0, padding, 0, 0], np.int64)
        padded = inserter.node(
            "Pad",
            [last, inserter.constant("pads", pads), zero],
            "limbs",
            code,
            _with_dims(value, {1: 2 * channels + padding}),
        )
        nodes.append(padded)
        last = padded.outputs[0]
    fine = inserter.node(
        "DequantizeLinear",
        [last, scale, zero],
        "dequantized",
        ir.DataType.FLOAT,
        last.shape,
    )
    inserter.place_after(value, [*nodes, fine])
    layer.node.replace_input_with(0, fine.outputs[0])


def _limbed_shape(inserter: Inserter, value: ir.Value, channels: int) -> ir.Value:
    """What to reshape (N, C, 2 H, W) to, so that it becomes (N, 2 C, H, W), whichever lengths are
    open.
    """
    height = value.shape[2] if value.shape is not None else None
    rows = height if isinstance(height, int) else -1
    return inserter.constant("limbs_shape", np.array([0, channels, rows, 0], np.int64))


def _with_dims(value: ir.Value, changed: dict[int, int | None]) -> ir.Shape | None:
    """The value's shape with other lengths along some axes; None is twice the length, where that is
    known.
    """
    if value.shape is None:
        return None
    dims: list[int | ir.SymbolicDim | None] = list(value.shape)
    for axis, length in changed.items():
        own = dims[axis]
        dims[axis] = (
            length if length is not None else 2 * own if isinstance(own, int) else None
        )
    return ir.Shape(dims)
