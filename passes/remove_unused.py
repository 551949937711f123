"""Removal of parts that no output depends on: nodes, initializers, functions, opset imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import release
from ._core.graph import all_graphs, all_nodes, graphs_of, subgraphs
from ._core.ops import is_standard, normalizes_by_batch
from ._core.rewrites import permit


@dataclass(frozen=True)
class RemoveUnused(Pass):
    """Remove nodes, initializers, optional outputs, functions and imports that no output needs.

    Effect: exact. Inputs and outputs of the model stay, used or not, and so do initializers that
    are also inputs.

    Shapes: unchanged.

    Stats: `nodes`, `initializers`, `outputs`, `functions` removed (counts).

    Source: follows from the definition: operators have no side effects.
    """

    name: ClassVar[str] = "remove-unused"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "parts"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        removed = Removed()
        bodies = [function.graph for function in model.functions.values()]
        for graph in [model.graph, *bodies]:
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
    """Remove nodes that nothing needs from a graph and those it holds.

    Last node first, so that one walk suffices: a subgraph comes before the nodes whose values it
    captures.
    """
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            removed.nodes += _remove_node(node, graph)
            continue
        for inner in subgraphs(node):
            _remove_nodes(inner, model, removed)
        removed.outputs += _drop_outputs(node, model)


def _remove_node(node: ir.Node, graph: ir.Graph) -> int:
    leave = permit(RemoveUnused.name, "node", node)
    if leave is None:
        return 0
    for inner in subgraphs(node):
        release(inner)
    graph.remove(node, safe=True)
    leave.used()
    return 1


def _drop_outputs(node: ir.Node, model: ir.Model) -> int:
    """Unname unused optional outputs, and cut them off at the end of the list."""
    if len(node.outputs) == 1 or not is_standard(node):
        return 0
    # it must have all its outputs
    if normalizes_by_batch(node):
        return 0
    unused = [index for index, value in enumerate(node.outputs) if _is_unused(value)]
    if not unused:
        return 0
    optional = _optional_outputs(node.op_type, model.opset_imports.get("", 1))
    dropped = [index for index in unused if index in optional]
    leave = permit(RemoveUnused.name, "outputs", node)
    if not dropped or leave is None:
        return 0
    leave.used()
    # an output in the middle keeps its place, without a name
    for index in dropped:
        value = node.outputs[index]
        value.name = ""
        value.shape = None
        value.type = None
    size = len(node.outputs)
    while size > 1 and _is_left_out(node.outputs[size - 1]):
        size -= 1
    node.resize_outputs(size)
    return len(dropped)


def _is_unused(output: ir.Value) -> bool:
    return bool(output.name) and not output.uses() and not output.is_graph_output()


def _is_left_out(output: ir.Value) -> bool:
    return output.name == "" and not output.uses()


def _optional_outputs(op_type: str, opset: int) -> set[int]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return set()
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return {i for i, output in enumerate(schema.outputs) if output.option == optional}


def _remove_initializers(graph: ir.Graph) -> int:
    unused = []
    for name, value in graph.initializers.items():
        is_port = value.is_graph_input() or value.is_graph_output()
        if not is_port and not value.uses():
            unused.append(name)
    removed = 0
    for name in unused:
        leave = permit(RemoveUnused.name, "initializer", name)
        if leave is not None:
            del graph.initializers[name]
            leave.used()
            removed += 1
    return removed


def _remove_functions(model: ir.Model) -> int:
    reached: set[ir.OperatorIdentifier] = set()
    todo = [node.op_identifier() for node in model.graph.all_nodes()]
    while todo:
        identifier = todo.pop()
        if identifier not in model.functions or identifier in reached:
            continue
        reached.add(identifier)
        function = model.functions[identifier]
        todo.extend(node.op_identifier() for node in function.all_nodes())
    unused = [identifier for identifier in model.functions if identifier not in reached]
    removed = 0
    for identifier in unused:
        domain, name, _ = identifier
        leave = permit(RemoveUnused.name, "function", f"{domain}.{name}")
        if leave is not None:
            del model.functions[identifier]
            leave.used()
            removed += 1
    return removed


def _remove_imports(model: ir.Model) -> None:
    # an import that nothing needs is no part of what is computed: it is not asked for
    used = {""}
    used.update(node.domain for node in all_nodes(model))
    used.update(domain for domain, _, _ in model.functions)
    for graph in all_graphs(model):
        unused = [domain for domain in graph.opset_imports if domain not in used]
        for domain in unused:
            del graph.opset_imports[domain]
