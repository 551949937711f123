"""Nodes of one model and their twins in another: by names first, then by what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable

import onnx_ir as ir

from ...passes._core.graph import all_nodes, input_of
from ...passes._core.integer_layers import INTEGER_OPS
from ...passes._core.layer_names import layer_name

Key = Callable[[ir.Node], Hashable]


def _by_name(node: ir.Node) -> Hashable:
    if not node.name:
        return None
    return node.op_type, node.name


def _by_output(node: ir.Node) -> Hashable:
    if not node.outputs:
        return None
    name = node.outputs[0].name
    return node.op_type, name


def _by_layer(node: ir.Node) -> Hashable:
    name = layer_name(node)
    if not name:
        return None
    return _float_form(node.op_type), name


KEYS: tuple[Key, ...] = (_by_name, _by_output, _by_layer)
"""Keys that tell a node apart, the surest first: only one that is unique in both models counts."""

FORMS = {"Conv": "Conv", "Gemm": "MatMul", "MatMul": "MatMul"}
"""The float operator of which an integer one, by a part of its name, is a form."""


def _float_form(op_type: str) -> str:
    for part, form in FORMS.items():
        if part in op_type:
            return form
    return op_type


class _Matches:
    """Pairs found so far, both ways."""

    def __init__(self) -> None:
        self.of_a: dict[ir.Node, ir.Node] = {}
        self.of_b: dict[ir.Node, ir.Node] = {}

    def add(self, node: ir.Node, other: ir.Node) -> None:
        self.of_a[node] = other
        self.of_b[other] = node


def matched_nodes(first: ir.Model, second: ir.Model) -> dict[ir.Node, ir.Node]:
    """Nodes of the first model with their twins in the second, in the order of the first."""
    matches = _Matches()
    nodes = list(all_nodes(first))
    others = list(all_nodes(second))
    for key in KEYS:
        _match_by(key, nodes, others, matches)
    inputs = {value.name: value for value in second.graph.inputs}
    for node in nodes:
        if node not in matches.of_a:
            _match_behind(node, inputs, matches)
    for node in reversed(nodes):
        if node not in matches.of_a:
            _match_before(node, matches)
    return {node: matches.of_a[node] for node in nodes if node in matches.of_a}


def _match_by(
    key: Key, nodes: Iterable[ir.Node], others: Iterable[ir.Node], matches: _Matches
) -> None:
    left = _unique(key, nodes, matches.of_a)
    right = _unique(key, others, matches.of_b)
    for found, node in left.items():
        twin = right.get(found)
        if twin is not None:
            matches.add(node, twin)


def _unique(
    key: Key, nodes: Iterable[ir.Node], known: Container[ir.Node]
) -> dict[Hashable, ir.Node]:
    """Nodes by their key, those alone that no other one shares it with; not those `known`."""
    counts: Counter[Hashable] = Counter()
    found: dict[Hashable, ir.Node] = {}
    for node in nodes:
        own = key(node)
        if own is None or node in known:
            continue
        counts[own] += 1
        found[own] = node
    return {own: node for own, node in found.items() if counts[own] == 1}


def _match_behind(
    node: ir.Node, inputs: dict[str | None, ir.Value], matches: _Matches
) -> None:
    """Match a node to the one that reads the same, if there is one alone."""
    for index, value in enumerate(node.inputs):
        twin = _twin_of(value, inputs, matches)
        if twin is None:
            continue
        found = [
            use.node
            for use in twin.uses()
            if use.idx == index
            and use.node.op_type == node.op_type
            and use.node not in matches.of_b
        ]
        if len(found) == 1:
            matches.add(node, found[0])
            return


def _twin_of(
    value: ir.Value | None, inputs: dict[str | None, ir.Value], matches: _Matches
) -> ir.Value | None:
    if value is None or value.const_value is not None:
        return None
    producer = value.producer()
    if producer is None:
        return inputs.get(value.name)
    twin = matches.of_a.get(producer)
    index = value.index() or 0
    if twin is None or index >= len(twin.outputs):
        return None
    return twin.outputs[index]


def _match_before(node: ir.Node, matches: _Matches) -> None:
    """Match a node to the one that gives a reader's twin the same input."""
    for value in node.outputs:
        for use in value.uses():
            reader = matches.of_a.get(use.node)
            source = None if reader is None else input_of(reader, use.idx)
            found = None if source is None else source.producer()
            if found is None or found in matches.of_b:
                continue
            if found.op_type == node.op_type:
                matches.add(node, found)
                return


def weight_place(node: ir.Node, other: ir.Node, index: int) -> int | None:
    """Input of another node at which it reads what a node reads at `index`."""
    if node.op_type == other.op_type:
        return index
    places = [_weight_index(each) for each in (node, other)]
    return places[1] if places[0] == index else None


def _weight_index(node: ir.Node) -> int:
    operands = INTEGER_OPS.get(node.op_type)
    return 1 if operands is None else operands.weight
