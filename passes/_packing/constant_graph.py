"""Parts of a graph that depend on constants alone, and which of them `pack` wrote."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import onnx_ir as ir

from .._core.edit import is_constant
from .._core.graph import holds_graphs
from .._core.ops import QUANT_OPS

PREFIX = "_"
"""Start of names inside decoders, before a number; no other pass names values so."""

_OWN_NAME = re.compile(rf"{PREFIX}\d+")


def constant_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that are computed from constants alone, in order: a runtime computes them at load.

    Not those that dequantize: a runtime makes integer kernels of them.
    """
    found: dict[ir.Node, None] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or node.op_type in QUANT_OPS or holds_graphs(node):
            continue
        if all(is_constant(value) or value.producer() in found for value in inputs):
            found[node] = None
    return list(found)


def own_decoders(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that `pack` wrote, in order: all that they read has names of its making."""
    found: dict[ir.Node, None] = {}
    for node in constant_nodes(graph):
        if all(_is_own(value) for value in node.inputs):
            found[node] = None
    return list(found)


def _is_own(value: ir.Value | None) -> bool:
    return value is None or is_own_name(value.name or "")


def is_own_name(name: str) -> bool:
    """True for a name that `pack` gives inside decoders, by which they are found again."""
    return _OWN_NAME.fullmatch(name) is not None


def results_of(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Values that these nodes make for others: what is left of them once they are folded."""
    inside = set(nodes)
    made = itertools.chain.from_iterable(node.outputs for node in nodes)
    return [
        value
        for value in made
        if value.is_graph_output() or not inside.issuperset(value.consumers())
    ]


def feeds_only(value: ir.Value, nodes: set[ir.Node]) -> bool:
    """True if nobody but these nodes reads a value."""
    return nodes.issuperset(value.consumers())


def is_table(value: ir.Value, nodes: set[ir.Node]) -> bool:
    """True if these nodes, and nobody else, look up in it what they have unpacked.

    Such a decoder, of `quant` for one, is known by its table: training reads weights behind it.
    """
    for use in value.uses():
        node = use.node
        if node not in nodes or node.op_type != "Gather" or use.idx != 0:
            return False
        index = node.inputs[1]
        if index is None or index.producer() not in nodes:
            return False
    return bool(value.uses())
