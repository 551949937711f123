"""Declarations of a file: the types that it gives to values, kept apart from inferred ones.

Passes believe what inference proves. A file may say more (a dim that follows from no operator) or
less, and runtimes read it: a Loop of no turns gives outputs of the dims that its body declares.
"""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from .graph import graphs_of

KEY = "onnx_opt.declared"
"""Key of `Graph.meta`."""


def declarations_of(graph: ir.Graph) -> onnx.GraphProto | None:
    """A message of nothing but `input`, `output` and `value_info`; None for a graph made here.

    It is shared by clones and must not be changed.
    """
    found = graph.meta.get(KEY)
    assert found is None or isinstance(found, onnx.GraphProto)
    return found


def declare(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Keep the declarations of `proto`, of which `graph` was made."""
    # a copy: parts of a message keep all of it in memory, weights too
    graph.meta[KEY] = onnx.GraphProto(
        input=proto.input, output=proto.output, value_info=proto.value_info
    )


def declare_as_is(model: ir.Model) -> None:
    """Make what a model in memory says now its declarations: it may have changed since its file."""
    info_of = ir.serde.serialize_value
    for graph in graphs_of(model):
        shared = declared_outputs(graph)
        proto = onnx.GraphProto()
        for value in graph.inputs:
            proto.input.append(info_of(value))
        for index, value in enumerate(graph.outputs):
            info = shared.get(index) or info_of(value)
            proto.output.append(info)
        for node in graph:
            for value in node.outputs:
                if value.type is not None:
                    proto.value_info.append(info_of(value))
        graph.meta[KEY] = proto


def forget_inner_declarations(model: ir.Model) -> None:
    """Drop all but those of the model's own inputs and outputs: shapes inside have changed."""
    main = model.graph
    for graph in graphs_of(model):
        declared = declarations_of(graph)
        if declared is None:
            continue
        del graph.meta[KEY]
        if graph is main:
            main.meta[KEY] = onnx.GraphProto(
                input=declared.input, output=declared.output
            )


def keep_declarations(old: ir.Graph, new: ir.Graph) -> None:
    """Give a graph that was made of another one that one's declarations."""
    declared = declarations_of(old)
    if declared is not None:
        new.meta[KEY] = declared


def declared_outputs(graph: ir.Graph) -> dict[int, onnx.ValueInfoProto]:
    """Declarations of outputs that are not the value's own, by position.

    An output that is an input, or that stands there twice, is one value with several declarations.
    """
    declared = declarations_of(graph)
    if declared is None or len(declared.output) != len(graph.outputs):
        return {}
    mentions = Counter(id(value) for value in graph.outputs)
    found = {}
    for index, value in enumerate(graph.outputs):
        info = declared.output[index]
        is_shared = value.is_graph_input() or mentions[id(value)] > 1
        if is_shared and info.name == value.name and info.HasField("type"):
            found[index] = info
    return found
