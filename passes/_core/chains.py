"""Ways of a weight to its reader: nodes that keep it the same weight, and those that compute it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .graph import all_graphs, holds_graphs, label, producer_of
from .ops import FLOATS, is_standard

CHAIN_OPS = ("Identity", "Transpose", "Cast")
"""Ops between an initializer and its user that leave it the same weight: reordered at most, or
widened from another type of floats.
"""

LONGEST = 32
"""Nodes of a chain beyond which it counts as computed: many layers may read along one long chain,
and each walks its own way.
"""

RANDOM_OPS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators whose results differ from run to run, whatever they read."""


@dataclass(frozen=True)
class Chain:
    """The way of a weight to its reader: a source, and the nodes behind it, the last one first."""

    source: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def transposes(self) -> bool:
        """True if some node reorders axes."""
        return any(node.op_type == "Transpose" for node in self.nodes)

    @property
    def values(self) -> list[ir.Value]:
        """The source and what each node makes of it."""
        return [self.source, *(node.outputs[0] for node in self.nodes)]

    @property
    def has_one_reader(self) -> bool:
        """True if nothing reads the source but through this chain, and nothing shows it."""
        return not self.is_shown and all(
            len(value.uses()) == 1 for value in self.values
        )

    @property
    def is_shown(self) -> bool:
        """True if the source, or what a node makes of it, is an output of its graph."""
        return any(value.is_graph_output() for value in self.values)

    def permutation(self, rank: int) -> tuple[int, ...]:
        """Axes of the source, of that rank, in the order in which the reader sees them."""
        order = tuple(range(rank))
        for node in reversed(self.nodes):
            if node.op_type == "Transpose":
                # axes are reversed by default
                own = node.attributes.get_ints("perm") or range(rank)[::-1]
                order = tuple(order[axis] for axis in own)
        return order

    def remove_unread(self) -> None:
        """Remove the nodes, from the reader on, whose result nothing reads any more."""
        for node in self.nodes:
            made = node.outputs[0]
            if made.uses() or made.is_graph_output():
                return
            # layers that share the chain remove it once
            if node.graph is not None:
                node.graph.remove(node, safe=True)


def chain_of(value: ir.Value | None) -> Chain | None:
    """The chain that ends in a value; the value alone where no node of CHAIN_OPS makes it."""
    nodes: list[ir.Node] = []
    while value is not None:
        node = producer_of(value, *CHAIN_OPS)
        if node is None or not _keeps_floats(node) or len(nodes) == LONGEST:
            return Chain(value, tuple(nodes))
        nodes.append(node)
        value = node.inputs[0]
    return None


def _keeps_floats(node: ir.Node) -> bool:
    """True unless a node is a Cast from or to another kind of numbers."""
    if node.op_type != "Cast":
        return True
    source = node.inputs[0]
    kinds = {source.dtype if source is not None else None, node.outputs[0].dtype}
    return kinds <= FLOATS


def made_of_constants(model: ir.Model) -> dict[ir.Value, bool]:
    """Values that nodes make of constants alone, the same in every run.

    True for those that codes of few bits are part of: a weight that is stored small already.
    """
    made: dict[ir.Value, bool] = {}
    for graph in all_graphs(model):
        for node in graph:
            if not is_standard(node) or node.op_type in RANDOM_OPS:
                continue
            inputs = [value for value in node.inputs if value is not None]
            # the dims of an activation may be known although it is not
            if tells_known_dims(node):
                made[node.outputs[0]] = False
                continue
            if not all(value in made or _is_fixed(value) for value in inputs):
                continue
            # a loop is not followed
            if holds_graphs(node) or not (inputs or node.op_type == "Constant"):
                continue
            is_coded = any(made.get(value) or _is_code(value) for value in inputs)
            made.update(dict.fromkeys(node.outputs, is_coded))
    return made


def tells_known_dims(node: ir.Node) -> bool:
    """True for a Shape all of whose elements are known numbers."""
    if not is_standard(node, "Shape") or node.inputs[0] is None:
        return False
    shape = node.inputs[0].shape
    if shape is None:
        return False
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(shape))
    return all(isinstance(dim, int) for dim in shape[start:end])


def _is_fixed(value: ir.Value) -> bool:
    """True if a value is an initializer that no caller can override."""
    return value.const_value is not None and not value.is_graph_input()


def _is_code(value: ir.Value) -> bool:
    """True if the elements of a value are numbers of few bits that stand for others."""
    if value.dtype is None or value.dtype == ir.DataType.BOOL:
        return False
    return value.dtype != ir.DataType.STRING and value.dtype.bitwidth <= 8


def not_stored(value: ir.Value, made: Mapping[ir.Value, bool]) -> str | None:
    """Reason why a computed value is no weight although it is constant; None of an activation."""
    producer = value.producer()
    if producer is None:
        return None
    if producer.op_type == "DequantizeLinear" or made.get(value):
        return "already quantized"
    if value not in made:
        return None
    return (
        f"its weight is computed from constants by {label(producer)}: run simplify first, which "
        "makes one constant of it unless the file would grow"
    )
