"""Probes of a float model: each layer once more, with its new weights or its new input alone.

The result's form of a layer is found by name. It is one of three: the same op on constants that
are dequantized, the same op behind a Q/DQ pair, or a MatMulInteger that quantizes at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import Names
from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.opset import raise_opset


@dataclass(frozen=True)
class Probe:
    """Source of one layer's figures: names of outputs of the instrumented reference.

    `output`: the layer's own. `signal`, `weight`, `activation`: sums of squares of that output, and
    of its errors by the new weights and by the new input; None where those did not change.
    """

    layer: str
    op: str
    output: str
    signal: str
    weight: str | None
    activation: str | None


def instrumented(reference: ir.Model, result: ir.Model) -> tuple[ir.Model, list[Probe]]:
    """A copy of the reference that also computes what its layers lose, and the probes of that.

    Its outputs: the output of each changed layer, and sums of squares of that and of the two
    errors.
    """
    copy = reference.clone()
    # nodes of the result are copied over: their opset and domains are needed here, too
    raise_opset(copy, result.opset_imports.get("", 0))
    for domain, version in result.opset_imports.items():
        copy.opset_imports.setdefault(domain, version)
    builder = Builder(copy)
    twins = Twins(result)
    outputs: list[ir.Value] = []
    probes = []
    # a list: probes are appended to the graph that is walked
    for node in list(copy.graph):
        if node.op_type not in WEIGHTED_OPS:
            continue
        found = _probe(builder, node, twins)
        if found is not None:
            probe, probed = found
            probes.append(probe)
            outputs += probed
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(outputs)
    return copy, probes


def _probe(
    builder: Builder, node: ir.Node, twins: Twins
) -> tuple[Probe, list[ir.Value]] | None:
    """The probe of one layer and the outputs that it needs; None if it did not change."""
    make_weights, make_input = twins.changes(node)
    if not make_weights and make_input is None:
        return None
    output = node.outputs[0]
    signal = builder.power(output)
    outputs = [signal]
    weight_error = input_error = None
    if make_weights:
        replaced = {index: make(builder) for index, make in make_weights.items()}
        weight_error = builder.error(node, replaced)
        outputs.append(weight_error)
    source = node.inputs[0]
    if make_input is not None and source is not None:
        input_error = builder.error(node, {0: make_input(builder, source)})
        outputs.append(input_error)
    if output.name in twins.by_output:
        # both models have this value: its drift is the noise accumulated so far
        outputs.append(output)
    probe = Probe(
        layer=node.name or output.name or "",
        op=node.op_type,
        output=output.name or "",
        signal=signal.name or "",
        weight=None if weight_error is None else weight_error.name,
        activation=None if input_error is None else input_error.name,
    )
    return probe, outputs


MakeWeight = Callable[["Builder"], ir.Value]
MakeInput = Callable[["Builder", ir.Value], ir.Value]


Changes = tuple[dict[int, MakeWeight], MakeInput | None]
"""Makers of a layer's new weights, by input index, and of its new input from the old one."""

NO_CHANGES: Changes = ({}, None)


class Twins:
    """The result's form of each layer: found by node name, or by the name of the layer's output."""

    def __init__(self, result: ir.Model) -> None:
        self.by_output: dict[str | None, ir.Node] = {}
        self.by_name: dict[str, ir.Node] = {}
        for node in result.graph:
            for value in node.outputs:
                self.by_output[value.name] = node
            if node.name:
                self.by_name[node.name] = node

    def changes(self, node: ir.Node) -> Changes:
        """Changes of one layer of the reference."""
        twin = self.layer(node)
        if twin is None:
            return NO_CHANGES
        if twin.op_type == node.op_type:
            return _stored_changes(node, twin)
        if twin.op_type == "MatMulInteger":
            return _dynamic_changes(node, twin)
        return NO_CHANGES

    def layer(self, node: ir.Node) -> ir.Node | None:
        """The result's layer for one of the reference: of the same op, or what stands for it."""
        # most passes keep the node's name; where they fuse or rewrite it, its output keeps one
        maker = self.by_output.get(node.outputs[0].name)
        twin = self.by_name.get(node.name) if node.name else None
        twin = twin or maker
        if twin is None or twin.op_type == node.op_type:
            return twin
        return _product_behind(maker, node.op_type) or twin

    def is_changed(self, node: ir.Node) -> bool:
        """True if a layer of the reference has other weights or another input in the result."""
        weights, new_input = self.changes(node)
        return bool(weights) or new_input is not None

    def bias(self, node: ir.Node) -> ir.Value | None:
        """The result's constant bias of a layer of the reference; None where it is the same."""
        place = WEIGHTED_OPS[node.op_type].bias
        twin = self.by_name.get(node.name) if node.name else None
        twin = twin or self.by_output.get(node.outputs[0].name)
        if place is None or twin is None or twin.op_type != node.op_type:
            return None
        before = _input(node, place)
        after = _input(twin, place)
        if before is None or after is None or not _is_changed(before, after):
            return None
        return after


def _stored_changes(node: ir.Node, twin: ir.Node) -> Changes:
    """Changes of a layer that is the same op in the result."""
    dequantizer = _producer_of(twin, 0)
    quantizer = None
    if dequantizer is not None:
        quantizer = _producer_of(dequantizer, 0)
    # the input in two terms: codes of each channel, then of what they left over, as more channels
    is_two_term = quantizer is not None and quantizer.op_type in ("Reshape", "Pad")
    weights: dict[int, MakeWeight] = {}
    for index in WEIGHTED_OPS[node.op_type].weights:
        before = _input(node, index)
        after = _input(twin, index)
        if before is None or after is None:
            continue
        if _is_changed(before, after):
            # of a layer that lost channels no part can stand in for the whole
            if not is_two_term and _is_resized(before, after):
                return NO_CHANGES
            assert before.const_value is not None
            shape = before.const_value.shape.numpy()
            channels = shape[1] if is_two_term else None
            weights[index] = _transplanting(after, channels)
    # input 0 may itself hold a changed weight; then it is no activation
    if dequantizer is None or quantizer is None or 0 in weights:
        return weights, None
    if dequantizer.op_type != "DequantizeLinear":
        return weights, None
    if quantizer.op_type != "QuantizeLinear":
        return weights, None

    def through_pair(builder: Builder, source: ir.Value) -> ir.Value:
        return builder.through_pair(source, quantizer, dequantizer)

    return weights, through_pair


def _is_changed(before: ir.Value, after: ir.Value) -> bool:
    """True if a stored weight has become another constant."""
    if before.const_value is None:
        return False
    if before.const_value is after.const_value:
        return False
    return _is_constant(after)


def _is_resized(before: ir.Value, after: ir.Value) -> bool:
    """True if a weight is known to have another shape than it had."""
    if before.shape is None or after.shape is None:
        return False
    return list(before.shape) != list(after.shape)


def _transplanting(weight: ir.Value, channels: int | None) -> MakeWeight:
    def make(builder: Builder) -> ir.Value:
        return builder.first_terms(builder.transplanted(weight), channels)

    return make


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _producer_of(node: ir.Node, index: int) -> ir.Node | None:
    """Node that makes an input; None for a missing input and for one that no node makes."""
    value = _input(node, index)
    return None if value is None else value.producer()


MOST_STEPS = 5
"""Nodes to look at from a dynamic layer's output back: Add, Mul, Cast, the product and a spare."""


def _product_behind(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """A layer that is not found by name: behind the Add of a new bias, or, where it is quantized at
    run time, behind Mul, Cast and a bias.
    """
    for _ in range(MOST_STEPS):
        if node is None or node.op_type in ("MatMulInteger", op_type):
            return node
        if node.op_type not in ("Add", "Mul", "Cast"):
            return None
        # the product comes first: biases and scales are constants, or made from the input
        makers = [value.producer() for value in node.inputs if value is not None]
        node = next((maker for maker in makers if maker is not None), None)
    return None


def _dynamic_changes(node: ir.Node, product: ir.Node) -> Changes:
    """Changes of a layer that the result quantizes at run time.

    There it is Mul(Cast(product), Mul(scale of the input, scales of the weight)).
    """
    quantizer = _producer_of(product, 0)
    cast = _only_user(product)
    rescale = _only_user(cast)
    both_scales = _producer_of(rescale, 1)
    scales = None if both_scales is None else both_scales.inputs[1]
    stored = product.inputs[1]
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
        return NO_CHANGES
    if scales is None or stored is None:
        return NO_CHANGES
    # MatMulInteger reads (K, N), whatever the Gemm read
    is_flipped = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1

    def weight(builder: Builder) -> ir.Value:
        codes = builder.transplanted(stored)
        scale = builder.transplanted(scales)
        value = builder.add("DequantizeLinear", [codes, scale], {"axis": 1})
        if not is_flipped:
            return value
        return builder.add("Transpose", [value], {"perm": [1, 0]})

    def through_dynamic(builder: Builder, source: ir.Value) -> ir.Value:
        return builder.through_dynamic(source)

    return {1: weight}, through_dynamic


def _only_user(node: ir.Node) -> ir.Node:
    return next(iter(node.outputs[0].uses())).node


def _is_constant(value: ir.Value) -> bool:
    """True if a value depends on initializers only."""
    pending: list[ir.Value | None] = [value]
    while pending:
        current = pending.pop()
        if current is None:
            continue
        producer = current.producer()
        if producer is not None:
            pending += producer.inputs
        elif current.const_value is None or current.is_graph_input():
            return False
    return True


class Builder:
    """Appends nodes to a model's main graph under fresh names."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self._moved: dict[ir.Value, ir.Value] = {}

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Value:
        """A new node's first output."""
        node = ir.node(
            op,
            list(inputs),
            attributes=dict(attributes or {}),
            domain=domain,
            num_outputs=outputs,
        )
        for value in node.outputs:
            value.name = self.names.fresh(f"loss_{op}")
        self.graph.append(node)
        return node.outputs[0]

    def power(self, value: ir.Value) -> ir.Value:
        """Sum of squares, a double: float32 would overflow where layers are large."""
        wide = self.add("Cast", [value], {"to": int(ir.DataType.DOUBLE)})
        total = self.add("ReduceSumSquare", [wide], {"keepdims": 0})
        # it becomes a graph output, which must have a type
        total.type = ir.TensorType(ir.DataType.DOUBLE)
        total.shape = ir.Shape([])
        return total

    def error(self, node: ir.Node, replaced: Mapping[int, ir.Value]) -> ir.Value:
        """Power of what changes in the node's first output when these inputs are replaced."""
        # the same node again beside the first, on the same values but for those replaced
        inputs = [replaced.get(index, value) for index, value in enumerate(node.inputs)]
        other = self.add(
            node.op_type,
            inputs,
            attributes=dict(node.attributes),
            domain=node.domain,
            outputs=len(node.outputs),
        )
        difference = self.add("Sub", [node.outputs[0], other])
        return self.power(difference)

    def through_pair(
        self, source: ir.Value, quantizer: ir.Node, dequantizer: ir.Node
    ) -> ir.Value:
        """The value as it comes out of the result's Q/DQ pair."""
        codes = self._again(quantizer, source)
        return self._again(dequantizer, codes)

    def _again(self, node: ir.Node, first: ir.Value) -> ir.Value:
        """The first output of such a node on another first input, its parameters moved here."""
        inputs = [first]
        for parameter in node.inputs[1:]:
            if parameter is not None:
                moved = self.transplanted(parameter)
                inputs.append(moved)
        attributes = dict(node.attributes)
        return self.add(node.op_type, inputs, attributes)

    def first_terms(self, weight: ir.Value, channels: int | None) -> ir.Value:
        """(M, 2 C + more, *K) -> (M, C, *K), every second channel.

        The value itself where no number of channels is given.
        """
        if channels is None:
            return weight
        start, end, axis, step = 0, 2 * channels, 1, 2
        bounds = [
            self.add("Constant", [], {"value_ints": [number]})
            for number in (start, end, axis, step)
        ]
        return self.add("Slice", [weight, *bounds])

    def through_dynamic(self, source: ir.Value) -> ir.Value:
        """The value quantized with its own range, and back."""
        # its three outputs, codes, scale and zero point, are the inputs of the way back
        codes = self.add("DynamicQuantizeLinear", [source], outputs=3)
        node = codes.producer()
        assert node is not None
        return self.add("DequantizeLinear", list(node.outputs))

    def transplanted(self, value: ir.Value) -> ir.Value:
        """A constant of another model, with the nodes that compute it; tensors are shared."""
        # layers may share a weight, and both nodes of a pair their scale
        moved = self._moved.get(value)
        if moved is not None:
            return moved
        producer = value.producer()
        if producer is None:
            self._moved[value] = self._initializer(value)
            return self._moved[value]
        inputs = [None if v is None else self.transplanted(v) for v in producer.inputs]
        first = self.add(
            producer.op_type,
            inputs,
            attributes=dict(producer.attributes),
            domain=producer.domain,
            outputs=len(producer.outputs),
        )
        node = first.producer()
        assert node is not None
        self._moved.update(zip(producer.outputs, node.outputs, strict=True))
        return self._moved[value]

    def rebuilt(self, value: ir.Value, known: Mapping[str, ir.Value]) -> ir.Value:
        """A value of another model, with the nodes that compute it from constants and from known
        values, by name.
        """
        pending = [value]
        while pending:
            current = pending.pop()
            same = known.get(current.name or "")
            if same is not None:
                self._moved[current] = same
                continue
            producer = current.producer()
            if producer is not None:
                pending += [each for each in producer.inputs if each is not None]
        return self.transplanted(value)

    def _initializer(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        name = self.names.fresh(f"loss_{value.name}")
        # the same data under another name
        shared = ir.LazyTensor(
            lambda: tensor,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )
        copy = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=shared.shape,
            const_value=shared,
        )
        self.graph.register_initializer(copy)
        return copy
