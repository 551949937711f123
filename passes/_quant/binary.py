"""One-bit weights: w ~ alpha * sign(w) with alpha = mean|w| of each output channel, stored packed (XNOR-Net)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._graph import Names
from .._lazy import blocks
from .._packing import packed_weight
from .insert import Inserter
from .layers import Layer
from .weights import Floats, Layout


def inner_layers(layers: list[Layer]) -> list[Layer]:
    """All but the first and the last: those two carry most of what one bit would lose, and stay at 8 bit."""
    ends = {layers[0].weight, layers[-1].weight} if layers else set()
    return [layer for layer in layers if layer.weight not in ends]


def channel_mean_abs(tensor: ir.TensorProtocol, layout: Layout) -> Floats:
    """alpha = mean|w| of each output channel, the least-squares scale of sign(w): (channels,) float32."""
    total = np.zeros(layout.channels, np.float64)
    for start, block in blocks(tensor, layout.granule):
        view, channels = layout.view(block, start)
        total[channels] += np.abs(view).sum(axis=(0, 2), dtype=np.float64)
    return (total / max(layout.outer * layout.inner, 1)).astype(np.float32)


def sign_scales(layers: list[Layer]) -> dict[ir.Value, Floats]:
    """alpha of each layer's weight."""
    return {layer.weight: channel_mean_abs(_tensor(layer), _layout(layer)) for layer in layers}


def insert_packed_float(graph: ir.Graph, names: Names, layers: list[Layer]) -> dict[str, int]:
    """Store the weights of `layers` packed and run them in float: sign -> Cast -> Mul alpha, folded at load."""
    inserter = Inserter(graph, names)
    done: dict[tuple[ir.Value, int], ir.Value] = {}
    weights = 0
    for layer in layers:
        key = (layer.weight, axis_of(layer))
        if key not in done:
            done[key] = _unpacked_float(inserter, layer)
            weights += _tensor(layer).size
        layer.node.replace_input_with(layer.rule.weight, done[key])
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _unpacked_float(inserter: Inserter, layer: Layer) -> ir.Value:
    """The nodes go to the top of the graph, in reach of every user of a shared weight."""
    stem, f32, tensor = layer.weight.name or "weight", ir.DataType.FLOAT, _tensor(layer)
    shape = tuple(tensor.shape.numpy())
    first = inserter.graph[0]
    signs = packed_weight(inserter.graph, inserter.names, stem, tensor, first)
    alpha = channel_mean_abs(tensor, _layout(layer)).reshape((-1,) + (1,) * (len(shape) - 1 - axis_of(layer)))
    cast = inserter.node("Cast", [signs], f"{stem}_signs", f32, ir.Shape(shape), {"to": int(f32)})
    scaled = inserter.node("Mul", [cast.outputs[0], inserter.constant(f"{stem}_alpha", alpha)], f"{stem}_unpacked",
                           f32, ir.Shape(shape))
    inserter.graph.insert_before(first, [cast, scaled])
    return scaled.outputs[0]


def axis_of(layer: Layer) -> int:
    """The output channel axis of the layer's weight, counted from the front."""
    return layer.channel_axis % len(_tensor(layer).shape.numpy())


def _layout(layer: Layer) -> Layout:
    return Layout.of(tuple(_tensor(layer).shape.numpy()), axis_of(layer))


def _tensor(layer: Layer) -> ir.TensorProtocol:
    assert layer.weight.const_value is not None
    return layer.weight.const_value
