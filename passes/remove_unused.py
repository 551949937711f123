"""Removal of what no output depends on: nodes, initializers, optional outputs, functions, opset
imports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import release
from ._core.graph import all_graphs, all_nodes, graphs_of, subgraphs


@dataclass(frozen=True)
class RemoveUnused(Pass):
    """Remove nodes, initializers, optional outputs, functions and opset imports that no graph
    output needs.

    Effect: exact. Inputs and outputs of the model stay, used or not, also initializers that are
    inputs.

    Shapes: unchanged.

    Stats: `nodes`, `initializers`, `outputs`, `functions` removed (counts).

    Source: follows from the definition: operators have no side effects.
    """

    name: ClassVar[str] = "remove-unused"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        removed = Removed()
        for graph in [model.graph, *(f.graph for f in model.functions.values())]:
            _remove_nodes(graph, model, removed)
        functions = _remove_functions(model)
        for subgraph in graphs_of(model):
            removed.initializers += _remove_initializers(subgraph)
        _remove_imports(model)
        stats = {
            "nodes": removed.nodes,
            "initializers": removed.initializers,
            "outputs": removed.outputs,
            "functions": functions,
        }
        return PassOutcome(sum(stats.values()), dict(stats))


@dataclass
class Removed:
    """Counts of one run."""

    nodes: int = 0
    initializers: int = 0
    outputs: int = 0


def _remove_nodes(graph: ir.Graph, model: ir.Model, removed: Removed) -> None:
    """Last node first, so that one walk suffices; subgraphs before the nodes that they capture
    from.
    """
    for node in reversed(graph):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            for inner in subgraphs(node):
                release(inner)
            graph.remove(node, safe=True)
            removed.nodes += 1
            continue
        for inner in subgraphs(node):
            _remove_nodes(inner, model, removed)
        removed.outputs += _drop_outputs(node, model)


def _drop_outputs(node: ir.Node, model: ir.Model) -> int:
    """Unname unused optional outputs, and cut them off at the end of the list."""
    unused = [
        i
        for i, o in enumerate(node.outputs)
        if o.name and not o.uses() and not o.is_graph_output()
    ]
    training = node.attributes.get_int(
        "training_mode", 0
    )  # BatchNormalization must then have all its outputs
    if not unused or len(node.outputs) == 1 or node.domain != "" or training:
        return 0
    optional = _optional_outputs(node.op_type, model.opset_imports.get("", 1))
    dropped = [i for i in unused if i in optional]
    for index in dropped:
        node.outputs[index].name = ""
        node.outputs[index].shape = node.outputs[index].type = None
    size = len(node.outputs)
    while (
        size > 1
        and node.outputs[size - 1].name == ""
        and not node.outputs[size - 1].uses()
    ):
        size -= 1
    node.resize_outputs(size)
    return len(dropped)


def _optional_outputs(op_type: str, opset: int) -> set[int]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return set()
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return {i for i, output in enumerate(schema.outputs) if output.option == optional}


def _remove_initializers(graph: ir.Graph) -> int:
    unused = [
        name
        for name, v in graph.initializers.items()
        if not v.uses() and not v.is_graph_input() and not v.is_graph_output()
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)


def _remove_functions(model: ir.Model) -> int:
    reached: set[ir.OperatorIdentifier] = set()
    todo = [node.op_identifier() for node in model.graph.all_nodes()]
    while todo:
        identifier = todo.pop()
        if identifier in model.functions and identifier not in reached:
            reached.add(identifier)
            todo.extend(
                node.op_identifier() for node in model.functions[identifier].all_nodes()
            )
    unused = [identifier for identifier in model.functions if identifier not in reached]
    for identifier in unused:
        del model.functions[identifier]
    return len(unused)


def _remove_imports(model: ir.Model) -> None:
    used = {
        "",
        *(node.domain for node in all_nodes(model)),
        *(domain for domain, _, _ in model.functions),
    }
    for graph in all_graphs(model):
        for domain in [d for d in graph.opset_imports if d not in used]:
            del graph.opset_imports[domain]
