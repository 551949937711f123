"""Images in two limbs: x ~ s * (q1 - z) + s/16 * (q2 - z), read by one integer Conv.

The input of a net has few channels, and what its rounding loses no later layer gives back. A Conv on the codes q1 and
q2 as channels beside each other, with weights w and w/16, sums both products in int32:

    (C channels) x -> Q -> q1;  x - DQ(q1) -> Q at scale s/16 -> q2;  [q1, q2, z ...] -> DQ at scale s -> Conv

That costs nothing: kernels for a multiple of 4 channels are faster than those for 3. As w/16 has but 4 bits left, its
weights are off by 3 %, of a remainder that is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .codes import Codes
from .inserter import Inserter
from .layers import Layer, int_attribute
from .placement import Placement
from .rules import TargetRules

if TYPE_CHECKING:
    from .parameters import Parameters

IMAGE_RANK = 4
"""Of a 2-D Conv's weight. With one dimension kernels are long and channels one: four times the products, and slower."""

RATIO = 16
"""The second limb's scale is so many times finer: 24 dB less noise."""

ROOM = RATIO // 2
"""Codes that the second limb needs on either side of zero: what remains is at most half a step of the first."""


def in_two_limbs(placement: Placement, codes: dict[Layer, Codes], rules: TargetRules) -> set[ir.Value]:
    """The values that are cheaply given twice: what a Conv reads of an image, and no other int8 node."""
    found = set()
    for layer in placement.layers:
        value = layer.input
        readers = [use for use in value.uses() if use.node in placement.int8_nodes]
        if value in placement.int8_made or len(readers) > 1 or codes[layer].packed:
            continue
        if layer.node.op_type == "Conv" and 0 < _channels(layer) <= rules.image_channels:
            found.add(value)
    return found


def with_room(range_: tuple[float, float], rules: TargetRules) -> tuple[float, float]:
    """The range widened where the zero point would leave less than `ROOM` codes on either side."""
    levels = int(np.iinfo(rules.activation).max)
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    least = max(-low, high) * ROOM / (levels - ROOM)
    return min(low, -least), max(high, least)


def _channels(layer: Layer) -> int:
    """How many channels the 2-D Conv reads, 0 where it has groups or other dimensions."""
    shape = layer.tensor.shape.numpy()
    return int(shape[1]) if len(shape) == IMAGE_RANK and int_attribute(layer.node, "group", 1) == 1 else 0


def _padding(channels: int, rules: TargetRules) -> int:
    return -2 * channels % rules.channel_multiple


def limbed_weight(codes: ir.TensorProtocol, rules: TargetRules) -> ir.TensorProtocol:
    """(M, C, *K) int8 codes -> (M, 2 C + padding, *K): the codes, a 16th of them, zeros; small enough to hold."""
    first = codes.numpy()
    second = np.rint(first / RATIO).astype(np.int8)
    zeros = np.zeros_like(first, shape=(first.shape[0], _padding(first.shape[1], rules), *first.shape[2:]))
    return ir.Tensor(np.concatenate([first, second, zeros], axis=1))


def insert_limbs(inserter: Inserter, layer: Layer, parameters: Parameters, rules: TargetRules) -> None:
    """What `layer` reads: both limbs of its input, quantized and dequantized."""
    value, channels = layer.input, _channels(layer)
    code, stem = ir.DataType[rules.activation.upper()], value.name or "value"
    zero = inserter.constant(f"{stem}_zp", np.array(parameters.zero_point, code.numpy()))
    scale = inserter.constant(f"{stem}_scale", np.array(parameters.scale, np.float32))
    finer = inserter.constant(f"{stem}_scale_rest", np.array(parameters.scale / np.float32(RATIO)))

    first = inserter.node("QuantizeLinear", [value, scale, zero], f"{stem}_q", code, value.shape)
    coarse = inserter.node("DequantizeLinear", [first.outputs[0], scale, zero], f"{stem}_coarse", ir.DataType.FLOAT,
                           value.shape)
    rest = inserter.node("Sub", [value, coarse.outputs[0]], f"{stem}_rest", ir.DataType.FLOAT, value.shape)
    second = inserter.node("QuantizeLinear", [rest.outputs[0], finer, zero], f"{stem}_rest_q", code, value.shape)
    both = inserter.node("Concat", [first.outputs[0], second.outputs[0]], f"{stem}_limbs", code,
                         _with_channels(value, 2 * channels), {"axis": 1})
    nodes, last = [first, coarse, rest, second, both], both.outputs[0]
    if padding := _padding(channels, rules):
        pads = np.array([0, 0, 0, 0, 0, padding, 0, 0], np.int64)
        padded = inserter.node("Pad", [last, inserter.constant(f"{stem}_pads", pads), zero], f"{stem}_limbs_padded",
                               code, _with_channels(value, 2 * channels + padding))
        nodes.append(padded)
        last = padded.outputs[0]
    fine = inserter.node("DequantizeLinear", [last, scale, zero], f"{stem}_dq", ir.DataType.FLOAT, last.shape)
    inserter.place_after(value, [*nodes, fine])
    layer.node.replace_input_with(0, fine.outputs[0])


def _with_channels(value: ir.Value, channels: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    dims = list(value.shape)
    dims[1] = channels
    return ir.Shape(dims)
