"""Layers without calibrated ranges: integers with an input quantized at run time, or float from
weights stored in a few bits.

    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add)
    codes -> Cast -> Mul scale -> the float layer, folded at load

The latter is Cast and Mul, not DequantizeLinear: ONNX Runtime keeps that for its integer kernels
and runs it at every inference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._core.chains import CHAIN_OPS
from .._core.graph import label
from .._core.lazy import transposed
from .._core.linear import LINEAR_OPS
from .._core.provenance import float_layer, set_float_layer
from .engine import Counts, Insertion, LayerCase, StoredRows, needs_ranges
from .inserter import Inserter, take_over, turned
from .layers import WEIGHT_INPUT, QuantLayer
from .weight_codes import Codes
from .weights import Floats, wide_enough

MIN_DYNAMIC_WEIGHTS = 4096
"""Weights (count) from which a MatMul pays for quantizing its input at run time; chosen by hand;
not measured.
"""


def why_not_dynamic(case: LayerCase) -> str | None:
    """Reason why a layer's input is not quantized at run time, or None."""
    reason = case.layer.no_integers
    if reason is not None:
        return reason
    if case.layer.node.op_type not in case.rules.dynamic:
        return needs_ranges(case)
    size = case.layer.tensor.size
    if case.named or size >= MIN_DYNAMIC_WEIGHTS:
        return None
    return f"its {size} weights are too few to pay for quantizing its input"


def insert_dynamic(insertion: Insertion, layers: list[QuantLayer]) -> Counts:
    """Rewrite layers as integer products; one quantizer an input."""
    inserter = Inserter(insertion.graph, insertion.names)
    quantizers: dict[ir.Value, ir.Node] = {}
    # layers that share a weight may want it either way round
    stored: dict[tuple[Codes, bool], ir.Value] = {}
    weights = 0
    for layer in layers:
        if layer.input not in quantizers:
            quantizers[layer.input] = _quantizer(inserter, layer)
        code = insertion.codes[layer]
        scales = wide_enough(
            code.scales,
            None,
            1.0,
            code.has_zero,
        )
        key = (code, layer.channel_axis == 0)
        if key not in stored:
            if layer.weight in insertion.tables and _is_of_rows(layer, code):
                rows = StoredRows(_stored_rows(inserter, layer, code, scales), scales)
                insertion.rows[layer.weight] = rows
                stored[key] = turned(inserter, layer.node, rows.codes)
            else:
                stored[key] = _stored(
                    inserter,
                    layer,
                    code,
                    scales,
                )
            weights += layer.tensor.size
        _integer_matmul(
            inserter,
            layer,
            quantizers[layer.input],
            stored[key],
            scales,
        )
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _quantizer(inserter: Inserter, layer: QuantLayer) -> ir.Node:
    """Insert the node that quantizes a layer's input: codes, scale and zero point."""
    value = layer.input
    quantizer = inserter.node(
        "DynamicQuantizeLinear",
        [value],
        "quantized",
        ir.DataType.UINT8,
        value.shape,
        outputs=3,
    )
    _, scale, zero = quantizer.outputs
    scale.type = ir.TensorType(ir.DataType.FLOAT)
    scale.shape = ir.Shape([])
    zero.type = ir.TensorType(ir.DataType.UINT8)
    zero.shape = scale.shape
    inserter.place_after(value, [quantizer])
    return quantizer


def _stored(
    inserter: Inserter, layer: QuantLayer, code: Codes, scales: Floats
) -> ir.Value:
    """Store a layer's weight as MatMulInteger reads it: (K, N)."""
    tensor = code.codes(scales)
    if layer.channel_axis == 0:
        tensor = transposed(tensor)
    return code.store(
        inserter,
        layer.weight.name or "weight",
        tensor,
        layer.node,
    )


def _is_of_rows(layer: QuantLayer, code: Codes) -> bool:
    """True if codes are int8 with a scale a row, as those of tables."""
    return layer.channel_axis == 0 and code.is_plain


def _stored_rows(
    inserter: Inserter, layer: QuantLayer, code: Codes, scales: Floats
) -> ir.Value:
    """Store a layer's weight as the table that it is: (N, K)."""
    stem = layer.weight.name or "weight"
    return code.store(inserter, stem, code.codes(scales), layer.node)


def _integer_matmul(
    inserter: Inserter,
    layer: QuantLayer,
    quantizer: ir.Node,
    weight: ir.Value,
    scales: Floats,
) -> None:
    """Put an integer product in the place of a layer's node."""
    node = layer.node
    x, x_scale, x_zero = quantizer.outputs
    shape = node.outputs[0].shape
    int32, f32 = ir.DataType.INT32, ir.DataType.FLOAT
    product = inserter.node(
        "MatMulInteger",
        [x, weight, x_zero],
        "product",
        int32,
        shape,
    )
    origin = float_layer(node)
    if origin is not None:
        set_float_layer(product, origin)
    to_float = {"to": int(f32)}
    cast = inserter.node(
        "Cast",
        [product.outputs[0]],
        "float",
        f32,
        shape,
        to_float,
    )
    scale = inserter.constant("scale", scales)
    both = inserter.node(
        "Mul",
        [x_scale, scale],
        "scale",
        f32,
        ir.Shape(scales.shape),
    )
    factors = [cast.outputs[0], both.outputs[0]]
    result = inserter.node(
        "Mul",
        factors,
        "rescaled",
        f32,
        shape,
    )
    new = [product, cast, both, result]
    # a MatMul's Add stays where it is; the bias of a Gemm needs one
    if layer.bias is not None and layer.bias_add is None:
        terms = [result.outputs[0], layer.bias]
        new.append(
            inserter.node(
                "Add",
                terms,
                "biased",
                f32,
                shape,
            )
        )
    node.prepend(new)
    take_over(node, new[-1])


def why_not_float(case: LayerCase) -> str | None:
    """Reason why a layer is not to read its weight from codes and stay float, or None."""
    layer = case.layer
    for value in layer.chain.values:
        for user in value.consumers():
            # layers may read codes instead, all else keeps the float weight in the file
            if user not in layer.chain.nodes and user.op_type not in (
                *LINEAR_OPS,
                *CHAIN_OPS,
            ):
                return f"{label(user)} reads its weight too, in float: the file would only grow"
    return None


def insert_float(insertion: Insertion, layers: list[QuantLayer]) -> Counts:
    """Store the weights of `layers` as codes that are unpacked when the model is loaded."""
    inserter = Inserter(insertion.graph, insertion.names)
    # at the top of the graph, in reach of every layer that shares the weight
    first = insertion.graph[0]
    unpacked: dict[tuple[Codes, bool], ir.Value] = {}
    weights = 0
    for layer in layers:
        code = insertion.codes[layer]
        key = (code, layer.is_transposed)
        if key not in unpacked:
            unpacked[key] = _unpacked(
                inserter,
                layer,
                code,
                first,
            )
            weights += layer.tensor.size
        layer.node.replace_input_with(WEIGHT_INPUT, unpacked[key])
    return {"layers": len(layers), "weights": weights, "pairs": 0}


def _unpacked(
    inserter: Inserter, layer: QuantLayer, code: Codes, first: ir.Node
) -> ir.Value:
    """Insert code * scale in front of `first`."""
    f32 = ir.DataType.FLOAT
    # a channel of zeros has no scale of its own
    widened = wide_enough(
        code.scales,
        None,
        1.0,
        code.has_zero,
    )
    tensor: ir.TensorProtocol = code.codes(widened)
    if layer.is_transposed:
        tensor = transposed(tensor)
    shape = ir.Shape(tensor.shape.numpy())
    stored = code.store(
        inserter,
        layer.weight.name or "weight",
        tensor,
        first,
    )
    inner_axes = len(shape) - 1 - layer.read_axis
    scales = widened.reshape((-1,) + (1,) * inner_axes).astype(np.float32)
    cast = inserter.node(
        "Cast",
        [stored],
        "float",
        f32,
        shape,
        {"to": int(f32)},
    )
    factors = [cast.outputs[0], inserter.constant("scale", scales)]
    scaled = inserter.node(
        "Mul",
        factors,
        "unpacked",
        f32,
        shape,
    )
    inserter.graph.insert_before(first, [cast, scaled])
    return scaled.outputs[0]
