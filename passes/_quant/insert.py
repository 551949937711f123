"""Graph surgery of the static form: Q/DQ pairs, integer weights and biases."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from .._core.graph import Names
from .._core.targets import QuantRules
from .inserter import Inserter
from .layers import Layer
from .low_bit_activations import Coarse, insert_coarse
from .placement import Placement
from .qparams import Parameters
from .residual_input import insert_limbs, limbed_weight
from .weight_codes import Codes
from .weights import Floats, quantize_bias, wide_enough

FLOAT_LOWEST = np.float32(-3.4e38)
NOTHING: Mapping[Coarse, Parameters] = MappingProxyType({})


def insert_static(
    graph: ir.Graph,
    names: Names,
    placement: Placement,
    parameters: dict[ir.Value, Parameters],
    rules: QuantRules,
    codes: dict[Layer, Codes],
    reads: Mapping[Coarse, Parameters] = NOTHING,
) -> dict[str, int]:
    """Rewrite the graph into its QDQ form; returns the stats `layers`, `weights`, `pairs`.

    `reads`: what layers read with fewer than 8 bits, and on which grid.
    """
    inserter = Inserter(graph, names)
    coarse = {layer: grid for read, grid in reads.items() for layer in read.layers}
    read_on = {
        layer: coarse.get(layer, parameters[layer.input]) for layer in placement.layers
    }
    scales = _scales(placement, read_on, codes)
    stored: dict[tuple[Codes, bool], ir.Value] = {}
    weights = 0
    for layer in placement.layers:
        code, limbed = codes[layer], layer.input in placement.limbed
        if (code, limbed) not in stored:
            tensor = code.codes(scales[code])
            weights += tensor.size
            tensor = limbed_weight(tensor, rules) if limbed else tensor
            stored[code, limbed] = code.store(
                inserter, layer.weight.name or "weight", tensor, layer.node
            )
        _quantize_layer(inserter, layer, stored[code, limbed], scales[code])
        bias = layer.bias_array()
        left_float = code.packed and layer.node.op_type in rules.quantizes_bias
        if (
            bias is not None
            and rules.integer_bias
            and not left_float
            and _bias_fuses(layer)
        ):
            _quantize_bias(inserter, layer, bias, read_on[layer].scale, scales[code])
    guards = _float_guards(graph, placement) if rules.guard_float else []
    for layer in placement.layers:
        if layer.input in placement.limbed:
            insert_limbs(inserter, layer, parameters[layer.input], rules)
    alone = {read.value for read in reads if read.alone}
    dequantized = {
        value: _insert_pair(inserter, value, parameters[value], placement, rules)
        for value in placement.quantized
        if value not in placement.limbed | alone
    }
    for read, grid in reads.items():
        insert_coarse(
            inserter, read, dequantized.get(read.value, read.value), grid, rules
        )
    for value in guards:
        _insert_guard(inserter, value)
    pairs = len(dequantized) + len(placement.limbed) + len(reads)
    return {"layers": len(placement.layers), "weights": weights, "pairs": pairs}


def _scales(
    placement: Placement, read_on: Mapping[Layer, Parameters], codes: dict[Layer, Codes]
) -> dict[Codes, Floats]:
    """One scale array a weight, wide enough for the int32 bias of every layer that shares it."""
    scales: dict[Codes, Floats] = {}
    for layer in placement.layers:
        code = codes[layer]
        input_scale = float(read_on[layer].scale)
        scales[code] = wide_enough(
            scales.get(code, code.scales),
            layer.bias_array(),
            input_scale,
            code.has_zero,
        )
    return scales


def _quantize_layer(
    inserter: Inserter, layer: Layer, quantized: ir.Value, scales: Floats
) -> None:
    """The layer reads its weight dequantized from `quantized`."""
    dequantize = inserter.step(
        "DequantizeLinear",
        [
            quantized,
            inserter.constant("scale", scales),
            # Its own: ONNX Runtime's option session.x64quantprecision refuses weights that share a
            # zero point.
            inserter.constant("zero", np.zeros(scales.shape, np.int8), shared=False),
        ],
        ir.DataType.FLOAT,
        _dims(quantized),
        {"axis": layer.weight_axis},
    )
    layer.node.prepend([dequantize])
    layer.node.replace_input_with(layer.rule.weight, dequantize.outputs[0])


def _dims(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(d) for d in value.shape.numpy()]


def _bias_fuses(layer: Layer) -> bool:
    """Whether the runtime makes one integer kernel of the layer and its bias.

    A MatMul's Add is fused only into a Gemm, and that needs a 2-D or fully static input: elsewhere
    an integer bias would just be dequantized at every run.
    """
    shape = layer.input.shape
    if layer.bias_add is None or shape is None or len(shape) == 2:
        return True
    return all(isinstance(d, int) for d in shape)


def _quantize_bias(
    inserter: Inserter,
    layer: Layer,
    bias: Floats,
    input_scale: np.float32,
    scales: Floats,
) -> None:
    assert layer.bias is not None
    values, bias_scales = quantize_bias(bias, input_scale, scales)
    stem = layer.bias.name or "bias"
    dequantize = inserter.step(
        "DequantizeLinear",
        [
            inserter.initializer(f"{stem}_q", ir.Tensor(values)),
            inserter.constant("scale", bias_scales),
            inserter.constant("zero", np.zeros(bias_scales.shape, np.int32)),
        ],
        ir.DataType.FLOAT,
        list(values.shape),
        {"axis": 0},
    )
    user = layer.bias_add or layer.node
    user.prepend([dequantize])
    index = next(i for i, v in enumerate(user.inputs) if v is layer.bias)
    user.replace_input_with(index, dequantize.outputs[0])


def _insert_pair(
    inserter: Inserter,
    value: ir.Value,
    parameters: Parameters,
    placement: Placement,
    rules: QuantRules,
) -> ir.Value:
    """Value -> Q -> DQ -> its int8 consumers; all where the value exists as int8 only. Returns DQ's
    output.
    """
    dtype = ir.DataType[rules.activation.upper()]
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    zero = inserter.constant("zero", np.array(parameters.zero_point, dtype.numpy()))
    readers = [
        u
        for u in value.uses()
        if value in placement.int8_made or u.node in placement.int8_nodes
    ]
    quantize = inserter.node(
        "QuantizeLinear", [value, scale, zero], "quantized", dtype, value.shape
    )
    dequantize = inserter.node(
        "DequantizeLinear",
        [quantize.outputs[0], scale, zero],
        "dequantized",
        ir.DataType.FLOAT,
        value.shape,
    )
    for use in readers:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
    inserter.place_after(value, [quantize, dequantize])
    return dequantize.outputs[0]


def _float_guards(graph: ir.Graph, placement: Placement) -> list[ir.Value]:
    """Outputs of float Conv/Gemm layers between int8 neighbours: the runtime would quantize these
    by itself, badly.
    """
    quantized = set(placement.quantized)
    guarded = []
    for node in graph:
        if (
            node.op_type not in ("Conv", "ConvTranspose", "Gemm")
            or node in placement.int8_nodes
        ):
            continue
        source, output = node.inputs[0], node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip"):
            output = uses[0].node.outputs[0]
        if source in placement.int8_made and output in quantized:
            guarded.append(output)
    return guarded


def _insert_guard(inserter: Inserter, value: ir.Value) -> None:
    lowest = inserter.constant("lowest", np.array(FLOAT_LOWEST))
    guard = inserter.node(
        "Max", [value, lowest], "guarded", ir.DataType.FLOAT, value.shape
    )
    for use in list(value.uses()):
        if use.node is not guard:
            use.node.replace_input_with(use.idx, guard.outputs[0])
    inserter.place_after(value, [guard])
