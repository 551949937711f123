"""Bodies of If, Loop and Scan: where each lies, and names by which a run tells their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from .graph import label


class Body(NamedTuple):
    """A graph that a node holds.

    `node`: its holder. `attribute`: what the holder calls it. `path`: the same in every clone of a
    model, and of no other body: what leads there from the main graph.
    """

    graph: ir.Graph
    node: ir.Node
    attribute: str
    path: str

    @property
    def outer(self) -> ir.Graph:
        """The graph in which its holder lies."""
        assert isinstance(self.node.graph, ir.Graph)
        return self.node.graph

    def __str__(self) -> str:
        return f"{self.attribute} of {label(self.node)}"


def bodies_of(model: ir.Model) -> dict[ir.Graph, Body]:
    """Every body under the main graph, outer ones first; those of functions are not among them."""
    found: dict[ir.Graph, Body] = {}
    waiting = [(model.graph, "")]
    while waiting:
        graph, path = waiting.pop()
        for node in graph:
            # most have none, and there are many
            if node.attributes:
                waiting += _held(node, path, found)
    return found


def repeated_bodies(model: ir.Model) -> set[ir.Graph]:
    """The bodies of every Loop and Scan under the main graph, and those inside them."""
    found: set[ir.Graph] = set()
    for graph, body in bodies_of(model).items():
        if body.node.op_type in ("Loop", "Scan") or body.outer in found:
            found.add(graph)
    return found


def _held(
    node: ir.Node, outer: str, found: dict[ir.Graph, Body]
) -> list[tuple[ir.Graph, str]]:
    """Note the bodies that a node holds; each with its path."""
    held = []
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
            continue
        graph = attribute.as_graph()
        # a node may have no name, its outputs have
        path = f"{outer}{node.outputs[0].name}:{attribute.name}:"
        found[graph] = Body(graph, node, attribute.name, path)
        held.append((graph, path))
    return held


@dataclass(frozen=True)
class RunNames:
    """Names by which a run of a model tells its values, as they are in a graph that has them.

    In the main graph a value has its own name, in a body the body's path in front of it: branches
    may use one name for two things, and what a body reads from outside it reads only when entered.
    """

    bodies: Mapping[ir.Graph, Body]

    @staticmethod
    def of(model: ir.Model) -> RunNames:
        """Names in a model, in graphs that it has now."""
        return RunNames(bodies_of(model))

    def name(self, value: ir.Value, graph: ir.Graph) -> str:
        """Name of a value that a graph makes, is given or reads."""
        return f"{self.path(graph)}{value.name or ''}"

    def path(self, graph: ir.Graph) -> str:
        """Prefix of the names of a graph's values: nothing in the main graph."""
        body = self.bodies.get(graph)
        return "" if body is None else body.path
