"""A model under reduction, and facts of it that reductions need."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import onnx
import onnx.checker
import onnx.printer
import onnx.shape_inference

Parts = frozenset[int]
"""Numbers of the parts that a reduction is to take away."""

Smaller = onnx.ModelProto | None
"""A smaller model; None where the parts cannot be taken away."""

_INPUT = 4
"""Numbers of a constant that are as much to read as an input. Chosen by hand."""

_SHORT = 20_000
"""Numbers of a model whose text is made to know its length, at most. Chosen by hand."""

_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
)


class Subject:
    """A model and, once they are asked for, the types of its values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    @cached_property
    def types(self) -> dict[str, onnx.TypeProto]:
        """Types of the values of all graphs by name, as far as they are known."""
        found: dict[str, onnx.TypeProto] = {}
        inferred = self.model
        with contextlib.suppress(*_ERRORS):
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        for graph in graphs_of(inferred.graph):
            for values in (graph.input, graph.output, graph.value_info):
                for value in values:
                    found.setdefault(value.name, value.type)
            for tensor in graph.initializer:
                found[tensor.name] = tensor_type(tensor)
        return found

    @cached_property
    def is_sound(self) -> bool:
        """True if onnx's checker and strict shape inference accept it."""
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except _ERRORS:
            return False
        return True

    def is_as_sound_as(self, other: Subject) -> bool:
        return self.is_sound or not other.is_sound

    def copy(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return model


def size_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """Measure of a model, smaller is simpler: nodes first, then what a reader sees of it."""
    graphs = list(graphs_of(model.graph))
    nodes = sum(len(graph.node) for graph in graphs)
    nodes += sum(len(function.node) for function in model.functions)
    numbers = 0
    for graph in graphs:
        numbers += sum(math.prod(tensor.dims) for tensor in graph.initializer)
    burden = numbers + _INPUT * len(model.graph.input)
    # the length of the text is what a reader sees; that of large models takes long to know
    length = model.ByteSize()
    if numbers < _SHORT:
        length = len(onnx.printer.to_text(model))
    return nodes, len(model.graph.output), burden, length


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of its nodes, outer ones first."""
    waiting = [graph]
    while waiting:
        found = waiting.pop(0)
        yield found
        for node in found.node:
            waiting += bodies_of(node)


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Graphs among the attributes of a node."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found += attribute.graphs
    return found


def names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes or the bodies in them read."""
    names: set[str] = set()
    for node in nodes:
        names.update(name for name in node.input if name)
        for body in bodies_of(node):
            for graph in graphs_of(body):
                names.update(value.name for value in graph.output)
                for inner in graph.node:
                    names.update(name for name in inner.input if name)
    return names


def names_made(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of the outputs of nodes."""
    names: set[str] = set()
    for node in nodes:
        names.update(name for name in node.output if name)
    return names


def tensor_type(tensor: onnx.TensorProto) -> onnx.TypeProto:
    """Type of the value that holds a tensor."""
    found: onnx.TypeProto = onnx.helper.make_tensor_type_proto(
        tensor.data_type, list(tensor.dims)
    )
    return found


def prune_unused(model: onnx.ModelProto) -> None:
    """Drop nodes, initializers, functions and types that nobody needs, in place.

    Inputs stay: a fault may be in what becomes of those that nobody reads.
    """
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    # users come before what they use
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= names_read([node])
    kept.reverse()
    _keep(graph.node, kept)
    needed.update(value.name for value in graph.input)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    _keep(graph.initializer, tensors)
    made = names_made(graph.node)
    inner = made & needed
    types = [value for value in graph.value_info if value.name in inner]
    _keep(graph.value_info, types)
    _drop_functions(model)


def _drop_functions(model: onnx.ModelProto) -> None:
    """Drop functions that nothing calls, and imports of domains without a node."""
    known = {(f.domain, f.name): f for f in model.functions}
    called: set[tuple[str, str]] = set()
    domains = {""}
    waiting = [list(graph.node) for graph in graphs_of(model.graph)]
    while waiting:
        nodes = waiting.pop()
        for node in nodes:
            domains.add(node.domain)
            key = (node.domain, node.op_type)
            if key in called or key not in known:
                continue
            called.add(key)
            function = known[key]
            waiting.append(list(function.node))
    functions = [function for key, function in known.items() if key in called]
    _keep(model.functions, functions)
    # another spelling of the empty domain
    domains.add("ai.onnx")
    imports = [opset for opset in model.opset_import if opset.domain in domains]
    _keep(model.opset_import, imports)


def _keep(field: Any, kept: Iterable[Any]) -> None:
    """Let a repeated field hold some of its messages."""
    # copied, since deleting the field deletes its messages
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del field[:]
    field.extend(copies)
