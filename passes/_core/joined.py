"""Several models in one graph that reads their inputs once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

WHOLE = "whole/"
"""Prefix of the names of the whole model's values and nodes."""


def join_models(models: Mapping[str, ir.Model]) -> ir.Model:
    """Join models, given by prefix, in one graph that reads their inputs once.

    The name of every other value begins with the prefix of its model.
    """
    first, *others = (_renamed(model, prefix) for prefix, model in models.items())
    for other in others:
        _move(other.graph, first.graph)
    return first


def data_inputs(model: ir.Model) -> list[str]:
    """Names of a model's inputs that are data, not initializers with a default."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return [value.name or "" for value in inputs]


def submodel(
    model: ir.Model, inputs: Sequence[str], outputs: Iterable[str]
) -> ir.Model:
    """The nodes that make some tensors from others, as a model of its own; weights are shared."""
    made = [name for name in dict.fromkeys(outputs) if name not in inputs]
    graph = ir.convenience.extract(model.graph, inputs, made)
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        functions=list(model.functions.values()),
    )


def _renamed(model: ir.Model, prefix: str) -> ir.Model:
    """A copy whose nodes, values and initializers carry a prefix.

    Inputs keep their names, outputs are dropped. Shapes of what nodes make are forgotten: one
    symbol may have another size in another model.
    """
    copy = model.clone()
    graph = copy.graph
    graph.outputs.clear()
    for value in list(graph.initializers.values()):
        if value.is_graph_input():
            continue
        # the table of initializers is by name: take out, rename, put back
        del graph.initializers[value.name or ""]
        value.name = f"{prefix}{value.name}"
        graph.initializers[value.name] = value
    for node in graph:
        if node.name:
            node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            value.shape = None
            if value.name:
                value.name = f"{prefix}{value.name}"
    return copy


def _move(source: ir.Graph, target: ir.Graph) -> None:
    """Move all nodes and initializers of a graph into another, whose inputs they then read."""
    inputs = {value.name: value for value in target.inputs}
    for value in source.inputs:
        same = inputs[value.name]
        value.replace_all_uses_with(same)
    nodes = list(source)
    values = source.initializers.values()
    constants = [value for value in values if not value.is_graph_input()]
    for value in constants:
        del source.initializers[value.name or ""]
    # nodes and values belong to one graph at a time
    source.remove(nodes)
    for value in constants:
        target.initializers[value.name or ""] = value
    target.extend(nodes)
