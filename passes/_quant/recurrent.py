"""Recurrent layers: an LSTM in integers with ranges found at run time, others with 8-bit weights.

    LSTM(x, W, R)  ->  com.microsoft.DynamicQuantizeLSTM(x, q(W), q(R), scales)
    GRU(x, W, R)   ->  GRU(x, Cast(q(W)) * scale, Cast(q(R)) * scale), folded at load

Every gate's row has a scale. Source of the former's form: ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .._core.chains import chain_of, made_of_constants, not_stored
from .._core.channel_layout import Layout
from .._core.graph import Names, all_nodes, input_of, label
from .._core.ops import RECURRENT, is_standard
from .._core.outcome import Declined
from .._core.patterns import layer_names, left_out, matches
from .._core.provenance import FloatLayer, set_float_layer
from .._core.saturation import kernel_pairs
from .engine import Counts, PaletteBits, stat_of
from .inserter import Inserter
from .palettes import LEAST_WIDTH
from .weight_codes import Codes, integer_codes, palette_codes
from .weights import Floats, wide_enough

WEIGHTS = (1, 2)
"""Inputs of the weights: of what is read, and of the state."""

LEAST_WEIGHTS = 1024
"""Weights of a layer below which scales and nodes cost more than is saved; chosen by hand."""

DOMAIN = "com.microsoft"


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """An LSTM, GRU or RNN with constant weights (directions, gates * hidden, inputs).

    `is_integer`: it is to run in integers; else it reads 8-bit weights that are unpacked at load.
    """

    node: ir.Node
    weights: tuple[ir.Value, ...]
    is_integer: bool


@dataclass(frozen=True)
class RecurrentPlan:
    """Recurrent layers to quantize, and a reason for each other one."""

    layers: list[RecurrentLayer] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)


def plan_recurrent(
    model: ir.Model,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    left_float: tuple[str, ...],
    *,
    is_integer: bool,
    is_folded: bool,
) -> RecurrentPlan:
    """Find the recurrent layers of every graph.

    `left_float`: patterns of layers that do not run in integers. `is_integer`: any other LSTM does.
    `is_folded`: the target's runtime computes what depends on constants once, so that float layers
    can read 8-bit weights.
    """
    plan = RecurrentPlan()
    made = made_of_constants(model)
    for node in all_nodes(model):
        if not is_standard(node, *RECURRENT):
            continue
        weights = _weights(node, made)
        names = layer_names(node)
        reason = left_out(names, include, exclude)
        if reason is None and isinstance(weights, str):
            reason = weights
        # the integer operator knows only the older layout
        layout = node.attributes.get_int("layout", 0)
        in_integers = is_integer and node.op_type == "LSTM" and not layout
        in_integers = in_integers and not matches(names, left_float)
        if reason is None and not in_integers and not is_folded:
            reason = f"the target has no int8 {node.op_type}"
        if reason is not None:
            plan.declined.append(Declined(label(node), reason))
        elif not isinstance(weights, str):
            layer = RecurrentLayer(node, weights, in_integers)
            plan.layers.append(layer)
    return plan


def _weights(
    node: ir.Node, made: Mapping[ir.Value, bool]
) -> tuple[ir.Value, ...] | str:
    """Initializers of a layer's weights, or the reason why they have no integers."""
    weights = []
    for index in WEIGHTS:
        found = _weight(node, index, made)
        if isinstance(found, str):
            return found
        weights.append(found)
    size = sum(_tensor(value).size for value in weights)
    if size < LEAST_WEIGHTS:
        return f"its {size} weights are too few to pay for scales"
    return tuple(weights)


def _weight(node: ir.Node, index: int, made: Mapping[ir.Value, bool]) -> ir.Value | str:
    """A weight's initializer, or the reason why it has no integers."""
    chain = chain_of(input_of(node, index))
    if chain is None:
        return "it has no weight"
    value = chain.source
    if value.producer() is not None:
        return not_stored(value, made) or "its weight is computed at run time"
    if not isinstance(value.graph, ir.Graph) or value.const_value is None:
        return "its weight is an input"
    if value.is_graph_input():
        return f"weight '{value.name}' is also a graph input: callers may override it"
    if value.is_graph_output() or chain.transposes:
        return f"weight '{value.name}' is read in another form too"
    if value.dtype != ir.DataType.FLOAT or len(value.const_value.shape) != 3:
        return f"weight '{value.name}' is {value.dtype}: already quantized"
    return value


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def store_recurrent(
    model: ir.Model,
    plan: RecurrentPlan,
    names: Names,
    limits_pairs: bool,
    palette_bits: PaletteBits,
) -> tuple[Counts, list[Declined]]:
    """Rewrite the layers of a plan; layers that share a weight share its codes.

    Returns the counts, and a reason for each layer whose weights have no codes. `limits_pairs`: no
    pair of weights may saturate an integer kernel.
    """
    counts: Counter[str] = Counter()
    declined: list[Declined] = []
    stored: dict[tuple[ir.Value, bool], ir.Value] = {}
    codes: dict[ir.Value, Codes] = {}
    widths: dict[ir.Value, int] = {}
    for layer in plan.layers:
        for value in layer.weights:
            if value not in codes:
                names_of_value = layer_names(layer.node, value)
                bits = palette_bits(names_of_value)
                widths[value] = bits or 8
                codes[value] = _codes(
                    value,
                    limits_pairs,
                    bits,
                )
        broken = [v for v in layer.weights if not np.isfinite(codes[v].scales).all()]
        if broken:
            reason = f"weight '{broken[0].name}' holds NaN or infinity"
            declined.append(Declined(label(layer.node), reason))
            continue
        if layer.is_integer:
            _to_integers(layer, codes, stored, names)
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        else:
            _unpack(layer, codes, stored, names)
        counts["layers"] += 1
    sizes = {value: _tensor(value).size for value, _ in stored}
    for value, size in sizes.items():
        width = widths[value]
        counts["weights"] += size
        counts[stat_of(width)] += size
    return dict(counts), declined


def _shape(value: ir.Value) -> tuple[int, int, int]:
    directions, gates, inputs = (int(dim) for dim in _tensor(value).shape.numpy())
    return directions, gates, inputs


def _codes(value: ir.Value, limits_pairs: bool, palette_bits: int | None) -> Codes:
    """Int8 codes of a weight, a scale for each gate's row."""
    directions, gates, inputs = _shape(value)
    rows = directions * gates
    pairs = kernel_pairs("MatMul", (inputs, rows)) if limits_pairs else None
    layout = Layout(1, rows, inputs)
    if palette_bits is not None and inputs >= LEAST_WIDTH:
        return palette_codes(_tensor(value), layout, palette_bits)
    return integer_codes(_tensor(value), layout, 8, "mse", pairs)


def _scales(code: Codes) -> Floats:
    return wide_enough(code.scales, None, 1.0)


def _to_integers(
    layer: RecurrentLayer,
    codes: dict[ir.Value, Codes],
    stored: dict[tuple[ir.Value, bool], ir.Value],
    names: Names,
) -> None:
    """Put ONNX Runtime's integer LSTM in the place of a float one."""
    node = layer.node
    assert isinstance(node.graph, ir.Graph)
    inserter = Inserter(node.graph, names)
    inputs: list[ir.Value | None] = [input_of(node, index) for index in range(8)]
    parameters: list[ir.Value | None] = []
    for index, value in zip(WEIGHTS, layer.weights, strict=True):
        assert isinstance(value.graph, ir.Graph)
        home = Inserter(value.graph, names)
        scales = _scales(codes[value]).reshape(_shape(value)[:2])
        key = (value, True)
        if key not in stored:
            tensor = inputs_first(codes[value].codes(scales.reshape(-1)))
            stored[key] = home.encoded(value.name or "weight", "q", tensor)
        inputs[index] = stored[key]
        zero = np.zeros(scales.shape, np.int8)
        parameters += [home.constant("scale", scales), home.constant("zero", zero)]
    new = ir.Node(
        DOMAIN,
        "DynamicQuantizeLSTM",
        [*inputs, *parameters],
        [
            attribute
            for attribute in node.attributes.values()
            if attribute.name != "layout"
        ],
        num_outputs=len(node.outputs),
        name=node.name,
    )
    origin = FloatLayer(node.name or node.outputs[0].name or "", label(node))
    set_float_layer(new, origin)
    node.prepend([new])
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.type, made.shape = old.type, old.shape
        made.name = old.name
        old.name = f"{old.name}_removed"
        old.replace_all_uses_with(made, replace_graph_outputs=True)
    inserter.graph.remove(node, safe=True)


def inputs_first(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Codes (directions, gates, inputs) as the integer operator reads them: inputs before gates."""
    directions, gates, inputs = (int(dim) for dim in tensor.shape.numpy())

    def compute() -> ir.TensorProtocol:
        turned = tensor.numpy().reshape(directions, gates, inputs).swapaxes(1, 2)
        return ir.Tensor(np.ascontiguousarray(turned), dtype=tensor.dtype)

    shape = ir.Shape([directions, inputs, gates])
    return ir.LazyTensor(compute, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _unpack(
    layer: RecurrentLayer,
    codes: dict[ir.Value, Codes],
    stored: dict[tuple[ir.Value, bool], ir.Value],
    names: Names,
) -> None:
    """Let a float layer read its weights from codes that are unpacked while the model is loaded."""
    f32 = ir.DataType.FLOAT
    for index, value in zip(WEIGHTS, layer.weights, strict=True):
        key = (value, False)
        if key not in stored:
            graph = value.graph
            assert isinstance(graph, ir.Graph)
            inserter = Inserter(graph, names)
            scales = _scales(codes[value])
            tensor = codes[value].codes(scales)
            code = inserter.encoded(value.name or "weight", "q", tensor)
            dims = list(_shape(value))
            factors = inserter.initializer(
                f"{value.name}_scale", ir.Tensor(scales.reshape(*dims[:2], 1))
            )
            cast = inserter.step("Cast", [code], f32, dims, {"to": int(f32)})
            scaled = inserter.step("Mul", [cast.outputs[0], factors], f32, dims)
            graph.insert_before(graph[0], [cast, scaled])
            stored[key] = scaled.outputs[0]
        layer.node.replace_input_with(index, stored[key])
