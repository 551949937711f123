"""Scopes: a graph's values, the attributes of the function they are in, and its opsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import subgraphs
from ._program import Known

LIST_TYPES = frozenset(
    {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}
)


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
        """Return the version of a domain's ops here; 1 for domains that are not imported."""
        if domain in self.opsets:
            return self.opsets[domain]
        # the standard domain has two spellings
        if domain == "":
            return self.opsets.get("ai.onnx", 1)
        return 1

    def attributes_of(self, node: ir.Node) -> dict[str, Any]:
        """Return a node's attributes as Python values.

        References are those of the enclosing function's call; one that the call leaves out is left
        out here too.
        """
        found: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if not attribute.is_ref():
                found[name] = plain(attribute)
                continue
            source = attribute.ref_attr_name
            assert source is not None
            if source in self.attributes:
                found[name] = self.attributes[source]
        return found


def plain(attribute: ir.Attr) -> Any:
    """Return numbers, strings and lists as Python has them, the rest as onnx_ir has them."""
    if attribute.type in LIST_TYPES:
        return list(attribute.value)
    return attribute.value


def last_uses(nodes: Iterable[ir.Node]) -> list[list[ir.Value]]:
    """List for each node the values that nothing after it reads.

    Those read inside subgraphs count at the node that holds them.
    """
    final: dict[ir.Value, int] = {}
    count = 0
    for index, node in enumerate(nodes):
        for value in _reads(node):
            final[value] = index
        # an output that nobody reads dies where it is made
        for value in node.outputs:
            final[value] = index
        count = index + 1
    dying: list[list[ir.Value]] = [[] for _ in range(count)]
    for value, index in final.items():
        dying[index].append(value)
    return dying


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """Yield the values that a node reads, in its subgraphs too."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield from (value for value in current.inputs if value is not None)
        for graph in subgraphs(current):
            # a branch may give an outer value as it is
            yield from graph.outputs
            waiting.extend(graph)
