"""Graph surgery: Q/DQ pairs, integer weights and biases, and the form that quantizes activations at run time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._graph import Names
from .._packing import packed_weight
from .layers import Layer, int_attribute
from .parameters import Parameters
from .placement import Placement
from .rules import MIN_DYNAMIC_WEIGHTS, TargetRules
from .weights import Floats, Layout, int8_scales, quantize_bias, quantize_weight, transposed, wide_enough

FLOAT_LOWEST = np.float32(-3.4e38)


class Inserter:
    """Adds initializers and nodes to one graph under fresh names; equal small constants are made once."""

    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self.graph = graph
        self.names = names
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.weights: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def constant(self, stem: str, array: np.ndarray) -> ir.Value:
        """An initializer holding `array`, reused where an equal one was made before."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(stem, ir.Tensor(np.asarray(array, order="C")))
        return self._constants[key]

    def initializer(self, stem: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer; the tensor may be lazy."""
        name = self.names.fresh(stem)
        tensor.name = name
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: list[ir.Value | None], stem: str, dtype: ir.DataType, shape: ir.Shape | None,
        attributes: dict[str, int] | None = None, outputs: int = 1,
    ) -> ir.Node:
        """A new node, not yet in the graph, with named and typed first output."""
        name = self.names.fresh(stem)
        node = ir.node(op, inputs, attributes=attributes or {}, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else self.names.fresh(f"{stem}_{index}")
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = shape
        return node

    def place_after(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        """Put nodes right behind the producer of `value`, or at the top for a graph input."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)


def insert_static(
    graph: ir.Graph, names: Names, placement: Placement, parameters: dict[ir.Value, Parameters], rules: TargetRules,
    alphas: dict[ir.Value, Floats],
) -> dict[str, int]:
    """Rewrite the graph into its QDQ form; returns the stats `layers`, `weights`, `pairs`.

    `alphas`: scales of the weights to store as packed signs; every other weight becomes int8.
    """
    inserter = Inserter(graph, names)
    scales = _scales(placement, parameters, alphas)
    weights = sum(weight.const_value.size for weight in scales if weight.const_value is not None)
    for layer in placement.layers:
        _quantize_layer(inserter, layer, parameters[layer.input], scales[layer.weight], rules, layer.weight in alphas)
    guards = _float_guards(graph, placement) if rules.guard_float else []
    for value in placement.quantized:
        _insert_pair(inserter, value, parameters[value], placement, rules)
    for value in guards:
        _insert_guard(inserter, value)
    return {"layers": len(placement.layers), "weights": weights, "pairs": len(placement.quantized)}


def _scales(
    placement: Placement, parameters: dict[ir.Value, Parameters], alphas: dict[ir.Value, Floats]
) -> dict[ir.Value, Floats]:
    """One scale array a weight, wide enough for the int32 bias of every layer that shares it."""
    scales: dict[ir.Value, Floats] = {}
    for layer in placement.layers:
        tensor = layer.weight.const_value
        assert tensor is not None
        if layer.weight not in scales:
            layout = Layout.of(tuple(tensor.shape.numpy()), layer.channel_axis)
            given = alphas.get(layer.weight)
            scales[layer.weight] = int8_scales(tensor, layout) if given is None else given
        scales[layer.weight] = wide_enough(
            scales[layer.weight], layer.bias_array(), float(parameters[layer.input].scale)
        )
    return scales


def _quantize_layer(
    inserter: Inserter, layer: Layer, input_parameters: Parameters, scales: Floats, rules: TargetRules, packed: bool
) -> None:
    """Integer weight and bias in front of the layer."""
    tensor, stem = layer.weight.const_value, layer.weight.name
    assert tensor is not None
    assert stem is not None
    axis = layer.channel_axis % len(tensor.shape.numpy())
    if packed:
        quantized = packed_weight(inserter.graph, inserter.names, stem, tensor, layer.node)
    elif (layer.weight, b"") in inserter.weights:
        quantized = inserter.weights[layer.weight, b""]
    else:
        layout = Layout.of(tuple(tensor.shape.numpy()), axis)
        quantized = inserter.initializer(f"{stem}_q", quantize_weight(tensor, layout, scales))
        inserter.weights[layer.weight, b""] = quantized
    dequantize = inserter.node(
        "DequantizeLinear",
        [quantized, inserter.constant(f"{stem}_scale", scales),
         inserter.constant("weight_zp", np.zeros(scales.shape, np.int8))],
        f"{stem}_dq", ir.DataType.FLOAT, quantized.shape, {"axis": axis},
    )
    layer.node.prepend([dequantize])
    layer.node.replace_input_with(layer.rule.weight, dequantize.outputs[0])
    bias = layer.bias_array()
    if bias is not None and rules.integer_bias and _bias_fuses(layer):
        _quantize_bias(inserter, layer, bias, input_parameters.scale, scales)


def _bias_fuses(layer: Layer) -> bool:
    """Whether the runtime makes one integer kernel of the layer and its bias.

    A MatMul's Add is fused only into a Gemm, and that needs a 2-D or fully static input: elsewhere an integer bias
    would just be dequantized at every run.
    """
    shape = layer.input.shape
    if layer.bias_add is None or shape is None or len(shape) == 2:
        return True
    return all(isinstance(d, int) for d in shape)


def _quantize_bias(inserter: Inserter, layer: Layer, bias: Floats, input_scale: np.float32, scales: Floats) -> None:
    assert layer.bias is not None
    values, bias_scales = quantize_bias(bias, input_scale, scales)
    stem = layer.bias.name or "bias"
    dequantize = inserter.node(
        "DequantizeLinear",
        [inserter.initializer(f"{stem}_q", ir.Tensor(values)),
         inserter.constant(f"{stem}_scale", bias_scales),
         inserter.constant("bias_zp", np.zeros(bias_scales.shape, np.int32))],
        f"{stem}_dq", ir.DataType.FLOAT, ir.Shape(values.shape), {"axis": 0},
    )
    user = layer.bias_add or layer.node
    user.prepend([dequantize])
    index = next(i for i, v in enumerate(user.inputs) if v is layer.bias)
    user.replace_input_with(index, dequantize.outputs[0])


def _insert_pair(
    inserter: Inserter, value: ir.Value, parameters: Parameters, placement: Placement, rules: TargetRules
) -> None:
    """value -> Q -> DQ -> its int8 consumers; every consumer where the value exists as int8 only."""
    dtype = ir.DataType.UINT8 if rules.activation == "uint8" else ir.DataType.INT8
    stem = value.name or "value"
    scale = inserter.constant(f"{stem}_scale", np.array(parameters.scale, np.float32))
    zero = inserter.constant(f"{stem}_zp", np.array(parameters.zero_point, dtype.numpy()))
    readers = [u for u in value.uses() if value in placement.int8_made or u.node in placement.int8_nodes]
    quantize = inserter.node("QuantizeLinear", [value, scale, zero], f"{stem}_q", dtype, value.shape)
    dequantize = inserter.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero], f"{stem}_dq", ir.DataType.FLOAT, value.shape
    )
    for use in readers:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
    inserter.place_after(value, [quantize, dequantize])


def _float_guards(graph: ir.Graph, placement: Placement) -> list[ir.Value]:
    """Outputs of float Conv/Gemm layers between int8 neighbours: the runtime would quantize these by itself, badly."""
    quantized = set(placement.quantized)
    guarded = []
    for node in graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node in placement.int8_nodes:
            continue
        source, output = node.inputs[0], node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip"):
            output = uses[0].node.outputs[0]
        if source in placement.int8_made and output in quantized:
            guarded.append(output)
    return guarded


def _insert_guard(inserter: Inserter, value: ir.Value) -> None:
    lowest = inserter.constant("float_lowest", np.array(FLOAT_LOWEST))
    guard = inserter.node("Max", [value, lowest], f"{value.name}_kept_float", ir.DataType.FLOAT, value.shape)
    for use in list(value.uses()):
        if use.node is not guard:
            use.node.replace_input_with(use.idx, guard.outputs[0])
    inserter.place_after(value, [guard])


def worth_dynamic(layer: Layer) -> str | None:
    """Why quantizing this layer's input at run time would not pay, or None."""
    assert layer.weight.const_value is not None
    size = layer.weight.const_value.size
    return f"its {size} weights are too few to pay for quantizing its input" if size < MIN_DYNAMIC_WEIGHTS else None


def insert_dynamic(graph: ir.Graph, names: Names, layers: list[Layer]) -> dict[str, int]:
    """Rewrite layers as DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add); one quantizer an input."""
    inserter = Inserter(graph, names)
    quantizers: dict[ir.Value, ir.Node] = {}
    weights = 0
    for layer in layers:
        if layer.input not in quantizers:
            quantizer = inserter.node(
                "DynamicQuantizeLinear", [layer.input], f"{layer.input.name}_dynamic", ir.DataType.UINT8,
                layer.input.shape, outputs=3,
            )
            quantizer.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
            quantizer.outputs[2].type = ir.TensorType(ir.DataType.UINT8)
            quantizer.outputs[1].shape = quantizer.outputs[2].shape = ir.Shape([])
            _place_reachable(inserter, layer, quantizer)
            quantizers[layer.input] = quantizer
        weights += _integer_matmul(inserter, layer, quantizers[layer.input])
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _place_reachable(inserter: Inserter, layer: Layer, quantizer: ir.Node) -> None:
    """Behind the input's producer; at the top of this graph where the input comes from an outer one."""
    producer = layer.input.producer()
    if producer is not None and producer.graph is inserter.graph:
        inserter.graph.insert_after(producer, [quantizer])
    else:
        inserter.graph.insert_before(inserter.graph[0], [quantizer])


def _integer_matmul(inserter: Inserter, layer: Layer, quantizer: ir.Node) -> int:
    node, tensor, stem = layer.node, layer.weight.const_value, layer.weight.name or "weight"
    assert tensor is not None
    flipped = node.op_type == "Gemm" and bool(int_attribute(node, "transB", 0))
    layout = Layout.of(tuple(tensor.shape.numpy()), layer.channel_axis)
    scales = wide_enough(int8_scales(tensor, layout), None, 1.0)
    key = (layer.weight, b"flipped" if flipped else b"")
    if key not in inserter.weights:
        quantized = quantize_weight(tensor, layout, scales)
        inserter.weights[key] = inserter.initializer(
            f"{stem}_q", transposed(quantized) if flipped else quantized
        )
    x, x_scale, x_zero = quantizer.outputs
    old = node.outputs[0]
    f32, shape = ir.DataType.FLOAT, old.shape
    product = inserter.node("MatMulInteger", [x, inserter.weights[key], x_zero], f"{stem}_product",
                            ir.DataType.INT32, shape)
    cast = inserter.node("Cast", [product.outputs[0]], f"{stem}_product_float", f32, shape, {"to": int(f32)})
    both = inserter.node("Mul", [x_scale, inserter.constant(f"{stem}_scale", scales)], f"{stem}_both_scales", f32,
                         ir.Shape(scales.shape))
    result = inserter.node("Mul", [cast.outputs[0], both.outputs[0]], f"{stem}_scaled", f32, shape)
    new = [product, cast, both, result]
    if layer.bias is not None and layer.bias_add is None:
        new.append(inserter.node("Add", [result.outputs[0], layer.bias], f"{stem}_biased", f32, shape))
    node.prepend(new)
    take_over(node, new[-1])
    return tensor.size


def take_over(old: ir.Node, new: ir.Node) -> None:
    """`new`'s output replaces `old`'s under the old name; `old` is removed."""
    before, after = old.outputs[0], new.outputs[0]
    after.name, before.name = before.name, f"{before.name}_removed"
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    assert old.graph is not None
    old.graph.remove(old, safe=True)
