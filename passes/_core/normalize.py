"""The form that every pass may rely on: constants are initializers, functions are inlined, shapes
are fresh.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .graph import all_graphs, graphs_of, refresh_shapes

INLINE_LIMIT = 200_000
"""Nodes that inlining may make in all; functions that would make more stay functions."""

KERNEL_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Functions of these domains stay: ONNX Runtime has kernels of its own for their ops, faster than
the body.
"""


def normalize(model: ir.Model) -> None:
    """Lift Constants to initializers in every graph, inline functions, forget stale shapes and
    infer anew.

    A Constant that is itself a graph output stays. Before IR 4 every initializer had to be listed
    as a graph input and no runtime lets callers override it: those inputs go, and the model becomes
    IR 4. Names, order, types and shapes of all other inputs and of the outputs stay. Running it
    twice changes nothing more.
    """
    _name_default_domain(model)
    _unlist_initializers(model)
    _inline_functions(model)
    lift_constants(model)
    refresh_shapes(model)


def _name_default_domain(model: ir.Model) -> None:
    """`ai.onnx` is another spelling of the empty domain; keep one."""
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == "ai.onnx":
                node.domain = ""
    version = model.opset_imports.pop("ai.onnx", None)
    if version is not None:
        model.opset_imports.setdefault("", version)


def _unlist_initializers(model: ir.Model) -> None:
    if model.ir_version is None or model.ir_version >= 4:
        return
    kept = [v for v in model.graph.inputs if not v.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = 4


def _inline_functions(model: ir.Model) -> None:
    chosen = _inlinable(model)
    if not chosen:
        return
    for identifier in chosen:
        _make_inlinable(model.functions[identifier])
    common.InlinePass(criteria=lambda function: function.identifier() in chosen)(model)
    for identifier in chosen & model.functions.keys():
        del model.functions[identifier]  # never called


def _inlinable(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions that can be inlined with the same meaning and within the limit; none when calls are
    cyclic.
    """
    calls = {
        identifier: [
            node.op_identifier()
            for node in function.all_nodes()
            if node.op_identifier() in model.functions
        ]
        for identifier, function in model.functions.items()
    }
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError:
        return set()
    expanded: dict[ir.OperatorIdentifier, int] = {}
    for identifier in order:
        function = model.functions[identifier]
        expanded[identifier] = sum(1 for _ in function.all_nodes()) + sum(
            expanded[c] for c in calls[identifier]
        )
    total = sum(
        expanded.get(node.op_identifier(), 0) for node in model.graph.all_nodes()
    )
    if total > INLINE_LIMIT:
        return set()
    refused = {
        node.op_identifier()
        for graph in all_graphs(model)
        for node in graph
        if _passes_a_graph(node)
    }
    return {
        i
        for i, f in model.functions.items()
        if i not in refused and _means_the_same_inline(f, model)
    }


def _passes_a_graph(node: ir.Node) -> bool:
    return any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    )


def _means_the_same_inline(function: ir.Function, model: ir.Model) -> bool:
    if function.domain in KERNEL_DOMAINS:
        return False
    return all(
        model.opset_imports.get(d, version) == version
        for d, version in function.opset_imports.items()
    )


def _make_inlinable(function: ir.Function) -> None:
    """Put an Identity behind every output that is an input or a second mention (inlining would
    rename the caller's value), and prefix inner names with the function's, so that they cannot meet
    names of subgraphs.
    """
    seen = {id(v) for v in function.inputs}
    for index, output in enumerate(function.outputs):
        if id(output) in seen:
            copy = ir.node("Identity", [output])
            copy.outputs[0].name = f"{output.name}_{index}"
            function.append(copy)
            function.outputs[index] = copy.outputs[0]
        seen.add(id(function.outputs[index]))
    for node in function.all_nodes():
        for value in node.outputs:
            if value.name:
                value.name = f"{function.name}/{value.name}"


def lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initializers of their graph, of every size; those that are graph
    outputs stay.
    """
    for graph in graphs_of(model):
        for node in graph:
            if (
                node.op_type != "Constant"
                or node.domain != ""
                or node.outputs[0].is_graph_output()
            ):
                continue
            tensor = constant_tensor(node)
            if tensor is None:
                continue
            old = node.outputs[0]
            value = ir.Value(
                name=old.name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            value.metadata_props.update(old.metadata_props)
            old.replace_all_uses_with(value)
            graph.remove(node, safe=True)
            tensor.name = value.name
            graph.register_initializer(value)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for a sparse value or one that refers to a function's
    attribute.
    """
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int" | "value_ints":
            return ir.Tensor(np.array(attribute.value, np.int64))
        case "value_float" | "value_floats":
            return ir.Tensor(np.array(attribute.value, np.float32))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            texts = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(texts, shape=ir.Shape([len(texts)]))
    return None
