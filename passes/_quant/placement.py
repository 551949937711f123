"""Values that carry int8: layers demand it, runs of carrying ops between layers keep it (the run
closure).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.ops import is_standard
from .._core.targets import QuantRules
from .layers import QuantLayer, after_activation, constant_scalar

MANY_INPUTS = frozenset({"Add", "Mul", "Concat"})
"""Carrying ops whose every input is data; the others have one, and parameters."""


@dataclass(eq=False)
class Carried:
    """A node that runs on int8 data because its neighbours do.

    `outputs`: the values after a folded activation. `shared`: it only moves values.
    """

    node: ir.Node
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    shared: bool


@dataclass(eq=False)
class Placement:
    """Places of Q/DQ pairs.

    `quantized`: values that get a pair, in graph order. `int8_made`: those of them whose float form
    exists only between the producer and its Q, so that every consumer reads the dequantized value.
    `two_term`: those whose one int8 reader gets them as the sum of two terms.
    """

    graph: ir.Graph
    layers: list[QuantLayer]
    carried: list[Carried]
    quantized: list[ir.Value] = field(default_factory=list)
    int8_made: set[ir.Value] = field(default_factory=set)
    int8_nodes: set[ir.Node] = field(default_factory=set)
    two_term: set[ir.Value] = field(default_factory=set)


def place(graph: ir.Graph, layers: list[QuantLayer], rules: QuantRules) -> Placement:
    """Decide for one graph. Linear in its nodes and edges."""
    carried = _run_closure(graph, layers, rules)
    placement = Placement(graph, layers, carried)
    placement.int8_nodes.update(layer.node for layer in layers)
    placement.int8_nodes.update(c.node for c in carried)
    # a dict as an ordered set: pairs are inserted, and named, in this order
    chosen: dict[ir.Value, None] = {}
    for layer in layers:
        chosen[layer.input] = None
        if layer.writes_integers:
            chosen[layer.activated] = None
            placement.int8_made.add(layer.activated)
    for c in carried:
        chosen.update(dict.fromkeys(c.inputs))
        chosen.update(dict.fromkeys(c.outputs))
        placement.int8_made.update(c.outputs)
    for layer in layers:
        # a Gemm may write float; where only int8 nodes read it, its float form is nobody's
        value = layer.activated
        if value not in chosen or value.is_graph_output():
            continue
        if all(use.node in placement.int8_nodes for use in value.uses()):
            placement.int8_made.add(value)
    placement.quantized = list(chosen)
    return placement


def _run_closure(
    graph: ir.Graph, layers: list[QuantLayer], rules: QuantRules
) -> list[Carried]:
    """Carrying ops fed by int8 data whose result reaches a layer through such ops only."""
    by_node = {layer.node: layer for layer in layers}
    # what layers read is quantized whoever makes it
    available = {layer.input for layer in layers}
    candidates: list[Carried] = []
    for node in graph:
        if node in by_node:
            available.add(by_node[node].activated)
            continue
        carried = _carried(node, available, rules)
        if carried is not None:
            candidates.append(carried)
            available.update(carried.outputs)
    # backwards from the layers: a run that ends in float would only pay for its borders
    kept: list[Carried] = []
    wanted = {layer.input for layer in layers}
    for carried in reversed(candidates):
        if any(output in wanted for output in carried.outputs):
            wanted.update(carried.inputs)
            kept.append(carried)
    return kept[::-1]


def _carried(
    node: ir.Node, available: set[ir.Value], rules: QuantRules
) -> Carried | None:
    """The node as one that could run on the int8 data at hand, or None."""
    kind = rules.carry.get(node.op_type)
    if kind is None or not is_standard(node) or not _carries(node):
        return None
    data = node.inputs if node.op_type in MANY_INPUTS else node.inputs[:1]
    inputs = [value for value in data if value is not None]
    for value in inputs:
        if value.const_value is not None or value.dtype != ir.DataType.FLOAT:
            return None
    if not any(value in available for value in inputs):
        return None
    if not all(value in available or _is_small(value) for value in inputs):
        return None
    # unused outputs (of a Split, say) need no pair
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    outputs = [after_activation(value, rules) for value in read]
    if any(output.is_graph_output() for output in outputs):
        return None
    return Carried(
        node,
        inputs,
        outputs,
        kind == "shared",
    )


def _carries(node: ir.Node) -> bool:
    """True if this spelling of the op moves int8 values unchanged, or has an int8 kernel."""
    if node.op_type == "Resize":
        mode = node.attributes.get_string("mode", "nearest")
        return mode == "nearest" and len(node.outputs) == 1
    if node.op_type == "Pad":
        if node.attributes.get_string("mode", "constant") != "constant":
            return False
        # 0 is a code of every grid, another number perhaps of none
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or constant_scalar(value) == 0.0
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    return True


def _is_small(value: ir.Value) -> bool:
    """A per-channel factor (N, C, 1, 1): quantizing it where it meets int8 data costs nothing."""
    shape = value.shape
    if shape is None or len(shape) < 3:
        return False
    return all(size == 1 for size in shape[2:])
