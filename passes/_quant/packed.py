"""Layers that run in float from weights stored in a few bits: codes -> Cast -> Mul scale, folded at
load.

Cast and Mul, not DequantizeLinear: ONNX Runtime keeps that for its integer kernels and runs it at
every inference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._core.graph import Names
from .inserter import Inserter
from .layers import Layer
from .weight_codes import Codes


def insert_packed(
    graph: ir.Graph, names: Names, layers: list[Layer], codes: dict[Layer, Codes]
) -> dict[str, int]:
    """Store the weights of `layers` as codes and unpack them at the top of the graph, in reach of
    every user.
    """
    inserter = Inserter(graph, names)
    first = graph[0]
    done: dict[Codes, ir.Value] = {}
    weights = 0
    for layer in layers:
        code = codes[layer]
        if code not in done:
            done[code] = _unpacked(inserter, layer, code, first)
            weights += layer.tensor.size
        layer.node.replace_input_with(layer.rule.weight, done[code])
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _unpacked(
    inserter: Inserter, layer: Layer, code: Codes, first: ir.Node
) -> ir.Value:
    stem, f32 = layer.weight.name or "weight", ir.DataType.FLOAT
    tensor = code.codes(code.scales)
    shape = ir.Shape(tensor.shape.numpy())
    stored = code.store(inserter, stem, tensor, first)
    scales = code.scales.reshape(
        (-1,) + (1,) * (len(shape) - 1 - layer.weight_axis)
    ).astype(np.float32)
    cast = inserter.node("Cast", [stored], "float", f32, shape, {"to": int(f32)})
    scaled = inserter.node(
        "Mul",
        [cast.outputs[0], inserter.constant("scale", scales)],
        "unpacked",
        f32,
        shape,
    )
    inserter.graph.insert_before(first, [cast, scaled])
    return scaled.outputs[0]
