"""The form that every pass may rely on: constants are initializers, shapes are fresh."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .graph import all_graphs, all_nodes, graphs_of, refresh_shapes
from .limits import limit
from .ops import STANDARD_DOMAINS, is_standard

KERNEL_DOMAINS = frozenset({*STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft"})
"""Domains whose functions stay: ONNX Runtime's own kernels are faster than the bodies."""


def normalize(model: ir.Model) -> list[str]:
    """Bring a model, in place, into the form that passes rely on; what changed, in words.

    Constants become initializers in every graph, functions are inlined, shapes are inferred anew.
    A Constant that is itself a graph output stays. Before IR 4 every initializer had to be listed
    as a graph input and no runtime lets callers override it: those inputs go, and the model becomes
    IR 4. Names, order, types and shapes of all other inputs and of the outputs stay. Running it
    twice changes nothing more.
    """
    _name_default_domain(model)
    counts = {
        "inputs that are initializers no longer listed as inputs": _unlist_initializers(
            model
        ),
        "calls of functions inlined": _inline_functions(model),
        "Constant nodes made initializers": lift_constants(model),
    }
    refresh_shapes(model)
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _name_default_domain(model: ir.Model) -> None:
    """`ai.onnx` is another spelling of the empty domain; keep one."""
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == "ai.onnx":
                node.domain = ""
    version = model.opset_imports.pop("ai.onnx", None)
    if version is not None:
        model.opset_imports.setdefault("", version)


def _unlist_initializers(model: ir.Model) -> int:
    if model.ir_version is None or model.ir_version >= 4:
        return 0
    listed = len(model.graph.inputs)
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = 4
    return listed - len(kept)


def _inline_functions(model: ir.Model) -> int:
    chosen = _inlinable(model)
    if not chosen:
        return 0
    calls = sum(node.op_identifier() in chosen for node in all_nodes(model))
    for identifier in chosen:
        _make_inlinable(model.functions[identifier])
    common.InlinePass(criteria=lambda function: function.identifier() in chosen)(model)
    # the pass leaves those that nothing called
    for identifier in chosen & model.functions.keys():
        del model.functions[identifier]
    return calls


def _inlinable(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions that can be inlined with the same meaning and within the limit.

    None when calls are cyclic.
    """
    calls = {}
    for identifier, function in model.functions.items():
        calls[identifier] = _calls(function, model)
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError:
        return set()
    # callees first, so that each size is that with all calls inside inlined
    expanded: dict[ir.OperatorIdentifier, int] = {}
    for identifier in order:
        function = model.functions[identifier]
        own = sum(1 for _ in function.all_nodes())
        called = sum(expanded[callee] for callee in calls[identifier])
        expanded[identifier] = own + called
    total = 0
    for node in model.graph.all_nodes():
        total += expanded.get(node.op_identifier(), 0)
    # nested calls multiply, so that a small file may hold billions
    if total > limit("INLINE_NODES"):
        return set()
    refused = {
        node.op_identifier() for node in all_nodes(model) if _passes_a_graph(node)
    }
    chosen = set()
    for identifier, function in model.functions.items():
        if identifier not in refused and _means_the_same_inline(function, model):
            chosen.add(identifier)
    return chosen


def _calls(function: ir.Function, model: ir.Model) -> list[ir.OperatorIdentifier]:
    """The functions of the model that a function calls, once for each call."""
    called = []
    for node in function.all_nodes():
        identifier = node.op_identifier()
        if identifier in model.functions:
            called.append(identifier)
    return called


def _passes_a_graph(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attributes.values())


def _means_the_same_inline(function: ir.Function, model: ir.Model) -> bool:
    if function.domain in KERNEL_DOMAINS:
        return False
    for domain, version in function.opset_imports.items():
        if model.opset_imports.get(domain, version) != version:
            return False
    return True


def _make_inlinable(function: ir.Function) -> None:
    """Avoid two traps of inlining.

    An output that is an input or a second mention is given an Identity, since inlining would rename
    the caller's value. Inner names get the function's as a prefix, so that they cannot meet names
    of subgraphs.
    """
    seen = {id(value) for value in function.inputs}
    for index, output in enumerate(function.outputs):
        if id(output) in seen:
            identity = ir.node("Identity", [output])
            copy = identity.outputs[0]
            copy.name = f"{output.name}_{index}"
            function.append(identity)
            function.outputs[index] = copy
            output = copy
        seen.add(id(output))
    for node in function.all_nodes():
        for value in node.outputs:
            if value.name:
                value.name = f"{function.name}/{value.name}"


def lift_constants(model: ir.Model) -> int:
    """Turn Constant nodes of every size into initializers of their graph; their number.

    Those that are graph outputs stay.
    """
    lifted = 0
    for graph in graphs_of(model):
        for node in graph:
            if not is_standard(node, "Constant"):
                continue
            tensor = constant_tensor(node)
            if tensor is not None and not node.outputs[0].is_graph_output():
                _lift(node, tensor, graph)
                lifted += 1
    return lifted


def _lift(node: ir.Node, tensor: ir.TensorProtocol, graph: ir.Graph) -> None:
    old = node.outputs[0]
    value = ir.Value(
        name=old.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    value.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(value)
    # first the node, whose output has the name that the initializer takes
    graph.remove(node, safe=True)
    tensor.name = value.name
    graph.register_initializer(value)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for a sparse value or a function's attribute."""
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int" | "value_ints":
            integers = np.array(attribute.value, np.int64)
            return ir.Tensor(integers)
        case "value_float" | "value_floats":
            floats = np.array(attribute.value, np.float32)
            return ir.Tensor(floats)
        case "value_string":
            text = attribute.as_string().encode()
            return ir.StringTensor([text], shape=ir.Shape([]))
        case "value_strings":
            texts = [each.encode() for each in attribute.as_strings()]
            shape = ir.Shape([len(texts)])
            return ir.StringTensor(texts, shape=shape)
    return None
