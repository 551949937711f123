"""Values that separate a graph: all that its weights make of its inputs passes through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ...passes._core.graph import subgraphs
from ...passes._core.ops import WEIGHTED_OPS

# Only the second input of a weighted operator makes a layer here: a matrix that comes first in a
# MatMul is a table of frequencies, as in positional encodings, not a layer.
_SECOND_INPUT = {
    *WEIGHTED_OPS,
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "FusedConv",
    "FusedMatMul",
    "Attention",
}
LAYER_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_SECOND_INPUT, (1,)),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "Gather": (0,),
    "Einsum": (0, 1),
}
"""Inputs that make a node a layer if they do not depend on the graph's inputs."""


@dataclass(frozen=True)
class Separator:
    """A value, and the number of layers before it."""

    name: str
    layers: int


def separators(model: ir.Model) -> Iterator[Separator]:
    """Yield, in order, the float values through which everything passes that layers made.

    Values that no layer has touched, like the mask of a sequence or the biases of its positions,
    may pass beside: they follow from the inputs at no cost.
    """
    place: dict[ir.Node, int] = {}
    nested: list[list[ir.Node]] = []
    for index, node in enumerate(model.graph):
        inner_nodes = _with_nested(node)
        nested.append(inner_nodes)
        place.update(dict.fromkeys(inner_nodes, index))
    outputs = set(model.graph.outputs)
    # values that depend on the inputs, and those of them that a layer made
    dependent = {value for value in model.graph.inputs if value.const_value is None}
    made: set[ir.Value] = set()
    # made values that some later node still reads: where one is left, it separates
    waiting: set[ir.Value] = set()
    layers = 0
    for index, node in enumerate(model.graph):
        read = _inputs_of(nested[index])
        continues = not made.isdisjoint(read)
        is_shape = node.op_type in ("Shape", "Size")
        if not continues and (is_shape or dependent.isdisjoint(read)):
            continue  # the same for every row: as good as a constant
        is_layer = any(_is_layer(inner, dependent) for inner in nested[index])
        layers += is_layer
        dependent.update(node.outputs)
        if not continues and not is_layer:
            continue
        made.update(node.outputs)
        waiting.update(node.outputs)
        waiting = {
            value
            for value in waiting
            if value in outputs or _is_read_after(value, index, place)
        }
        if len(waiting) != 1:
            continue
        (only,) = waiting
        if only in node.outputs and only.dtype == ir.DataType.FLOAT:
            yield Separator(only.name or "", layers)


def _with_nested(node: ir.Node) -> list[ir.Node]:
    """Return a node and all nodes of its bodies and branches."""
    found = [node]
    for graph in subgraphs(node):
        found.extend(ir.traversal.RecursiveGraphIterator(graph))
    return found


def _inputs_of(nodes: list[ir.Node]) -> set[ir.Value]:
    found: set[ir.Value] = set()
    for node in nodes:
        found.update(value for value in node.inputs if value is not None)
    return found


def _is_read_after(value: ir.Value, index: int, place: dict[ir.Node, int]) -> bool:
    return any(place[user] > index for user, _ in value.uses())


def _is_layer(node: ir.Node, dependent: set[ir.Value]) -> bool:
    """True if a node takes a value that depends on the inputs, and weights that do not."""
    constant = set()
    for index, value in enumerate(node.inputs):
        if value is not None and value not in dependent:
            constant.add(index)
    if len(constant) == len(node.inputs):
        return False
    if constant.isdisjoint(LAYER_WEIGHTS.get(node.op_type, ())):
        return False
    # a Gather of integers looks up positions or shapes, not an embedding
    return node.op_type != "Gather" or node.outputs[0].dtype == ir.DataType.FLOAT
