"""All relations of a model: every node asked by its op's rule; what has no rule stays, with that as
the reason.
"""

from __future__ import annotations

import onnx_ir as ir

from .._core.graph import holds_graphs, label, subgraphs
from .ops import enter_rules
from .relations import Relations
from .table import RULES
from .trace import Trace

enter_rules()


def relate(model: ir.Model, trace: Trace) -> Relations:
    """What all nodes of the main graph say of its axes. Linear in nodes."""
    relations = Relations(trace)
    for value in model.graph.inputs:
        relations.freeze_all(value, f"input '{value.name}' of the model")
    for value in model.graph.outputs:
        relations.freeze_all(value, f"output '{value.name}' of the model")
    for value in model.graph.initializers.values():
        for axis in range(len(relations.shape(value) or ())):
            relations.find(value, axis)
    for node in model.graph:
        _relate_node(node, relations)
    return relations


def _relate_node(node: ir.Node, relations: Relations) -> None:
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    missing = next((v for v in values if v not in relations.trace.shapes), None)
    entry = RULES.get((node.domain, node.op_type))
    if holds_graphs(node):
        outer = [
            v
            for graph in subgraphs(node)
            for inner in graph.all_nodes()
            for v in inner.inputs
            if v is not None
        ]
        _freeze(
            [*values, *outer],
            f"used by {label(node)}, whose subgraphs are not followed",
            relations,
        )
    elif missing is not None:
        _freeze(
            values,
            f"{label(node)}: the shape of '{missing.name}' is unknown",
            relations,
        )
    elif _computes_shapes(node, relations):
        _freeze(
            [*node.outputs, *(v for v in node.inputs if v in relations.trace.arrays)],
            "a shape",
            relations,
        )
    elif entry is None:
        _freeze(values, f"{label(node)}: no rule for this op", relations)
    else:
        entry(node, relations)


def _freeze(values: list[ir.Value], reason: str, relations: Relations) -> None:
    for value in values:
        relations.freeze_all(value, reason)


def _computes_shapes(node: ir.Node, relations: Relations) -> bool:
    """Whether all that a node makes is small whole numbers that are known: sizes, axes, indices."""
    arrays = [relations.trace.arrays.get(value) for value in node.outputs]
    return all(array is not None and array.dtype.kind in "iub" for array in arrays)
