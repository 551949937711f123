"""Values that separate a graph: all that its weights make of its inputs passes through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

WEIGHT_INPUTS = {
    **dict.fromkeys(
        (
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "LSTM",
            "GRU",
            "RNN",
            "ConvInteger",
            "MatMulInteger",
            "MatMulNBits",
            "FusedConv",
            "FusedMatMul",
            "Attention",
        ),
        (1,),
    ),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "Gather": (0,),
    "Einsum": (0, 1),
}
"""Where layers have their weights. A matrix that comes first in a MatMul is a table of frequencies,
not a layer.
"""


@dataclass(frozen=True)
class Separator:
    """A value, and how many layers come before it."""

    name: str
    layers: int


def separators(model: ir.Model) -> Iterator[Separator]:
    """Float values through which all passes that layers made, in order.

    What no layer has touched, like the mask of a sequence or the biases of its positions, may pass
    beside: it follows from the inputs at no cost.
    """
    place = {
        inner: index
        for index, node in enumerate(model.graph)
        for inner in _with_bodies(node)
    }
    outputs = set(model.graph.outputs)
    fed = {value for value in model.graph.inputs if value.const_value is None}
    made: set[ir.Value] = set()
    waiting: set[ir.Value] = set()
    layers = 0
    for index, node in enumerate(model.graph):
        inners = _with_bodies(node)
        taken = {
            value for inner in inners for value in inner.inputs if value is not None
        }
        goes_on = not made.isdisjoint(taken)
        if not goes_on and (node.op_type in ("Shape", "Size") or fed.isdisjoint(taken)):
            continue  # the same for every row: as good as a constant
        is_layer = any(_is_layer(inner, fed) for inner in inners)
        layers += is_layer
        fed.update(node.outputs)
        if not goes_on and not is_layer:
            continue
        made.update(node.outputs)
        waiting.update(node.outputs)
        waiting = {
            v
            for v in waiting
            if v in outputs or any(place[user] > index for user, _ in v.uses())
        }
        only = next(iter(waiting)) if len(waiting) == 1 else None
        if (
            only is not None
            and only in node.outputs
            and only.dtype == ir.DataType.FLOAT
        ):
            yield Separator(only.name or "", layers)


def _is_layer(node: ir.Node, fed: set[ir.Value]) -> bool:
    """Whether a node takes something that depends on the inputs, and weights that do not."""
    constant = {
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value not in fed
    }
    if len(constant) == len(node.inputs) or constant.isdisjoint(
        WEIGHT_INPUTS.get(node.op_type, ())
    ):
        return False
    return node.op_type != "Gather" or node.outputs[0].dtype == ir.DataType.FLOAT


def _with_bodies(node: ir.Node) -> list[ir.Node]:
    """A node and those of its bodies and branches."""
    found = [node]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
    return found
