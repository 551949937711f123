"""Where names are looked up: a graph's values, the attributes of the function they are in, and its
opsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ._program import Known
from ._weights import held_graphs


@dataclass
class Scope:
    """One function body (or the main graph with its subgraphs, which see outer values
    lexically).
    """

    graph: str
    opsets: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: dict[ir.Value, Known] = field(default_factory=dict)

    def opset(self, domain: str) -> int:
        """Version of a domain's ops here; 1 for domains that are not imported."""
        return self.opsets.get(
            domain, self.opsets.get("ai.onnx", 1) if domain == "" else 1
        )

    def attributes_of(self, node: ir.Node) -> dict[str, Any]:
        """A node's attributes as Python values; references are those of the enclosing function's
        call.
        """
        found: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                assert attribute.ref_attr_name is not None
                if attribute.ref_attr_name in self.attributes:
                    found[name] = self.attributes[attribute.ref_attr_name]
            else:
                found[name] = plain(attribute)
        return found


def plain(attribute: ir.Attr) -> Any:
    """Numbers, strings and lists as Python has them; tensors, graphs and types as onnx_ir has
    them.
    """
    if attribute.type in (
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    ):
        return list(attribute.value)
    return attribute.value


def last_uses(nodes: Iterable[ir.Node]) -> list[list[ir.Value]]:
    """For each node the values that nothing after it reads, those read inside subgraphs counted at
    their node.
    """
    final: dict[ir.Value, int] = {}
    count = 0
    for index, node in enumerate(nodes):
        for value in (*_reads(node), *node.outputs):
            final[value] = index
        count = index + 1
    dying: list[list[ir.Value]] = [[] for _ in range(count)]
    for value, index in final.items():
        dying[index].append(value)
    return dying


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield from (v for v in current.inputs if v is not None)
        for graph in held_graphs(current):
            yield from graph.outputs
            waiting.extend(graph)
