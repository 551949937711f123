"""All relations of a model: every node asked by its op's rule.

A value that a node without a rule touches stays, with that as the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .._core.graph import holds_graphs, label, subgraphs
from .ops import enter_rules
from .relations import Relations
from .table import RULES
from .trace import Trace

enter_rules()


def relate(model: ir.Model, trace: Trace) -> Relations:
    """Relations that all nodes of the main graph state of its axes. Linear in nodes."""
    relations = Relations(trace)
    for value in model.graph.inputs:
        relations.freeze_all(
            value, f"it reads the model's input '{value.name}', whose shape stays"
        )
    for value in model.graph.outputs:
        relations.freeze_all(
            value, f"it gives the model's output '{value.name}', whose shape stays"
        )
    # an axis of a weight that no rule mentions is a class by itself
    for value in model.graph.initializers.values():
        for axis in range(relations.rank(value)):
            relations.find(value, axis)
    for node in model.graph:
        _relate_node(node, relations)
    _freeze_open_sums(relations)
    return relations


def _freeze_open_sums(relations: Relations) -> None:
    """Keep axes that are summed over and whose size follows the input.

    The proof shuts slots off by a mask, which has one size.
    """
    for mix in relations.mixes:
        for index, axis in mix.axes:
            value = mix.node.inputs[index]
            if value is not None and relations.trace.varies(value, axis):
                reason = (
                    f"{label(mix.node)} sums over it, and its size follows the input"
                )
                relations.freeze(value, axis, reason)


def _relate_node(node: ir.Node, relations: Relations) -> None:
    values = _named_values(node)
    if holds_graphs(node):
        reason = (
            f"{label(node)} uses it: channels are not followed into If, Loop and Scan"
        )
        _freeze(
            [*values, *_outer_values(node)],
            reason,
            relations,
        )
        return
    for value in values:
        if value not in relations.trace.shapes:
            reason = (
                f"{label(node)}: the shape of '{value.name}' is unknown: run simplify first, or "
                "export static shapes"
            )
            _freeze(values, reason, relations)
            return
    if _computes_shapes(node, relations):
        known = [v for v in node.inputs if v in relations.trace.arrays]
        _freeze(
            [*node.outputs, *known],
            "it is a shape, not data",
            relations,
        )
        return
    entry = RULES.get((node.domain, node.op_type))
    if entry is None:
        _freeze(
            values,
            f"{label(node)}: prune-channels has no rule for this operator",
            relations,
        )
        return
    try:
        entry(node, relations)
    # a rule may meet a node that it was not made for: its axes stay, the run goes on
    except Exception as error:
        reason = f"{label(node)}: its rule failed ({type(error).__name__}: {error})"
        relations.freeze_node(node, reason)


def _named_values(node: ir.Node) -> list[ir.Value]:
    """Inputs and outputs of a node that are not left out."""
    both = (*node.inputs, *node.outputs)
    return [value for value in both if value is not None and value.name]


def _outer_values(node: ir.Node) -> list[ir.Value]:
    """Everything that the subgraphs of a node read, values of the main graph among it."""
    found: list[ir.Value] = []
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            found.extend(value for value in inner.inputs if value is not None)
    return found


def _freeze(
    values: Iterable[ir.Value | None], reason: str, relations: Relations
) -> None:
    for value in values:
        relations.freeze_all(value, reason)


def _computes_shapes(node: ir.Node, relations: Relations) -> bool:
    """True if all that a node makes is small whole numbers that are known: sizes, axes, indices."""
    for value in node.outputs:
        array = relations.trace.arrays.get(value)
        if array is None or array.dtype.kind not in "iub":
            return False
    return True
