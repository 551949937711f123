"""Walks over a model's graphs, and facts about them: names, shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from .infer import infer_types, is_invented
from .layer_names import layer_name
from .ops import is_standard
from .stand_ins import is_inferred


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph under it, outer ones first.

    onnx_ir's own walk costs ten times as much.
    """
    yield model.graph
    yield from _subgraphs(model.graph)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, every subgraph, every function and their subgraphs."""
    yield from graphs_of(model)
    for function in model.functions.values():
        yield function
        yield from _subgraphs(function)


def _subgraphs(graph: ir.Graph | ir.Function) -> Iterator[ir.Graph]:
    """Every graph that a node of `graph` holds, each followed by those within it; no recursion."""
    waiting = _held_by(graph)
    while waiting:
        inner = waiting.pop()
        yield inner
        waiting.extend(_held_by(inner))


def _held_by(graph: ir.Graph | ir.Function) -> list[ir.Graph]:
    """Graphs that the nodes of `graph` hold, the last first: the order of a stack."""
    held: list[ir.Graph] = []
    for node in graph:
        # most have none, and there are many
        if node.attributes:
            held.extend(subgraphs(node))
    held.reverse()
    return held


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs that a node holds as attributes (If, Loop, Scan, SequenceMap)."""
    for attribute in node.attributes.values():
        # in a function it stands for the caller's attribute
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def holds_graphs(node: ir.Node) -> bool:
    """True if a node has subgraphs."""
    return next(subgraphs(node), None) is not None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of a node; None where it is left out."""
    if index >= len(node.inputs):
        return None
    return node.inputs[index]


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node that makes a value, if it is of one of `op_types` where any are given."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, *op_types):
        return None
    return node


def is_read_by(node: ir.Node, *op_types: str) -> bool:
    """True if a standard node of the first type reads a node's first output, and so on.

    Of several readers the first is followed.
    """
    for op_type in op_types:
        reader = next((use.node for use in node.outputs[0].uses()), None)
        if reader is None or not is_standard(reader, op_type):
            return False
        node = reader
    return True


def label(node: ir.Node) -> str:
    """Name of a node in reports: its op, and the name by which a user knows it."""
    return f"{node.op_type} {layer_name(node)}"


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node once, subgraphs and functions included."""
    for graph in all_graphs(model):
        yield from graph


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer that has data, of the main graph and of every subgraph."""
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value


class Names:
    """Fresh value and node names for one model; build it once per pass (it walks every name)."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()
        self.take(model)

    def take(self, model: ir.Model) -> None:
        """Give no name that this model has either.

        In reports, names of nodes that are gone by now stay theirs.
        """
        for graph in all_graphs(model):
            self._take_values(graph.inputs)
            if isinstance(graph, ir.Graph):
                self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name or "")
                self._take_values(node.outputs)

    def _take_values(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self._taken.add(value.name or "")

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_1`, `stem_2` … whichever is free first."""
        name = stem
        number = 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def numbered(self, prefix: str) -> str:
        """`prefix` and a number, the next that is free: short names, for what there are many of."""
        while True:
            self._numbers[prefix] += 1
            name = f"{prefix}{self._numbers[prefix]}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def become(model: ir.Model, other: ir.Model) -> None:
    """Make `model` what `other` is, in place; `other` must not be used afterwards."""
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)


def refresh_shapes(model: ir.Model) -> bool:
    """Forget every inferred shape and infer anew (stale `value_info` survives inference otherwise).

    Declared shapes and types of graph inputs and outputs stay, except those of what a Loop carries
    (it may change shape from turn to turn); so do those of operators that nothing is known of.
    An output without a type gets the inferred one. Where inference finds nothing the former type is
    kept. Returns whether inference succeeded.
    """
    outputs: set[int] = set()
    for graph in all_graphs(model):
        outputs.update(id(value) for value in graph.outputs)
    ports = [*model.graph.inputs, *model.graph.outputs]
    declared = [(value, value.type, _copied(value.shape)) for value in ports]
    former: list[tuple[ir.Value, ir.TypeProtocol | None]] = []
    for node in all_nodes(model):
        if not is_standard(node) and not is_inferred(node):
            continue
        if is_standard(node, "Loop"):
            body = node.attributes["body"].as_graph()
            # behind the trip count and the condition come the carried values
            for value in body.inputs[2:]:
                value.shape = None
        for value in node.outputs:
            if id(value) not in outputs:
                former.append((value, value.type))
                value.shape = None
                value.type = None
    for initializer in initializers(model):
        tensor = initializer.const_value
        assert tensor is not None
        initializer.shape = ir.Shape(tensor.shape.numpy())
        initializer.type = ir.TensorType(tensor.dtype)
    done = _infer(model)
    for value, type_, shape in declared:
        if type_ is None:
            _forget_invented(value)
        else:
            value.type = type_
            value.shape = shape
    for value, type_ in former:
        value.type = value.type or type_
    return done


def _forget_invented(value: ir.Value) -> None:
    """Make dims unknown that inference has only given a name."""
    if value.shape is None:
        return
    dims = []
    for dim in value.shape:
        name = None if isinstance(dim, int) else dim.value
        dims.append(None if is_invented(name) else dim)
    value.shape = ir.Shape(dims)


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()


def _infer(model: ir.Model) -> bool:
    """Infer by onnx, leniently; False if it gives up."""
    if len(model.graph) == 0 or infer_types(model, data_prop=True):
        return True
    # some models fail only where elements of shape tensors are followed
    return infer_types(model, data_prop=False)
