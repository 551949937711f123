"""Activations of fewer than 8 bits: inputs of layers on a grid with fewer levels than their type.

    x -> QuantizeLinear -> Clip to codes 0 … 2**bits - 1 -> DequantizeLinear -> layer

The codes stay in the 8-bit type, and are clipped as integers: so the runtime's integer kernels run
the layer, while what it computes is that of hardware with so few bits. Others that read x (an Add
of a residual net) keep its 8 bits; then the codes of fewer bits are made of those. As in LSQ
(arXiv:1902.08153), only what layers read has fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.targets import QuantRules
from .inserter import Inserter
from .layers import QuantLayer, constant_scalar
from .placement import Placement
from .qparams import Parameters


@dataclass(frozen=True, eq=False)
class LowBitRead:
    """Layers that read one value with so many bits. `alone`: no int8 node needs its 8-bit form."""

    value: ir.Value
    bits: int
    layers: tuple[QuantLayer, ...]
    alone: bool


def low_bit_reads(
    placement: Placement, bits: Mapping[QuantLayer, int]
) -> list[LowBitRead]:
    """Values that are read with fewer than 8 bits; `bits` of each layer's activations.

    An image in two terms never is.
    """
    found: dict[tuple[ir.Value, int], list[QuantLayer]] = {}
    for layer in placement.layers:
        # of an image every code counts
        if bits[layer] < 8 and layer.input not in placement.two_term:
            found.setdefault((layer.input, bits[layer]), []).append(layer)
    moved: set[ir.Value] = set()
    for carried in placement.carried:
        if carried.shared:
            moved.update(carried.outputs)
    reads = []
    for (value, count), layers in found.items():
        # what a mover writes in int8 must stay 8-bit: its input's codes have 8 bits
        alone = value not in moved and not _has_others(
            value,
            layers,
            placement,
        )
        reads.append(
            LowBitRead(
                value,
                count,
                tuple(layers),
                alone,
            )
        )
    return reads


def _has_others(
    value: ir.Value, layers: list[QuantLayer], placement: Placement
) -> bool:
    """True if a node besides these layers reads the 8-bit form of the value."""
    nodes = {layer.node for layer in layers}
    for use in value.uses():
        if use.node in nodes:
            continue
        if value in placement.int8_made or use.node in placement.int8_nodes:
            return True
    return False


def insert_low_bit(
    inserter: Inserter,
    read: LowBitRead,
    source: ir.Value,
    parameters: Parameters,
    rules: QuantRules,
) -> None:
    """Source -> Q -> Clip -> DQ -> the layers of `read`.

    `source`: the value, or its dequantized 8-bit form.
    """
    dtype = ir.DataType[rules.activation.upper()]
    shape = read.value.shape

    def code(number: int, role: str) -> ir.Value:
        return inserter.constant(role, np.array(number, dtype.numpy()))

    useless = _useless_clip(read, parameters) if source is read.value else None
    if useless is not None and useless.inputs[0] is not None:
        source = useless.inputs[0]
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    zero = code(parameters.zero_point, "zero")
    lowest = code(parameters.lowest, "lowest")
    highest = code(parameters.highest, "highest")
    quantize = inserter.node(
        "QuantizeLinear",
        [source, scale, zero],
        "quantized",
        dtype,
        shape,
    )
    codes = quantize.outputs[0]
    # on codes, not on floats: an integer kernel forms around it
    clip = inserter.node(
        "Clip",
        [codes, lowest, highest],
        "clipped",
        dtype,
        shape,
    )
    dequantize = inserter.node(
        "DequantizeLinear",
        [clip.outputs[0], scale, zero],
        "dequantized",
        ir.DataType.FLOAT,
        shape,
    )
    for layer in read.layers:
        layer.node.replace_input_with(0, dequantize.outputs[0])
    # behind the source, which every later layer is behind as well
    inserter.place_after(source, [quantize, clip, dequantize])
    if useless is not None:
        inserter.graph.remove(useless, safe=True)


def _useless_clip(read: LowBitRead, parameters: Parameters) -> ir.Node | None:
    """The Clip (Relu6) that makes the value, if the codes are cut within its bounds and nothing
    else reads it.

    Between a layer and its quantization it would keep the runtime from making one integer kernel of
    both.
    """
    value = read.value
    nodes = {layer.node for layer in read.layers}
    clip = value.producer()
    if clip is None or clip.op_type != "Clip" or len(clip.inputs) < 3:
        return None
    if value.is_graph_output():
        return None
    if any(use.node not in nodes for use in value.uses()):
        return None
    low = constant_scalar(clip.inputs[1])
    high = constant_scalar(clip.inputs[2])
    if low is None or high is None:
        return None
    # all beyond these rounds to the end codes: cutting it there changes nothing
    step = float(parameters.scale)
    lowest = (parameters.lowest + 0.5 - parameters.zero_point) * step
    highest = (parameters.highest - 0.5 - parameters.zero_point) * step
    return clip if low <= lowest and high >= highest else None
