"""The graph of two models in one: that of B, with what only A has, each node marked."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .._diff.difference import ModelDifference, NodeChange
from .graph import fed_inputs, graph_nodes, graph_of, path_of


def diff_graph(found: ModelDifference) -> dict[str, Any]:
    """Nodes of B, then those that only A has, with `status` and `changes`.

    `status`: same, changed, added or removed. What a removed node read comes from the twins of the
    nodes that it read it from.
    """
    # optimized files have lost what their exporter noted
    known = {other: path_of(node) for node, other in found.pairs.items()}
    graph = graph_of(found.b.model, known)
    nodes = graph["nodes"]
    numbers = _numbers(found.b.model)
    for each in nodes:
        each["status"] = "same"
    _mark(found.added, "added", nodes, numbers)
    _mark(found.changed, "changed", nodes, numbers)
    _append_removed(found, nodes, numbers)
    return graph


def _numbers(model: ir.Model) -> dict[ir.Node, int]:
    entries = enumerate(graph_nodes(model))
    return {node: number for number, node in entries if node is not None}


def _mark(
    changes: list[NodeChange],
    status: str,
    nodes: list[dict[str, Any]],
    numbers: dict[ir.Node, int],
) -> None:
    for change in changes:
        each = nodes[numbers[change.node]]
        each["status"] = status
        each["changes"] = change.changes


def _append_removed(
    found: ModelDifference, nodes: list[dict[str, Any]], numbers: dict[ir.Node, int]
) -> None:
    """Append what only A has, with its edges."""
    before = graph_of(found.a.model)["nodes"]
    entries = graph_nodes(found.a.model)
    removed = {change.node for change in found.removed}
    moved = _new_numbers(found, nodes, numbers)
    first = len(nodes)
    for number, node in enumerate(entries):
        if node in removed:
            moved[number] = first
            first += 1
    for node, entry in zip(entries, before, strict=True):
        if node in removed:
            entry["status"] = "removed"
            _renumber(entry["inputs"], moved)
            nodes.append(entry)


def _new_numbers(
    found: ModelDifference, nodes: list[dict[str, Any]], numbers: dict[ir.Node, int]
) -> dict[int, int]:
    """Numbers of entries of A, those of their twins in B: of nodes, and of inputs by name."""
    moved: dict[int, int] = {}
    for number, node in enumerate(graph_nodes(found.a.model)):
        twin = None
        if node is not None:
            twin = found.pairs.get(node)
        if twin is not None:
            moved[number] = numbers[twin]
    inputs = _inputs_by_name(nodes)
    for number, value in enumerate(fed_inputs(found.a.model)):
        name = value.name or ""
        if name in inputs:
            moved[number] = inputs[name]
    return moved


def _inputs_by_name(nodes: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, entry in enumerate(nodes):
        if entry["op"] == "Input":
            name = entry["name"]
            found[name] = number
    return found


def _renumber(inputs: list[dict[str, Any]], moved: dict[int, int]) -> None:
    for value in inputs:
        source = value.pop("from", None)
        if source in moved:
            value["from"] = moved[source]
