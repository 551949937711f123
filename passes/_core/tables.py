"""Tables: constants from which Gather takes whole rows, such as embeddings of tokens."""

from __future__ import annotations

import onnx_ir as ir

from .chains import chain_of
from .graph import graphs_of, input_of
from .ops import is_standard
from .weights import Weight


def tables_of(model: ir.Model) -> dict[ir.Value, Weight]:
    """Float32 initializers from which Gather takes whole rows, each with those that do.

    Others may read them too.
    """
    found: dict[ir.Value, Weight] = {}
    for graph in graphs_of(model):
        for node in graph:
            if not is_standard(node, "Gather"):
                continue
            table = _table(node)
            if table is not None and _has_rows(table):
                weight = found.setdefault(table, Weight(table))
                weight.uses.append((node, 0))
    return found


def token_inputs(model: ir.Model) -> dict[str, int]:
    """Inputs of the model that pick rows of tables, with how many rows there are to pick from."""
    found: dict[str, int] = {}
    for table, weight in tables_of(model).items():
        assert table.shape is not None
        rows = table.shape[0]
        for node, _ in weight.uses:
            ids = node.inputs[1]
            if ids is None or not ids.is_graph_input() or not isinstance(rows, int):
                continue
            name = ids.name or ""
            found[name] = min(rows, found.get(name, rows))
    return found


def is_tied(value: ir.Value) -> bool:
    """True if rows are taken from a value, and from what Identity makes of it."""
    waiting = [value]
    while waiting:
        for use in waiting.pop().uses():
            if is_standard(use.node, "Gather") and use.idx == 0:
                return True
            if is_standard(use.node, "Identity"):
                waiting.append(use.node.outputs[0])
    return False


def _table(node: ir.Node) -> ir.Value | None:
    """The constant whose rows a Gather takes; None where it takes other slices."""
    chain = chain_of(input_of(node, 0))
    if chain is None or chain.transposes or node.attributes.get_int("axis", 0) != 0:
        return None
    return chain.source


def _has_rows(value: ir.Value) -> bool:
    """True if a value is a float32 initializer with rows, which no caller can override."""
    if not value.is_initializer() or value.is_graph_input():
        return False
    if value.dtype != ir.DataType.FLOAT:
        return False
    if value.shape is None:
        return False
    return len(value.shape) >= 2
