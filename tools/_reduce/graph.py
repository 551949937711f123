"""Reductions of graphs: outputs, nodes, bodies, functions."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .subject import (
    Parts,
    Smaller,
    Subject,
    bodies_of,
    graphs_of,
    names_made,
    names_read,
    prune_unused,
    tensor_type,
)

_ZEROS = 4096
"""Elements of a constant that may stand for a value of a body, at most. Chosen by hand."""

_LARGE = 1024
"""Elements of an initializer from which it is large. Chosen by hand."""


# outputs


def count_outputs(subject: Subject) -> int:
    """All outputs, of which one stays."""
    return len(subject.model.graph.output)


def without_outputs(subject: Subject, parts: Parts) -> Smaller:
    """Drop outputs, and what only they needed."""
    model = subject.copy()
    if len(parts) == len(model.graph.output):
        return None
    for index in sorted(parts, reverse=True):
        del model.graph.output[index]
    prune_unused(model)
    return model


# inputs


def count_inputs(subject: Subject) -> int:
    """All inputs."""
    return len(subject.model.graph.input)


def without_inputs(subject: Subject, parts: Parts) -> Smaller:
    """Drop inputs that nobody reads, with their defaults."""
    model = subject.copy()
    graph = model.graph
    read = names_read(graph.node) | {value.name for value in graph.output}
    names = {graph.input[at].name for at in parts}
    if names & read:
        return None
    for index in sorted(parts, reverse=True):
        del graph.input[index]
    prune_unused(model)
    return model


# nodes


def count_nodes(subject: Subject) -> int:
    """Nodes of the main graph."""
    return len(subject.model.graph.node)


def without_nodes(subject: Subject, parts: Parts) -> Smaller:
    """Cut nodes out: the values that they made become inputs, those that they read outputs."""
    model = subject.copy()
    graph = model.graph
    gone = [node for at, node in enumerate(graph.node) if at in parts]
    kept = [node for at, node in enumerate(graph.node) if at not in parts]
    if not kept:
        return None
    made = names_made(gone)
    still_read = names_read(kept)
    for name in sorted(made & still_read):
        if name not in subject.types:
            return None
        graph.input.append(_value(name, subject.types[name]))
    outputs = [value for value in graph.output if value.name not in made]
    present = {value.name for value in outputs}
    ends = names_made(kept) - still_read
    for name in sorted((names_read(gone) & ends) - present):
        if name not in subject.types:
            return None
        outputs.append(_value(name, subject.types[name]))
    if not outputs:
        return None
    outputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in outputs]
    del graph.output[:]
    graph.output.extend(outputs)
    for index in sorted(parts, reverse=True):
        del graph.node[index]
    prune_unused(model)
    return model


def bypass_nodes(subject: Subject, parts: Parts) -> Smaller:
    """Let users of a node's output read its input of the same type instead."""
    if len(parts) > 1:
        return None
    model = subject.copy()
    graph = model.graph
    (index,) = parts
    node = graph.node[index]
    produced = {value.name for value in graph.output}
    kind = subject.types.get(node.output[0]) if node.output else None
    if kind is None or produced.intersection(node.output):
        return None
    for name in node.input:
        if name and _alike(subject.types.get(name), kind):
            _rename_reads(graph, node.output[0], name)
            prune_unused(model)
            return model
    return None


def _alike(first: onnx.TypeProto | None, second: onnx.TypeProto) -> bool:
    if first is None:
        return False
    same: bool = first == second
    return same and first.HasField("tensor_type")


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    for each in graphs_of(graph):
        for node in each.node:
            for at, name in enumerate(node.input):
                if name == old:
                    node.input[at] = new


def _value(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    value.type.CopyFrom(kind)
    # a symbol that inference made up stands for nothing outside
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param.startswith("unk__"):
            dim.Clear()
    # the checker wants a shape of each input and output
    if value.type.HasField("tensor_type"):
        value.type.tensor_type.shape.SetInParent()
    return value


# bodies


def count_branches(subject: Subject) -> int:
    """Bodies of If nodes of the main graph."""
    return len(_branches(subject.model.graph))


def _branches(graph: onnx.GraphProto) -> list[tuple[int, int]]:
    """Numbers of a node and of one of its two bodies."""
    nodes = [at for at, node in enumerate(graph.node) if node.op_type == "If"]
    return list(itertools.product(nodes, range(2)))


def inline_branch(subject: Subject, parts: Parts) -> Smaller:
    """Put the nodes of one branch of an If in its place."""
    if len(parts) > 1:
        return None
    model = subject.copy()
    graph = model.graph
    (part,) = parts
    at, branch = _branches(graph)[part]
    node = graph.node[at]
    body = bodies_of(node)[branch]
    inner = list(body.node)
    for outer, result in zip(node.output, body.output, strict=True):
        # kept apart from the body's own names, of which the sibling may have the same
        inner.append(helper.make_node("Identity", [result.name], [outer]))
    nodes = [*graph.node[:at], *inner, *graph.node[at + 1 :]]
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    graph.initializer.extend(body.initializer)
    del graph.node[:]
    graph.node.extend(nodes)
    prune_unused(model)
    return model


def count_body_nodes(subject: Subject) -> int:
    """Nodes of all bodies."""
    bodies = list(graphs_of(subject.model.graph))[1:]
    return sum(len(body.node) for body in bodies)


def without_body_nodes(subject: Subject, parts: Parts) -> Smaller:
    """Put constants in the place of nodes of bodies."""
    model = subject.copy()
    first = 0
    for body in list(graphs_of(model.graph))[1:]:
        count = len(body.node)
        chosen = [at - first for at in parts if first <= at < first + count]
        first += count
        for at in sorted(chosen, reverse=True):
            if not _make_constant(body, at, subject):
                return None
    prune_unused(model)
    return model


def _make_constant(body: onnx.GraphProto, at: int, subject: Subject) -> bool:
    """Replace one node by constants of the shapes that it gives; False where one is not known."""
    node = body.node[at]
    results = {value.name for value in body.output}
    read = names_read(each for each in body.node if each is not node) | results
    outputs = [name for name in node.output if name in read]
    if node.op_type == "Constant":
        return not outputs and _delete(body, at)
    tensors = []
    for name in outputs:
        tensor = _ones(name, subject.types.get(name))
        # the runtime takes no initializer for an output of a body
        if tensor is None or name in results:
            return False
        tensors.append(tensor)
    body.initializer.extend(tensors)
    return _delete(body, at)


def _delete(body: onnx.GraphProto, at: int) -> bool:
    del body.node[at]
    return True


def _ones(name: str, kind: onnx.TypeProto | None) -> onnx.TensorProto | None:
    if kind is None or not kind.HasField("tensor_type"):
        return None
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    shape = [dim.dim_value for dim in dims]
    if np.prod(shape, dtype=float) > _ZEROS:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return numpy_helper.from_array(np.ones(shape, dtype), name)


# functions


def count_functions(subject: Subject) -> int:
    """1 where there are local functions."""
    return min(len(subject.model.functions), 1)


def inline_functions(subject: Subject, parts: Parts) -> Smaller:
    """Put the bodies of local functions in the place of their calls."""
    from onnx import inliner

    with contextlib.suppress(RuntimeError, ValueError):
        model: onnx.ModelProto = inliner.inline_local_functions(subject.copy())
        prune_unused(model)
        return model
    return None


# initializers


def count_initializers(subject: Subject) -> int:
    """Initializers of the main graph."""
    return len(subject.model.graph.initializer)


def initializers_as_inputs(subject: Subject, parts: Parts) -> Smaller:
    """Make inputs of initializers, which have no numbers to read."""
    model = subject.copy()
    graph = model.graph
    listed = {value.name for value in graph.input}
    for index in sorted(parts):
        tensor = graph.initializer[index]
        if tensor.name not in listed:
            graph.input.append(_value(tensor.name, tensor_type(tensor)))
    for index in sorted(parts, reverse=True):
        del graph.initializer[index]
    return model


def count_large(subject: Subject) -> int:
    """1 where there are large initializers."""
    return min(len(_large(subject)), 1)


def large_as_inputs(subject: Subject, parts: Parts) -> Smaller:
    """Make inputs of all large initializers at once: what is left is quick to copy and check."""
    return initializers_as_inputs(subject, frozenset(_large(subject)))


def _large(subject: Subject) -> list[int]:
    tensors = enumerate(subject.model.graph.initializer)
    return [at for at, tensor in tensors if np.prod(tensor.dims, dtype=float) > _LARGE]
