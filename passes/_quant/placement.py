"""Which values carry int8: layers demand it, runs of carrying ops between layers keep it (the run
closure).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.targets import QuantRules
from .layers import Layer, after_activation, constant_scalar, string_attribute


@dataclass(eq=False)
class Carried:
    """A node that runs on int8 data because its neighbours do. `output` is the value after a folded
    activation.
    """

    node: ir.Node
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    shared: bool


@dataclass(eq=False)
class Placement:
    """Where Q/DQ pairs go.

    `quantized`: values that get a pair, in graph order. `int8_made`: those of them whose float form
    exists only between the producer and its Q, so that every consumer reads the dequantized value.
    `limbed`: those whose one int8 reader gets them in two limbs.
    """

    layers: list[Layer]
    carried: list[Carried]
    quantized: list[ir.Value] = field(default_factory=list)
    int8_made: set[ir.Value] = field(default_factory=set)
    int8_nodes: set[ir.Node] = field(default_factory=set)
    limbed: set[ir.Value] = field(default_factory=set)


def place(graph: ir.Graph, layers: list[Layer], rules: QuantRules) -> Placement:
    """Decide for one graph. Linear in its nodes and edges."""
    carried = _run_closure(graph, layers, rules)
    placement = Placement(layers, carried)
    placement.int8_nodes = {layer.node for layer in layers} | {c.node for c in carried}
    chosen: dict[ir.Value, None] = {}
    for layer in layers:
        chosen[layer.input] = None
        if layer.rule.needs_output:
            chosen[layer.output] = None
            placement.int8_made.add(layer.output)
    for c in carried:
        chosen.update(dict.fromkeys(c.inputs))
        chosen.update(dict.fromkeys(c.outputs))
        placement.int8_made.update(c.outputs)
    for layer in layers:
        if (
            layer.output in chosen
            and not layer.output.is_graph_output()
            and all(use.node in placement.int8_nodes for use in layer.output.uses())
        ):
            placement.int8_made.add(layer.output)
    placement.quantized = list(chosen)
    return placement


def _run_closure(
    graph: ir.Graph, layers: list[Layer], rules: QuantRules
) -> list[Carried]:
    """Carrying ops fed by int8 data whose result reaches a layer through such ops only."""
    by_node = {layer.node: layer for layer in layers}
    available = {layer.input for layer in layers}  # quantized whoever makes them
    candidates: list[Carried] = []
    for node in graph:
        if node in by_node:
            available.add(by_node[node].output)
            continue
        carried = _carried(node, available, rules)
        if carried:
            candidates.append(carried)
            available.update(carried.outputs)
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
    kind = rules.carry.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if kind is None or not _carries(node):
        return None
    every_input = node.op_type in ("Add", "Mul", "Concat")
    inputs = [
        v for v in (node.inputs if every_input else node.inputs[:1]) if v is not None
    ]
    if any(v.const_value is not None or v.dtype != ir.DataType.FLOAT for v in inputs):
        return None
    if not any(v in available for v in inputs) or not all(
        v in available or _is_small(v) for v in inputs
    ):
        return None
    outputs = [
        after_activation(output, rules)
        for output in node.outputs
        if output.uses() or output.is_graph_output()
    ]
    if any(output.is_graph_output() for output in outputs):
        return None
    return Carried(node, inputs, outputs, kind == "shared")


def _carries(node: ir.Node) -> bool:
    """Whether this spelling of the op moves int8 values unchanged, or has an int8 kernel."""
    if node.op_type == "Resize":
        return (
            string_attribute(node, "mode", "nearest") == "nearest"
            and len(node.outputs) == 1
        )
    if node.op_type == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return string_attribute(node, "mode", "constant") == "constant" and (
            value is None or constant_scalar(value) == 0.0
        )
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    return True


def _is_small(value: ir.Value) -> bool:
    """A per-channel factor (N, C, 1, 1): quantizing it where it meets int8 data costs nothing."""
    shape = value.shape
    return shape is not None and len(shape) >= 3 and all(d == 1 for d in shape[2:])
