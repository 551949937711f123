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
        in_integers = False
        if is_integer and _has_integer_form(node):
            in_integers = not matches(names, left_float)
        runs = in_integers or is_folded
        if reason is None and not runs:
            reason = f"the target has no int8 {node.op_type}"
        if reason is not None:
            declined = Declined(label(node), reason)
            plan.declined.append(declined)
        elif not isinstance(weights, str):
            layer = RecurrentLayer(node, weights, in_integers)
            plan.layers.append(layer)
    return plan


def _has_integer_form(node: ir.Node) -> bool:
    """True if ONNX Runtime has an integer operator for a layer."""
    if node.op_type != "LSTM":
        return False
    # the integer operator knows only the older layout
    layout = node.attributes.get_int("layout", 0)
    return layout == 0


def _weights(
    node: ir.Node, made: Mapping[ir.Value, bool]
) -> tuple[ir.Value, ...] | str:
    """Initializers of a layer's weights, or the reason why they have no integers."""
    weights = []
    size = 0
    for index in WEIGHTS:
        found = _weight(node, index, made)
        if isinstance(found, str):
            return found
        weights.append(found)
        size += _tensor(found).size
    if size < LEAST_WEIGHTS:
        return f"its {size} weights are too few to pay for scales"
    return tuple(weights)


def _weight(node: ir.Node, index: int, made: Mapping[ir.Value, bool]) -> ir.Value | str:
    """A weight's initializer, or the reason why it has no integers."""
    given = input_of(node, index)
    chain = chain_of(given)
    if chain is None:
        return "it has no weight"
    value = chain.source
    tensor = value.const_value
    if value.producer() is not None:
        return not_stored(value, made) or "its weight is computed at run time"
    if tensor is None or not isinstance(value.graph, ir.Graph):
        return "its weight is an input"
    if value.is_graph_input():
        return f"weight '{value.name}' is also a graph input: callers may override it"
    if value.is_graph_output() or chain.transposes:
        return f"weight '{value.name}' is read in another form too"
    rank = len(tensor.shape)
    if value.dtype != ir.DataType.FLOAT or rank != 3:
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
            if value in codes:
                continue
            names_of_value = layer_names(layer.node, value)
            bits = palette_bits(names_of_value)
            widths[value] = bits or 8
            codes[value] = _codes(value, limits_pairs, bits)
        broken = _broken(layer, codes)
        if broken is not None:
            reason = f"weight '{broken.name}' holds NaN or infinity"
            refusal = Declined(label(layer.node), reason)
            declined.append(refusal)
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
        stat = stat_of(width)
        counts["weights"] += size
        counts[stat] += size
    return dict(counts), declined


def _broken(layer: RecurrentLayer, codes: Mapping[ir.Value, Codes]) -> ir.Value | None:
    """The first weight of a layer that has no finite scales; None where all have."""
    for value in layer.weights:
        is_finite = np.isfinite(codes[value].scales)
        if not is_finite.all():
            return value
    return None


def _shape(value: ir.Value) -> tuple[int, int, int]:
    return _dims(_tensor(value))


def _dims(tensor: ir.TensorProtocol) -> tuple[int, int, int]:
    """Directions, rows of all gates, and inputs."""
    shape = tensor.shape.numpy()
    directions, gates, inputs = (int(dim) for dim in shape)
    return directions, gates, inputs


def _codes(value: ir.Value, limits_pairs: bool, palette_bits: int | None) -> Codes:
    """Int8 codes of a weight, a scale for each gate's row."""
    tensor = _tensor(value)
    directions, gates, inputs = _dims(tensor)
    rows = directions * gates
    pairs = None
    if limits_pairs:
        pairs = kernel_pairs("MatMul", (inputs, rows))
    layout = Layout(1, rows, inputs)
    if palette_bits is not None and inputs >= LEAST_WIDTH:
        return palette_codes(tensor, layout, palette_bits)
    return integer_codes(tensor, layout, 8, "mse", pairs)


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
    inputs: list[ir.Value | None] = [input_of(node, index) for index in range(8)]
    parameters: list[ir.Value | None] = []
    for index, value in zip(WEIGHTS, layer.weights, strict=True):
        assert isinstance(value.graph, ir.Graph)
        home = Inserter(value.graph, names)
        row_scales = _scales(codes[value])
        directions, gates, _ = _shape(value)
        scales = row_scales.reshape(directions, gates)
        key = (value, True)
        if key not in stored:
            flat_scales = scales.reshape(-1)
            rows = codes[value].codes(flat_scales)
            tensor = inputs_first(rows)
            stored[key] = home.encoded(value.name or "weight", "q", tensor)
        inputs[index] = stored[key]
        zeros = np.zeros(scales.shape, np.int8)
        scale = home.constant("scale", scales)
        zero = home.constant("zero", zeros)
        parameters += [scale, zero]
    new = _integer_node(node, [*inputs, *parameters])
    name = node.name or node.outputs[0].name or ""
    origin = FloatLayer(name, label(node))
    set_float_layer(new, origin)
    _replace(node, new)


def _replace(node: ir.Node, new: ir.Node) -> None:
    """Put a node with the same outputs in the place of another."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.prepend([new])
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.type = old.type
        made.shape = old.shape
        made.name = old.name
        old.name = f"{old.name}_removed"
        old.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _integer_node(node: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
    """ONNX Runtime's integer LSTM with the options of a float one."""
    options = node.attributes.values()
    attributes = [option for option in options if option.name != "layout"]
    return ir.Node(
        DOMAIN,
        "DynamicQuantizeLSTM",
        inputs,
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
    )


def inputs_first(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Codes (directions, gates, inputs) as the integer operator reads them: inputs before gates."""
    directions, gates, inputs = _dims(tensor)
    dtype = tensor.dtype

    def compute() -> ir.TensorProtocol:
        codes = tensor.numpy().reshape(directions, gates, inputs)
        turned = codes.swapaxes(1, 2)
        contiguous = np.ascontiguousarray(turned)
        return ir.Tensor(contiguous, dtype=dtype)

    shape = ir.Shape([directions, inputs, gates])
    return ir.LazyTensor(compute, dtype=dtype, shape=shape, name=tensor.name)


def _unpack(
    layer: RecurrentLayer,
    codes: dict[ir.Value, Codes],
    stored: dict[tuple[ir.Value, bool], ir.Value],
    names: Names,
) -> None:
    """Let a float layer read its weights from codes that are unpacked while the model is loaded."""
    for index, value in zip(WEIGHTS, layer.weights, strict=True):
        key = (value, False)
        if key not in stored:
            own_codes = codes[value]
            stored[key] = _unpacked(value, own_codes, names)
        weight = stored[key]
        layer.node.replace_input_with(index, weight)


def _unpacked(value: ir.Value, codes: Codes, names: Names) -> ir.Value:
    """Insert the nodes that compute a weight from its codes; return the last one's value."""
    f32 = ir.DataType.FLOAT
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    inserter = Inserter(graph, names)
    scales = _scales(codes)
    tensor = codes.codes(scales)
    code = inserter.encoded(value.name or "weight", "q", tensor)
    directions, gates, inputs = _shape(value)
    dims = [directions, gates, inputs]
    by_row = scales.reshape(directions, gates, 1)
    factors = inserter.initializer(f"{value.name}_scale", ir.Tensor(by_row))
    cast = inserter.step("Cast", [code], f32, dims, {"to": int(f32)})
    codes_as_floats = cast.outputs[0]
    scaled = inserter.step("Mul", [codes_as_floats, factors], f32, dims)
    graph.insert_before(graph[0], [cast, scaled])
    return scaled.outputs[0]
