"""Layers whose input is quantized at run time: DynamicQuantizeLinear -> MatMulInteger -> Cast ->
Mul (-> Add).
"""

from __future__ import annotations

import onnx_ir as ir

from .._core.graph import Names
from .inserter import Inserter, take_over
from .layers import Layer, int_attribute
from .weight_codes import Codes
from .weights import Floats, transposed, wide_enough

MIN_DYNAMIC_WEIGHTS = 4096
"""A MatMul with fewer weights costs more in quantizing its input at run time than it gains."""


def worth_dynamic(layer: Layer) -> str | None:
    """Why quantizing this layer's input at run time would not pay, or None."""
    size = layer.tensor.size
    return (
        f"its {size} weights are too few to pay for quantizing its input"
        if size < MIN_DYNAMIC_WEIGHTS
        else None
    )


def insert_dynamic(
    graph: ir.Graph, names: Names, layers: list[Layer], codes: dict[Layer, Codes]
) -> dict[str, int]:
    """Rewrite layers as DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add); one
    quantizer an input.
    """
    inserter = Inserter(graph, names)
    quantizers: dict[ir.Value, ir.Node] = {}
    stored: dict[tuple[Codes, bool], ir.Value] = {}
    weights = 0
    for layer in layers:
        if layer.input not in quantizers:
            quantizer = inserter.node(
                "DynamicQuantizeLinear",
                [layer.input],
                "quantized",
                ir.DataType.UINT8,
                layer.input.shape,
                outputs=3,
            )
            quantizer.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
            quantizer.outputs[2].type = ir.TensorType(ir.DataType.UINT8)
            quantizer.outputs[1].shape = quantizer.outputs[2].shape = ir.Shape([])
            _place_reachable(inserter, layer, quantizer)
            quantizers[layer.input] = quantizer
        code = codes[layer]
        scales = wide_enough(code.scales, None, 1.0, code.has_zero)
        key = (code, _is_flipped(layer))
        if key not in stored:
            tensor = code.codes(scales)
            stored[key] = code.store(
                inserter,
                layer.weight.name or "weight",
                transposed(tensor) if key[1] else tensor,
                layer.node,
            )
            weights += tensor.size
        _integer_matmul(inserter, layer, quantizers[layer.input], stored[key], scales)
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _is_flipped(layer: Layer) -> bool:
    return layer.node.op_type == "Gemm" and bool(int_attribute(layer.node, "transB", 0))


def _place_reachable(inserter: Inserter, layer: Layer, quantizer: ir.Node) -> None:
    """Behind the input's producer; at the top of this graph where the input comes from an outer
    one.
    """
    producer = layer.input.producer()
    if producer is not None and producer.graph is inserter.graph:
        inserter.graph.insert_after(producer, [quantizer])
    else:
        inserter.graph.insert_before(inserter.graph[0], [quantizer])


def _integer_matmul(
    inserter: Inserter,
    layer: Layer,
    quantizer: ir.Node,
    weight: ir.Value,
    scales: Floats,
) -> None:
    node = layer.node
    x, x_scale, x_zero = quantizer.outputs
    old = node.outputs[0]
    f32, shape = ir.DataType.FLOAT, old.shape
    product = inserter.node(
        "MatMulInteger", [x, weight, x_zero], "product", ir.DataType.INT32, shape
    )
    cast = inserter.node(
        "Cast", [product.outputs[0]], "float", f32, shape, {"to": int(f32)}
    )
    both = inserter.node(
        "Mul",
        [x_scale, inserter.constant("scale", scales)],
        "scale",
        f32,
        ir.Shape(scales.shape),
    )
    result = inserter.node(
        "Mul", [cast.outputs[0], both.outputs[0]], "rescaled", f32, shape
    )
    new = [product, cast, both, result]
    if layer.bias is not None and layer.bias_add is None:
        new.append(
            inserter.node("Add", [result.outputs[0], layer.bias], "biased", f32, shape)
        )
    node.prepend(new)
    take_over(node, new[-1])
