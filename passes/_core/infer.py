"""onnx's shape and type inference on a model whose weights stay out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from .stand_ins import stand_ins

SMALL = 1024
"""Bytes up to which a tensor is shown to onnx: it reads axes, shapes and scales, never weights."""

PROTOBUF_LIMIT = 2**31
"""Bytes that a serialized model cannot reach."""

PROPAGATED = 1 << 16
"""Elements of a shape tensor up to which onnx follows them. Chosen by hand; not measured."""

FOLLOWED = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice"}
    | {"Squeeze", "Sub", "Unsqueeze"}
)
"""Operators through which onnx follows elements."""

FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
"""Exceptions of onnx's own functions on a model that they cannot handle."""


def infer_types(model: ir.Model, data_prop: bool) -> bool:
    """Set the type and shape of every value as far as onnx infers them; False if it gives up.

    Unlike onnx_ir's ShapeInferencePass this keeps sequence and optional types (it makes tensors of
    them).
    """
    data_prop = data_prop and _propagation_is_bounded(model)
    with without_weights(model):
        proto = ir.to_proto(model)
    # weights of subgraphs, and those that callers may override, are still there
    if proto.ByteSize() >= PROTOBUF_LIMIT:
        return False
    _stand_in(model, proto)
    try:
        proto = onnx.shape_inference.infer_shapes(
            proto,
            check_type=False,
            strict_mode=False,
            data_prop=data_prop,
        )
    except FAILURES:
        return False
    for ours, theirs in _pairs(model.graph, proto.graph):
        # by name: inference keeps names and may add values
        found = {info.name: info.type for info in _declarations(theirs)}
        for value in _values(ours):
            if value.name in found:
                _take(value, found[value.name])
    return True


def _stand_in(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Put nodes of which onnx infers more in the place of others of the main graph."""
    opset = model.opset_imports.get("", 1)
    nodes: list[onnx.NodeProto] = []
    is_changed = False
    for node, own in zip(
        model.graph,
        proto.graph.node,
        strict=True,
    ):
        others = stand_ins(
            node,
            own,
            opset,
        )
        is_changed |= others[0] is not own
        nodes.extend(others)
    if is_changed:
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)


def _pairs(
    graph: ir.Graph, proto: onnx.GraphProto
) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    """A graph and every one within it, each with its form in protobuf; nodes in the same order."""
    waiting = [(graph, proto)]
    while waiting:
        ours, theirs = waiting.pop()
        yield ours, theirs
        # nodes that stand in for others hold no graphs, and those with graphs keep their order
        holders = [node for node in ours if _holds_graphs(node)]
        others = [node for node in theirs.node if _holds_inner(node)]
        for node, other in zip(
            holders,
            others,
            strict=True,
        ):
            waiting.extend(_inner_pairs(node, other))


def _holds_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(each.type in kinds for each in node.attributes.values())


def _holds_inner(proto: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(each.type in kinds for each in proto.attribute)


def _inner_pairs(
    node: ir.Node, proto: onnx.NodeProto
) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    for attribute in proto.attribute:
        ours = node.attributes[attribute.name]
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield ours.as_graph(), attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from zip(
                ours.as_graphs(),
                attribute.graphs,
                strict=True,
            )


def _declarations(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _take(value: ir.Value, proto: onnx.TypeProto) -> None:
    """Give a value the type and the shape that onnx found; what it did not find stays."""
    type_ = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    value.type = type_ or value.type
    # that of a scalar is empty, which is false
    if shape is not None:
        value.shape = shape


def is_invented(name: str | None) -> bool:
    """True if a symbol is onnx's own name for a dim that it does not know."""
    return name is not None and name.startswith("unk__")


def _propagation_is_bounded(model: ir.Model) -> bool:
    """True unless following the elements of shape tensors could fill the memory.

    onnx follows them through Concat to any length: thirty that double make 2^30 elements.
    """
    elements: dict[ir.Value, int] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes <= SMALL:
                elements[value] = tensor.size
        for node in graph:
            length = _elements_followed(node, elements)
            if length > PROPAGATED:
                return False
            elements.update(dict.fromkeys(node.outputs, length))
    joins = 0
    for function in model.functions.values():
        joins += sum(node.op_type == "Concat" for node in function)
    return joins < PROPAGATED.bit_length()


def _elements_followed(node: ir.Node, elements: dict[ir.Value, int]) -> int:
    """Elements of a node's result that onnx knows; 0 where it knows none."""
    if node.op_type == "Shape":
        return SMALL
    if node.op_type == "Constant":
        tensor = node.attributes.get("value")
        return tensor.as_tensor().size if tensor and not tensor.is_ref() else 1
    if node.op_type not in FOLLOWED:
        return 0
    lengths = [elements.get(value, 0) for value in node.inputs if value is not None]
    if node.op_type == "Concat":
        return sum(lengths)
    return max(lengths, default=0)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from (value for value in node.outputs if value.name)


@contextlib.contextmanager
def without_weights(model: ir.Model) -> Iterator[None]:
    """While open, big initializers of the main graph are plain inputs behind the real ones."""
    graph = model.graph
    order = list(graph.initializers.values())
    inputs = list(graph.inputs)
    try:
        for value in _big(order, inputs):
            assert value.name is not None
            del graph.initializers[value.name]
            graph.inputs.append(value)
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        # all of them, so that their order stays
        graph.initializers.clear()
        for value in order:
            graph.initializers.add(value)


def _big(initializers: list[ir.Value], inputs: list[ir.Value]) -> list[ir.Value]:
    """Initializers too big to be shown to onnx that are no inputs already."""
    overridable = {id(value) for value in inputs}
    big = []
    for value in initializers:
        if value.const_value is None or id(value) in overridable:
            continue
        if value.const_value.nbytes > SMALL:
            big.append(value)
    return big
