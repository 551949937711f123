"""Images in two terms: x ~ s * (q1 - z) + s/16 * (q2 - z), read by one integer Conv.

The input of a net has few channels, and what its rounding loses no later layer gives back. A Conv
on the codes q1 and q2 as channels beside each other, with weights w and w/16, sums both products in
int32:

    (C channels) x -> Q -> q1;  x - DQ(q1) -> Q at scale s/16 -> q2;  [q1, q2, q1, q2 …,
        z …] -> DQ at scale s -> Conv

That costs nothing: kernels for a multiple of 4 channels are faster than those for 3. As w/16 has
but 4 bits left, its weights are off by 3 %, of a remainder that is small. Each channel's two terms
are neighbours: that way no two codes of the image meet in an instruction that saturates
(_core/saturation.py), which parts a large product from others.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import onnx_ir as ir

from .._core.ops import group_count
from .._core.saturation import PAIR_LIMIT
from .._core.targets import QuantRules
from .inserter import Inserter
from .layers import QuantLayer
from .placement import Placement
from .qparams import TERM_RATIO, TERM_ROOM, Parameters

IMAGE_RANK = 4
"""Rank of a 2-D Conv's weight. With one dimension kernels are long and channels one: four times the
products, and slower.
"""


def in_two_terms(
    placement: Placement, packed: Container[QuantLayer], rules: QuantRules
) -> set[ir.Value]:
    """Values that are cheaply given twice: those that a Conv reads of an image, and no other int8
    node.

    `packed`: layers whose weights take less than a byte.
    """
    found = set()
    for layer in placement.layers:
        value = layer.input
        readers = [use for use in value.uses() if use.node in placement.int8_nodes]
        # a 16th of a packed code would be nothing
        if value in placement.int8_made or len(readers) > 1 or layer in packed:
            continue
        if _has_few_channels(layer.node, layer.shape, rules):
            found.add(value)
    return found


def reads_an_image(node: ir.Node, shape: Sequence[int], rules: QuantRules) -> bool:
    """True for a layer, nothing quantized around it yet, that will read its input in two terms."""
    value = node.inputs[0]
    if value is None or not value.is_graph_input() or len(value.uses()) != 1:
        return False
    return _has_few_channels(node, shape, rules)


def _has_few_channels(node: ir.Node, shape: Sequence[int], rules: QuantRules) -> bool:
    """True for a 2-D Conv without groups that reads as few channels as images have."""
    if node.op_type != "Conv" or len(shape) != IMAGE_RANK or group_count(node) != 1:
        return False
    channels = int(shape[1])
    return channels > 0 and channels <= rules.image_channels


def _padding(channels: int, rules: QuantRules) -> int:
    """Channels of zeros to add to both terms of so many channels."""
    return -2 * channels % rules.channel_multiple


def two_term_weight(codes: ir.TensorProtocol, rules: QuantRules) -> ir.TensorProtocol:
    """(M, C, *K) int8 codes -> (M, 2 C + padding, *K): each code and a 16th of it, zeros.

    Small enough to hold. The 16th is cut where both would be beyond the limit of a pair: only
    weights above 120 have one.
    """
    first = codes.numpy().astype(np.int16)
    outputs, channels, *kernel = first.shape
    most = PAIR_LIMIT - np.abs(first) if rules.limits_pairs else TERM_ROOM
    # a 16th of a code of 127 is at most 8, so the limit of a pair seldom cuts
    second = np.clip(np.rint(first / TERM_RATIO), -most, most)
    both = np.stack([first, second], axis=2).reshape(
        outputs,
        -1,
        *kernel,
    )
    padding = np.zeros((outputs, _padding(channels, rules), *kernel))
    padded = np.concatenate([both, padding], axis=1)
    return ir.Tensor(padded.astype(np.int8))


def insert_two_terms(
    inserter: Inserter, layer: QuantLayer, parameters: Parameters, rules: QuantRules
) -> None:
    """Let `layer` read both terms of its input, quantized and dequantized."""
    value = layer.input
    channels = layer.shape[1]
    code = ir.DataType[rules.activation.upper()]
    f32 = ir.DataType.FLOAT
    shape = value.shape
    zero = inserter.constant("zero", np.array(parameters.zero_point, code.numpy()))
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    step = parameters.scale / np.float32(TERM_RATIO)
    finer = inserter.constant("scale", np.array(step))

    first = inserter.node(
        "QuantizeLinear",
        [value, scale, zero],
        "quantized",
        code,
        shape,
    )
    q1 = first.outputs[0]
    coarse = inserter.node(
        "DequantizeLinear",
        [q1, scale, zero],
        "coarse",
        f32,
        shape,
    )
    rest = inserter.node(
        "Sub",
        [value, coarse.outputs[0]],
        "rest",
        f32,
        shape,
    )
    second = inserter.node(
        "QuantizeLinear",
        [rest.outputs[0], finer, zero],
        "quantized",
        code,
        shape,
    )
    q2 = second.outputs[0]
    # The rows of each channel and of its second term behind each other are, as they lie, two
    # channels.
    stacked = inserter.node(
        "Concat",
        [q1, q2],
        "lanes",
        code,
        _with_dims(value, {2: None}),
        {"axis": 2},
    )
    target = _reshaped_to(inserter, value, 2 * channels)
    both = inserter.node(
        "Reshape",
        [stacked.outputs[0], target],
        "lanes",
        code,
        _with_dims(value, {1: 2 * channels}),
    )
    nodes = [first, coarse, rest, second, stacked, both]
    last = both.outputs[0]
    padding = _padding(channels, rules)
    if padding:
        pads = np.array([0, 0, 0, 0, 0, padding, 0, 0], np.int64)
        padded = inserter.node(
            "Pad",
            [last, inserter.constant("pads", pads), zero],
            "lanes",
            code,
            _with_dims(value, {1: 2 * channels + padding}),
        )
        nodes.append(padded)
        last = padded.outputs[0]
    # one scale for both terms: that of the second is in the weights
    fine = inserter.node(
        "DequantizeLinear",
        [last, scale, zero],
        "dequantized",
        f32,
        last.shape,
    )
    inserter.place_after(value, [*nodes, fine])
    layer.node.replace_input_with(0, fine.outputs[0])


def _reshaped_to(inserter: Inserter, value: ir.Value, channels: int) -> ir.Value:
    """Target of a Reshape from (N, C, 2 H, W) to (N, 2 C, H, W), whichever lengths are open."""
    height = value.shape[2] if value.shape is not None else None
    # 0 copies a length, and one may be left for the runtime to find
    rows = height if isinstance(height, int) else -1
    return inserter.constant("lengths", np.array([0, channels, rows, 0], np.int64))


def _with_dims(value: ir.Value, changed: dict[int, int | None]) -> ir.Shape | None:
    """The value's shape with other lengths along some axes.

    None is twice the length, where that is known.
    """
    if value.shape is None:
        return None
    dims: list[int | ir.SymbolicDim | None] = list(value.shape)
    for axis, length in changed.items():
        own = dims[axis]
        if length is not None:
            dims[axis] = length
        else:
            dims[axis] = 2 * own if isinstance(own, int) else None
    return ir.Shape(dims)
