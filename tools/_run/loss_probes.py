"""The float model with each layer's local noise computed beside it: new weights alone, new input
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import Names
from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.opset import raise_opset


@dataclass
class Probe:
    """Where one layer's figures come from: names of outputs of the reference with local noise
    added.
    """

    layer: str
    op: str
    output: str
    signal: str = ""
    weight: str | None = None
    activation: str | None = None


def instrumented(reference: ir.Model, result: ir.Model) -> tuple[ir.Model, list[Probe]]:
    """A copy of the reference that also computes each changed layer with its new weights, and with
    its new input.

    Its outputs: the output of each such layer, and sums of squares of that and of the two errors.
    """
    copy = reference.clone()
    version = result.opset_imports.get("", 0)
    raise_opset(copy, version)
    for domain in result.opset_imports:
        copy.opset_imports.setdefault(domain, result.opset_imports[domain])
    builder = _Builder(copy)
    twins = _Twins(result)
    outputs: list[ir.Value] = []
    probes = []
    for node in list(copy.graph):
        found = _probe(builder, node, twins) if node.op_type in WEIGHTED_OPS else None
        if found is not None:
            probes.append(found[0])
            outputs += found[1]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(outputs)
    return copy, probes


def _probe(
    builder: _Builder, node: ir.Node, twins: _Twins
) -> tuple[Probe, list[ir.Value]] | None:
    """The probe of one layer and the outputs that it needs; None for a layer that did not
    change.
    """
    weights, activation = twins.changes(node)
    if not weights and activation is None:
        return None
    output = node.outputs[0]
    probe = Probe(node.name or output.name or "", node.op_type, output.name or "")
    outputs = [builder.power(output)]
    probe.signal = outputs[0].name or ""
    if weights:
        replaced = {index: make(builder) for index, make in weights.items()}
        outputs.append(builder.error(node, replaced))
        probe.weight = outputs[-1].name
    source = node.inputs[0]
    if activation is not None and source is not None:
        outputs.append(builder.error(node, {0: activation(builder, source)}))
        probe.activation = outputs[-1].name
    if output.name in twins.made:
        outputs.append(output)
    return probe, outputs


MakeWeight = Callable[["_Builder"], ir.Value]
MakeInput = Callable[["_Builder", ir.Value], ir.Value]


class _Twins:
    """The result's form of each layer: found by node name, or by the name of the layer's output."""

    def __init__(self, result: ir.Model) -> None:
        self.made = {
            value.name: node for node in result.graph for value in node.outputs
        }
        self.named = {node.name: node for node in result.graph if node.name}

    def changes(self, node: ir.Node) -> tuple[dict[int, MakeWeight], MakeInput | None]:
        """How to make the layer's new weights, by input index, and its new input from the old
        one.
        """
        twin = self.named.get(node.name) if node.name else None
        twin = twin or self.made.get(node.outputs[0].name)
        if twin is not None and twin.op_type == node.op_type:
            return _stored_changes(node, twin)
        product = _product_behind(self.made.get(node.outputs[0].name))
        return _dynamic_changes(node, product) if product is not None else ({}, None)


def _stored_changes(
    node: ir.Node, twin: ir.Node
) -> tuple[dict[int, MakeWeight], MakeInput | None]:
    pair = (
        twin.inputs[0].producer()
        if twin.inputs and twin.inputs[0] is not None
        else None
    )
    quantizer = (
        pair.inputs[0].producer()
        if pair is not None and pair.inputs[0] is not None
        else None
    )
    in_limbs = quantizer is not None and quantizer.op_type in (
        "Reshape",
        "Pad",
    )  # each channel's codes, then its rest
    weights: dict[int, MakeWeight] = {}
    for index in WEIGHTED_OPS[node.op_type].weights:
        before = node.inputs[index] if index < len(node.inputs) else None
        after = twin.inputs[index] if index < len(twin.inputs) else None
        if (
            before is None
            or after is None
            or before.const_value is after.const_value is not None
        ):
            continue
        if before.const_value is not None and _is_constant(after):
            channels = before.const_value.shape.numpy()[1] if in_limbs else None
            weights[index] = lambda builder, after=after, channels=channels: (  # type: ignore[misc]
                builder.first_limbs(builder.transplanted(after), channels)
            )
    if pair is None or pair.op_type != "DequantizeLinear" or quantizer is None:
        return weights, None
    if quantizer.op_type != "QuantizeLinear" or 0 in weights:
        return weights, None
    return weights, lambda builder, source: builder.through_pair(
        source, quantizer, pair
    )


def _product_behind(node: ir.Node | None) -> ir.Node | None:
    """The MatMulInteger of a layer that is quantized at run time: behind Mul, Cast and a bias."""
    for _ in range(5):
        if node is None or node.op_type == "MatMulInteger":
            return node
        makers = [
            v.producer()
            for v in node.inputs
            if v is not None and v.producer() is not None
        ]
        if node.op_type not in ("Add", "Mul", "Cast") or not makers:
            return None
        node = makers[0]
    return None


def _dynamic_changes(
    node: ir.Node, product: ir.Node
) -> tuple[dict[int, MakeWeight], MakeInput | None]:
    quantizer = product.inputs[0].producer() if product.inputs[0] is not None else None
    scaled = next(iter(product.outputs[0].uses())).node.outputs[0]  # Cast
    rescale = next(iter(scaled.uses())).node
    both = rescale.inputs[1].producer() if rescale.inputs[1] is not None else None
    scales = both.inputs[1] if both is not None else None
    stored = product.inputs[1]
    if (
        quantizer is None
        or quantizer.op_type != "DynamicQuantizeLinear"
        or scales is None
        or stored is None
    ):
        return {}, None
    flipped = (
        node.op_type == "Gemm"
        and "transB" in node.attributes
        and node.attributes["transB"].as_int() == 1
    )

    def weight(builder: _Builder) -> ir.Value:
        codes, scale = builder.transplanted(stored), builder.transplanted(scales)
        value = builder.add("DequantizeLinear", [codes, scale], {"axis": 1})
        return builder.add("Transpose", [value], {"perm": [1, 0]}) if flipped else value

    return {1: weight}, lambda builder, source: builder.through_dynamic(source)


def _is_constant(value: ir.Value | None) -> bool:
    """Whether a value depends on initializers only."""
    pending = [value]
    while pending:
        v = pending.pop()
        if v is None:
            continue
        producer = v.producer()
        if producer is None:
            if v.const_value is None or v.is_graph_input():
                return False
        else:
            pending += producer.inputs
    return True


class _Builder:
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
        total.type, total.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([])
        return total

    def error(self, node: ir.Node, replaced: Mapping[int, ir.Value]) -> ir.Value:
        """Power of what changes in the node's first output when these inputs are replaced."""
        inputs = [replaced.get(index, value) for index, value in enumerate(node.inputs)]
        other = self.add(
            node.op_type, inputs, dict(node.attributes), node.domain, len(node.outputs)
        )
        return self.power(self.add("Sub", [node.outputs[0], other]))

    def through_pair(
        self, source: ir.Value, quantizer: ir.Node, dequantizer: ir.Node
    ) -> ir.Value:
        """The value as it comes out of the result's Q/DQ pair."""
        first, second = (
            [self.transplanted(v) for v in n.inputs[1:] if v is not None]
            for n in (quantizer, dequantizer)
        )
        codes = self.add("QuantizeLinear", [source, *first], dict(quantizer.attributes))
        return self.add(
            "DequantizeLinear", [codes, *second], dict(dequantizer.attributes)
        )

    def first_limbs(self, weight: ir.Value, channels: int | None) -> ir.Value:
        """(M, 2 C + more, *K) -> (M, C, *K), every second channel; the value itself where no number
        is given.
        """
        if channels is None:
            return weight
        bounds = [
            self.add("Constant", [], {"value_ints": [number]})
            for number in (0, 2 * channels, 1, 2)
        ]
        return self.add("Slice", [weight, *bounds])

    def through_dynamic(self, source: ir.Value) -> ir.Value:
        """The value quantized with its own range, and back."""
        codes = self.add("DynamicQuantizeLinear", [source], outputs=3)
        node = codes.producer()
        assert node is not None
        return self.add("DequantizeLinear", list(node.outputs))

    def transplanted(self, value: ir.Value) -> ir.Value:
        """A constant of another model, with the nodes that compute it; tensors are shared."""
        if value not in self._moved:
            producer = value.producer()
            if producer is None:
                self._moved[value] = self._initializer(value)
            else:
                inputs = [
                    None if v is None else self.transplanted(v) for v in producer.inputs
                ]
                made = self.add(
                    producer.op_type,
                    inputs,
                    dict(producer.attributes),
                    producer.domain,
                    len(producer.outputs),
                ).producer()
                assert made is not None
                self._moved.update(zip(producer.outputs, made.outputs, strict=True))
        return self._moved[value]

    def _initializer(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        name = self.names.fresh(f"loss_{value.name}")
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
