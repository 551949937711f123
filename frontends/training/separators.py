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
    walk = _Walk(model)
    layers = 0
    for index, node in enumerate(model.graph):
        read = walk.values_read(index)
        continues = not walk.made.isdisjoint(read)
        # the same for every row: as good as a constant
        varies = not walk.dependent.isdisjoint(read)
        if node.op_type in ("Shape", "Size"):
            varies = False
        if not continues and not varies:
            continue
        is_layer = walk.has_layer(index)
        layers += is_layer
        walk.dependent.update(node.outputs)
        if not continues and not is_layer:
            continue
        walk.pass_by(node, index)
        only = walk.only_waiting()
        if only is None or only not in node.outputs:
            continue
        if only.dtype == ir.DataType.FLOAT:
            yield Separator(only.name or "", layers)


class _Walk:
    """A walk over the nodes of the main graph, in order.

    `dependent`: values that depend on the inputs. `made`: those of them that a layer made.
    """

    def __init__(self, model: ir.Model) -> None:
        self._nested: list[list[ir.Node]] = []
        self._place: dict[ir.Node, int] = {}
        for index, node in enumerate(model.graph):
            nodes = _with_nested(node)
            self._nested.append(nodes)
            # a node of a body counts at the place of the node that holds the body
            for inner in nodes:
                self._place[inner] = index
        self._outputs = set(model.graph.outputs)
        # made values that some later node still reads
        self._waiting: set[ir.Value] = set()
        self.made: set[ir.Value] = set()
        self.dependent: set[ir.Value] = set()
        for value in model.graph.inputs:
            if value.const_value is None:
                self.dependent.add(value)

    def values_read(self, index: int) -> set[ir.Value]:
        """Return what the node of this number reads, in its bodies too."""
        found: set[ir.Value] = set()
        for node in self._nested[index]:
            for value in node.inputs:
                if value is not None:
                    found.add(value)
        return found

    def has_layer(self, index: int) -> bool:
        """True if the node of this number is a layer, or holds one."""
        nodes = self._nested[index]
        return any(_is_layer(node, self.dependent) for node in nodes)

    def pass_by(self, node: ir.Node, index: int) -> None:
        """Take a node's outputs as made, and drop what only it or nodes before it read."""
        self.made.update(node.outputs)
        self._waiting.update(node.outputs)
        for value in tuple(self._waiting):
            if not self._is_needed_after(value, index):
                self._waiting.remove(value)

    def _is_needed_after(self, value: ir.Value, index: int) -> bool:
        if value in self._outputs:
            return True
        places = [self._place[user] for user, _ in value.uses()]
        return any(place > index for place in places)

    def only_waiting(self) -> ir.Value | None:
        """Return the value that all goes through from here on, if it is one."""
        if len(self._waiting) != 1:
            return None
        (only,) = self._waiting
        return only


def made_values(model: ir.Model) -> set[str]:
    """Return the names of the values that nodes of the main graph make."""
    names: set[str] = set()
    for node in model.graph:
        names.update(value.name for value in node.outputs if value.name)
    return names


def _with_nested(node: ir.Node) -> list[ir.Node]:
    """Return a node and all nodes of its bodies and branches."""
    found = [node]
    for graph in subgraphs(node):
        nodes = ir.traversal.RecursiveGraphIterator(graph)
        found.extend(nodes)
    return found


def _is_layer(node: ir.Node, dependent: set[ir.Value]) -> bool:
    """True if a node takes a value that depends on the inputs, and weights that do not."""
    weights = LAYER_WEIGHTS.get(node.op_type)
    if weights is None:
        return False
    constant = set()
    for index, value in enumerate(node.inputs):
        if value is not None and value not in dependent:
            constant.add(index)
    if len(constant) == len(node.inputs) or constant.isdisjoint(weights):
        return False
    if node.op_type != "Gather":
        return True
    # a Gather of integers looks up positions or shapes, not an embedding
    return node.outputs[0].dtype == ir.DataType.FLOAT
