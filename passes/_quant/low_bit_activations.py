"""Activations of fewer than 8 bits: what some layers read, on a grid with fewer levels than their
8-bit type has.

    x -> QuantizeLinear -> Clip to codes 0 … 2**bits - 1 -> DequantizeLinear -> layer

The codes stay in the 8-bit type, and are clipped as integers: so the runtime's integer kernels run
the layer, while what it computes is that of hardware with so few bits. Others that read x (an Add
of a residual net) keep its 8 bits; then the coarse codes are made of those. As in LSQ
(arXiv:1902.08153), it is what layers read that is coarse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.targets import QuantRules
from .inserter import Inserter
from .layers import Layer, constant_scalar
from .placement import Placement
from .qparams import Parameters


@dataclass(frozen=True, eq=False)
class Coarse:
    """Layers that read one value with so many bits. `alone`: no int8 node needs its 8-bit form."""

    value: ir.Value
    bits: int
    layers: tuple[Layer, ...]
    alone: bool


def coarse_reads(placement: Placement, bits: dict[Layer, int]) -> list[Coarse]:
    """What is read with fewer than 8 bits; `bits` of each layer's activations. An image in two
    limbs never is.
    """
    found: dict[tuple[ir.Value, int], list[Layer]] = {}
    for layer in placement.layers:
        if bits[layer] < 8 and layer.input not in placement.limbed:
            found.setdefault((layer.input, bits[layer]), []).append(layer)
    moved = {
        value
        for carried in placement.carried
        if carried.shared
        for value in carried.outputs
    }
    reads = []
    for (value, count), layers in found.items():
        nodes = {layer.node for layer in layers}
        others = any(
            use.node not in nodes
            and (value in placement.int8_made or use.node in placement.int8_nodes)
            for use in value.uses()
        )
        reads.append(
            Coarse(value, count, tuple(layers), not others and value not in moved)
        )
    return reads


def insert_coarse(
    inserter: Inserter,
    read: Coarse,
    source: ir.Value,
    parameters: Parameters,
    rules: QuantRules,
) -> None:
    """Source -> Q -> Clip -> DQ -> the layers of `read`. `source`: the value, or its dequantized
    8-bit form.
    """
    dtype = ir.DataType[rules.activation.upper()]
    shape = read.value.shape

    def code(number: int, name: str) -> ir.Value:
        return inserter.constant(name, np.array(number, dtype.numpy()))

    useless = _useless_clip(read, parameters) if source is read.value else None
    if useless is not None and useless.inputs[0] is not None:
        source = useless.inputs[0]
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    zero = code(parameters.zero_point, "zero")
    lowest, highest = (
        code(parameters.lowest, "lowest"),
        code(parameters.highest, "highest"),
    )
    quantize = inserter.node(
        "QuantizeLinear", [source, scale, zero], "quantized", dtype, shape
    )
    clip = inserter.node(
        "Clip", [quantize.outputs[0], lowest, highest], "clipped", dtype, shape
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
    inserter.place_after(source, [quantize, clip, dequantize])
    if useless is not None:
        inserter.graph.remove(useless, safe=True)


def _useless_clip(read: Coarse, parameters: Parameters) -> ir.Node | None:
    """The Clip (Relu6) that makes the value, if the codes are cut within its bounds and nothing
    else reads it: between a layer and its quantization it would keep the runtime from making one
    integer kernel of both.
    """
    value, nodes = read.value, {layer.node for layer in read.layers}
    clip = value.producer()
    if (
        clip is None
        or clip.op_type != "Clip"
        or value.is_graph_output()
        or len(clip.inputs) < 3
    ):
        return None
    if any(use.node not in nodes for use in value.uses()):
        return None
    low, high = (constant_scalar(bound) for bound in clip.inputs[1:3])
    if low is None or high is None:
        return None
    lowest, highest = (
        (code - parameters.zero_point) * float(parameters.scale)
        for code in (parameters.lowest + 0.5, parameters.highest - 0.5)
    )  # what rounds to the ends
    return clip if low <= lowest and high >= highest else None
