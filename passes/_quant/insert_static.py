"""Graph surgery of layers with calibrated ranges: Q/DQ pairs, integer weights and biases."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._core.lazy import transposed
from .._core.ops import MOVES, SELECTIONS, is_standard
from .._core.targets import QuantRules
from .engine import Counts, Insertion, LayerCase, needs_ranges
from .guards import insert_guard
from .inserter import Inserter
from .layers import WEIGHT_INPUT, QuantLayer
from .low_bit_activations import insert_low_bit
from .placement import Placement
from .qparams import Parameters
from .residual_input import IMAGE_RANK, insert_two_terms, two_term_weight
from .weight_codes import Codes
from .weights import Floats, quantize_bias, wide_enough


def why_not_static(case: LayerCase) -> str | None:
    """Reason why a layer does not run on int8 values with calibrated ranges, or None."""
    reason = case.layer.no_integers
    if reason is not None:
        return reason
    if not case.calibrated:
        return needs_ranges(case)
    if case.named:
        return None
    layer = case.layer
    if layer.node.op_type != "Conv" or not _shows_input(layer.input):
        return None
    # in front of a sum a float Conv would make the runtime transpose the run to NHWC at every Add
    readers = {use.node.op_type for use in layer.activated.uses()}
    if len(layer.activated.uses()) > 1 and not readers <= SELECTIONS:
        return None
    channels = layer.shape[1] * layer.groups
    # an image is read in two terms instead
    if len(layer.shape) == IMAGE_RANK or channels > case.rules.image_channels:
        return None
    return (
        f"it reads the input's {channels} channels: float is as fast there, and keeps the "
        "input's precision"
    )


def _shows_input(value: ir.Value) -> bool:
    """True for an input of the model, perhaps moved about, or parts of it."""
    producer = value.producer()
    while producer is not None and is_standard(producer, *MOVES, "Pad"):
        source = producer.inputs[0]
        if source is None:
            return False
        value, producer = source, source.producer()
    return value.is_graph_input()


def insert_static(insertion: Insertion, layers: list[QuantLayer]) -> Counts:
    """Rewrite a graph into its QDQ form."""
    calibration = insertion.calibration
    assert calibration is not None
    placement, rules = calibration.placement, insertion.rules
    inserter = Inserter(insertion.graph, insertion.names)
    read_on = {layer: calibration.parameters[layer.input] for layer in layers}
    for read, grid in calibration.low_bit.items():
        for layer in read.layers:
            read_on[layer] = grid
    weights = _quantize_layers(
        inserter,
        placement,
        rules,
        insertion.codes,
        read_on,
    )
    # before pairs go in: guards are found by what still reads what
    guards = _float_guards(insertion.graph, placement) if rules.guard_float else []
    for layer in layers:
        if layer.input in placement.two_term:
            parameters = calibration.parameters[layer.input]
            insert_two_terms(
                inserter,
                layer,
                parameters,
                rules,
            )
    # values that nobody reads with 8 bits get no pair of 8 bits
    without_pair = set(placement.two_term)
    without_pair.update(read.value for read in calibration.low_bit if read.alone)
    dequantized: dict[ir.Value, ir.Value] = {}
    for value in placement.quantized:
        if value not in without_pair:
            dequantized[value] = _insert_pair(
                inserter,
                value,
                calibration.parameters[value],
                placement,
                rules,
            )
    for read, grid in calibration.low_bit.items():
        source = dequantized.get(read.value, read.value)
        insert_low_bit(
            inserter,
            read,
            source,
            grid,
            rules,
        )
    for value in guards:
        insert_guard(inserter, value)
    pairs = len(dequantized) + len(placement.two_term) + len(calibration.low_bit)
    return {"layers": len(layers), "weights": weights, "pairs": pairs}


def _quantize_layers(
    inserter: Inserter,
    placement: Placement,
    rules: QuantRules,
    codes: dict[QuantLayer, Codes],
    read_on: dict[QuantLayer, Parameters],
) -> int:
    """Let every layer read integer weights and biases; returns the weights stored (count)."""
    scales = _scales(placement, read_on, codes)
    # a shared weight is stored once, but in two forms where one layer reads an image, or reads it
    # transposed
    stored: dict[tuple[Codes, bool, bool], ir.Value] = {}
    weights = 0
    for layer in placement.layers:
        code = codes[layer]
        in_two_terms = layer.input in placement.two_term
        key = (code, in_two_terms, layer.is_transposed)
        if key not in stored:
            tensor: ir.TensorProtocol = code.codes(scales[code])
            weights += tensor.size
            if in_two_terms:
                tensor = two_term_weight(tensor, rules)
            if layer.is_transposed:
                tensor = transposed(tensor)
            stem = layer.weight.name or "weight"
            stored[key] = code.store(
                inserter,
                stem,
                tensor,
                layer.node,
            )
        _quantize_layer(
            inserter,
            layer,
            stored[key],
            scales[code],
        )
        if _takes_integer_bias(layer, code, rules):
            input_scale = read_on[layer].scale
            _quantize_bias(
                inserter,
                layer,
                input_scale,
                scales[code],
            )
    return weights


def _scales(
    placement: Placement,
    read_on: dict[QuantLayer, Parameters],
    codes: dict[QuantLayer, Codes],
) -> dict[Codes, Floats]:
    """One scale array a weight, wide enough for the int32 bias of every layer that shares it."""
    scales: dict[Codes, Floats] = {}
    for layer in placement.layers:
        code = codes[layer]
        known = scales.get(code, code.scales)
        input_scale = float(read_on[layer].scale)
        scales[code] = wide_enough(
            known,
            layer.bias_array(),
            input_scale,
            code.has_zero,
        )
    return scales


def _quantize_layer(
    inserter: Inserter, layer: QuantLayer, quantized: ir.Value, scales: Floats
) -> None:
    """Let the layer read its weight dequantized from `quantized`."""
    scale = inserter.constant("scale", scales)
    # Its own: ONNX Runtime's option session.x64quantprecision refuses weights that share a
    # zero point.
    zeros = np.zeros(scales.shape, np.int8)
    zero = inserter.constant("zero", zeros, shared=False)
    dequantize = inserter.step(
        "DequantizeLinear",
        [quantized, scale, zero],
        ir.DataType.FLOAT,
        _dims(quantized),
        {"axis": layer.read_axis},
    )
    layer.node.prepend([dequantize])
    layer.node.replace_input_with(WEIGHT_INPUT, dequantize.outputs[0])


def _dims(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(d) for d in value.shape.numpy()]


def _takes_integer_bias(layer: QuantLayer, code: Codes, rules: QuantRules) -> bool:
    """True if the layer's bias is to be stored as int32."""
    if layer.bias is None or not rules.integer_bias:
        return False
    # in a packed file a scale a channel weighs more than what the runtime does at load
    if code.packed and layer.node.op_type in rules.quantizes_bias:
        return False
    return _bias_fuses(layer)


def _bias_fuses(layer: QuantLayer) -> bool:
    """True if the runtime makes one integer kernel of the layer and its bias.

    A MatMul's Add is fused only into a Gemm, and that needs a 2-D or fully static input: elsewhere
    an integer bias would just be dequantized at every run.
    """
    shape = layer.input.shape
    if layer.bias_add is None or shape is None or len(shape) == 2:
        return True
    return all(isinstance(d, int) for d in shape)


def _quantize_bias(
    inserter: Inserter, layer: QuantLayer, input_scale: np.float32, scales: Floats
) -> None:
    """Let the layer read its bias dequantized from int32."""
    bias = layer.bias_array()
    assert layer.bias is not None
    assert bias is not None
    values, bias_scales = quantize_bias(bias, input_scale, scales)
    stored = inserter.encoded(
        layer.bias.name or "bias",
        "q",
        ir.Tensor(values),
    )
    scale = inserter.constant("scale", bias_scales)
    zero = inserter.constant("zero", np.zeros(bias_scales.shape, np.int32))
    dequantize = inserter.step(
        "DequantizeLinear",
        [stored, scale, zero],
        ir.DataType.FLOAT,
        list(values.shape),
        {"axis": 0},
    )
    # of a MatMul it is the Add that reads the bias
    user = layer.bias_add or layer.node
    user.prepend([dequantize])
    index = list(user.inputs).index(layer.bias)
    user.replace_input_with(index, dequantize.outputs[0])


def _insert_pair(
    inserter: Inserter,
    value: ir.Value,
    parameters: Parameters,
    placement: Placement,
    rules: QuantRules,
) -> ir.Value:
    """Value -> Q -> DQ -> its int8 consumers; all where the value exists as int8 only.

    Returns DQ's output.
    """
    dtype = ir.DataType[rules.activation.upper()]
    f32 = ir.DataType.FLOAT
    scale = inserter.constant("scale", np.array(parameters.scale, np.float32))
    zero = inserter.constant("zero", np.array(parameters.zero_point, dtype.numpy()))
    # taken down before the pair reads the value as well
    readers = list(value.uses())
    if value not in placement.int8_made:
        # those of this graph alone: a body around or beside it has its own pair
        readers = [use for use in readers if use.node in placement.int8_nodes]
    quantize = inserter.node(
        "QuantizeLinear",
        [value, scale, zero],
        "quantized",
        dtype,
        value.shape,
    )
    codes = quantize.outputs[0]
    dequantize = inserter.node(
        "DequantizeLinear",
        [codes, scale, zero],
        "dequantized",
        f32,
        value.shape,
    )
    for use in readers:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
    inserter.place_after(value, [quantize, dequantize])
    return dequantize.outputs[0]


def _float_guards(graph: ir.Graph, placement: Placement) -> list[ir.Value]:
    """Outputs of float Conv/Gemm layers between int8 neighbours.

    The runtime would quantize these by itself, badly.
    """
    quantized = set(placement.quantized)
    guarded = []
    for node in graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        if node in placement.int8_nodes or node.inputs[0] not in placement.int8_made:
            continue
        output = node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip"):
            output = uses[0].node.outputs[0]
        if output in quantized:
            guarded.append(output)
    return guarded
