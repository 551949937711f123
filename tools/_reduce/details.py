"""Reductions inside of nodes and tensors: operands, attributes, lengths, numbers, words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .subject import Parts, Smaller, Subject, graphs_of, prune_unused

_NUMBERS = 1 << 20
"""Elements of a tensor whose numbers are made simpler, at most. Chosen by hand."""


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    for graph in graphs_of(model.graph):
        nodes += graph.node
    return nodes


# attributes and optional operands


def count_attributes(subject: Subject) -> int:
    """Attributes without a body."""
    return len(_attributes(subject.model))


def _attributes(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """Numbers of nodes, and of their attributes."""
    places: list[tuple[int, int]] = []
    for at, node in enumerate(_nodes(model)):
        places += ((at, index) for index in range(len(node.attribute)))
    return places


def without_attributes(subject: Subject, parts: Parts) -> Smaller:
    """Drop attributes: their defaults remain."""
    model = subject.copy()
    nodes = _nodes(model)
    places = _attributes(model)
    for part in sorted(parts, reverse=True):
        at, index = places[part]
        if nodes[at].attribute[index].HasField("g"):
            return None
        del nodes[at].attribute[index]
    return model


def count_operands(subject: Subject) -> int:
    """Inputs of nodes."""
    return sum(len(node.input) for node in _nodes(subject.model))


def without_operands(subject: Subject, parts: Parts) -> Smaller:
    """Leave operands out, which optional ones may be."""
    model = subject.copy()
    first = 0
    for node in _nodes(model):
        count = len(node.input)
        for at in range(count):
            if first + at in parts:
                node.input[at] = ""
        first += count
        while node.input and not node.input[-1]:
            node.input.pop()
    prune_unused(model)
    return model


# lengths


def _lengths(subject: Subject) -> list[int]:
    """Lengths above 1 of inputs and initializers, long ones first."""
    graph = subject.model.graph
    found: set[int] = set()
    for value in graph.input:
        found.update(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        found.update(tensor.dims)
    return sorted((length for length in found if length > 1), reverse=True)


def count_lengths(subject: Subject) -> int:
    """Different lengths of axes, three ways to make each shorter."""
    return 3 * len(_lengths(subject))


def shorter_axes(subject: Subject, parts: Parts) -> Smaller:
    """Make all axes of one length shorter: 1, 2 or half; shapes held in tensors follow."""
    if len(parts) > 1:
        return None
    (part,) = parts
    old = _lengths(subject)[part // 3]
    new = (1, 2, old // 2)[part % 3]
    if new >= old:
        return None
    model = subject.copy()
    graph = model.graph
    for values in (graph.input, graph.output):
        for value in values:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value == old:
                    dim.dim_value = new
    for each in graphs_of(graph):
        del each.value_info[:]
        for tensor in each.initializer:
            _shorten(tensor, old, new)
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _shorten(attribute.t, old, new)
    # dims of inner and outer values follow from those of the inputs
    _forget_output_dims(graph)
    return model


def _shorten(tensor: onnx.TensorProto, old: int, new: int) -> None:
    is_integer = tensor.data_type == onnx.TensorProto.INT64
    is_shape = is_integer and len(tensor.dims) <= 1
    if old not in tensor.dims and not is_shape:
        return
    array = numpy_helper.to_array(tensor)
    if is_shape and old in array:
        array = np.where(array == old, new, array)
    elif old in array.shape:
        ends = [new if dim == old else dim for dim in array.shape]
        kept = tuple(slice(end) for end in ends)
        array = array[kept]
    contiguous = np.ascontiguousarray(array)
    shorter = numpy_helper.from_array(contiguous, tensor.name)
    tensor.CopyFrom(shorter)


def _forget_output_dims(graph: onnx.GraphProto) -> None:
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


# numbers


def count_numbers(subject: Subject) -> int:
    """Two simpler forms of each initializer."""
    return 2 * len(subject.model.graph.initializer)


def simpler_numbers(subject: Subject, parts: Parts) -> Smaller:
    """Make the numbers of initializers all 1, or whole and small."""
    model = subject.copy()
    for part in parts:
        tensor = model.graph.initializer[part // 2]
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
        if tensor.data_type not in floats or np.prod(tensor.dims) > _NUMBERS:
            return None
        array = numpy_helper.to_array(tensor)
        simple = np.ones_like(array) if part % 2 == 0 else np.rint(array)
        # the same again would be no step
        if np.array_equal(array, simple):
            return None
        # few digits are short in text, and in typed fields also in the file
        typed = helper.make_tensor(
            tensor.name, tensor.data_type, tensor.dims, simple.ravel().tolist()
        )
        tensor.CopyFrom(typed)
    return model


# words


def count_words(subject: Subject) -> int:
    """Three kinds of words: notes, inner types, names."""
    return 3


def without_words(subject: Subject, parts: Parts) -> Smaller:
    """Drop notes, drop types of inner values, and make names short."""
    model = subject.copy()
    if 0 in parts:
        _drop_notes(model)
    if 1 in parts:
        for graph in graphs_of(model.graph):
            del graph.value_info[:]
    if 2 in parts:
        return _renamed(model)
    return model


def _drop_notes(model: onnx.ModelProto) -> None:
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        model.ClearField(field)
    model.ClearField("model_version")
    del model.metadata_props[:]
    del model.training_info[:]
    for graph in graphs_of(model.graph):
        graph.ClearField("doc_string")
        del graph.metadata_props[:]
        del graph.quantization_annotation[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            part.ClearField("doc_string")
            del part.metadata_props[:]
        for node in graph.node:
            node.ClearField("name")


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Give every value of a model without bodies a name of a letter and a number."""
    graph = model.graph
    graphs = list(graphs_of(graph))
    if len(graphs) > 1:
        return None
    names: dict[str, str] = {"": ""}

    def name_values(letter: str, old_names: Iterable[str]) -> None:
        for old in old_names:
            number = len(names)
            names.setdefault(old, f"{letter}{number}")

    name_values("x", [value.name for value in graph.input])
    name_values("w", [value.name for value in graph.initializer])
    name_values("y", [value.name for value in graph.output])
    for node in graph.node:
        name_values("h", node.output)
    for values in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    graph.name = "reduced"
    return model
