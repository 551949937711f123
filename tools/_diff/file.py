"""Differences of two files as a whole: interface, versions, metadata, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import all_nodes
from .._run.checks import Port, interface_of, shape_text
from .nodes import value_changes


def interface_changes(first: ir.Model, second: ir.Model) -> list[str]:
    """Inputs and outputs that are gone, new or of another type, in words."""
    before = interface_of(first)
    after = interface_of(second)
    inputs = _port_changes("input", before.inputs, after.inputs)
    outputs = _port_changes("output", before.outputs, after.outputs)
    return [*inputs, *outputs]


def _port_changes(
    kind: str, before: Iterable[Port], after: Iterable[Port]
) -> Iterator[str]:
    olds = {port.name: _port_text(port) for port in before}
    news = {port.name: _port_text(port) for port in after}
    for name in olds:
        if name not in news:
            yield f"{kind} '{name}' is gone"
    for name, text in news.items():
        old = olds.get(name)
        if old is None:
            yield f"{kind} '{name}' is new: {text}"
        elif old != text:
            yield f"{kind} '{name}': {old} became {text}"


def _port_text(port: Port) -> str:
    shape = "of unknown shape" if port.shape is None else shape_text(port.shape)
    return f"{port.type} {shape}"


def file_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Versions, producer and metadata that differ, in words."""
    before, after = (_versions(facts) for facts in (first, second))
    found = list(value_changes("", before, after))
    for kind in ("opset", "metadata"):
        found += value_changes(kind, first[kind], second[kind])
    return found


def _versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "producer": facts["producer"] or "unknown",
        "IR version": facts["ir_version"],
    }


def op_changes(first: ir.Model, second: ir.Model) -> list[dict[str, Any]]:
    """Counts of every operator in both models, the most frequent first."""
    before = Counter(map(_op_name, all_nodes(first)))
    after = Counter(map(_op_name, all_nodes(second)))
    either = before | after
    rows: list[dict[str, Any]] = []
    for op, _ in either.most_common():
        row = {
            "op": op,
            "a": before[op],
            "b": after[op],
        }
        rows.append(row)
    return rows


def _op_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
