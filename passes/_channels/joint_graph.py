"""Two models in one graph, fed the same inputs, so that tensors of one can be compared with tensors
of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .._core.edit import Edit, is_constant
from .._core.graph import holds_graphs
from .._core.linear import LinearLayer
from .._dims.surgery import Kept

WHOLE, PRUNED = "whole/", "pruned/"


class SideBySide:
    """`model`: the whole and the pruned graph, every value named after its side; it has no outputs.

    Weights are shared with both models. `kept`: what stayed of the whole model's tensors, by name.
    """

    def __init__(self, whole: ir.Model, pruned: ir.Model, kept: Kept) -> None:
        self.model = joined({WHOLE: whole, PRUNED: pruned})
        self._kept = kept
        self._edit = Edit(self.model)
        self._values = {
            v.name: v for v in (*self.model.graph.inputs, *_made(self.model.graph))
        }

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
        """What makes some tensors of others, as a model of its own."""
        return part(self.model, inputs, outputs)

    def frontier(self, pending: Sequence[LinearLayer]) -> list[str] | None:
        """Tensors from which everything follows that depends on pending layers of the pruned model;
        inputs among them.

        Nodes of the whole model wait for their namesakes. None where the type of one is not known,
        or no tensor's, and where subgraphs may read tensors on their own.
        """
        waits = self._waiting({PRUNED + (layer.node.name or "") for layer in pending})
        live = {
            value
            for node in waits
            for value in node.inputs
            if value is not None and not is_constant(value)
        }
        live |= {
            value for layer in pending for value in self._target_parts(layer.output)
        }
        ordered = sorted(
            (v for v in live if v.producer() not in waits),
            key=lambda value: value.name or "",
        )
        if any(map(holds_graphs, self.model.graph)) or not all(
            isinstance(v.type, ir.TensorType) for v in ordered
        ):
            return None
        return [value.name or "" for value in ordered]

    def _waiting(self, names: Collection[str]) -> set[ir.Node]:
        """The nodes named, their namesakes in the whole model, and all that depends on them."""
        waits: set[ir.Node] = set()
        by_output = {
            value.name: node for node in self.model.graph for value in node.outputs
        }
        for node in sorted(
            self.model.graph, key=lambda n: (n.name or "").startswith(WHOLE)
        ):  # stable: pruned first
            namesake = by_output.get(
                PRUNED + (node.outputs[0].name or "").removeprefix(WHOLE)
            )
            if (
                node.name in names
                or namesake in waits
                or any(
                    value is not None and value.producer() in waits
                    for value in node.inputs
                )
            ):
                waits.add(node)
        return waits

    def name_of(self, value: ir.Value) -> str:
        """What a value of the pruned model is called here."""
        return value.name or "" if value.is_graph_input() else f"{PRUNED}{value.name}"

    def target_of(self, value: ir.Value) -> str:
        """A tensor that holds what a layer's output of the pruned model should be.

        The whole model's tensor of that name, its lost channels left out; behind a shortcut's Add,
        the whole model's sum less the pruned model's shortcut.
        """
        wanted, *present = self._target_parts(value)
        part = self._kept_part(wanted)
        return (
            self._append("Sub", [part, *present], f"{value.name}_target")
            if present
            else part
        ).name or ""

    def _target_parts(self, value: ir.Value) -> list[ir.Value]:
        """What the target of a layer's output is made of: the whole model's tensor, the shortcut
        that it lacks.
        """
        shortcut = _shortcut(value)
        if shortcut is None:
            return [self._values[f"{WHOLE}{value.name}"]]
        total, other = shortcut
        return [self._values[f"{WHOLE}{total.name}"], self._values[self.name_of(other)]]

    def _kept_part(self, value: ir.Value) -> ir.Value:
        name = (value.name or "").removeprefix(WHOLE)
        for axis, slots in sorted(self._kept.get(name, {}).items()):
            indices = self._edit.constant(
                self.model.graph, slots.astype(np.int64), f"{name}_kept"
            )
            value = self._append("Gather", [value, indices], f"{name}_part", axis=axis)
        return value

    def _append(
        self, op_type: str, inputs: list[ir.Value], stem: str, **attributes: int
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        node.name = self._edit.fresh(stem)
        node.outputs[0].name = self._edit.fresh(stem)
        node.outputs[0].type = inputs[0].type
        self.model.graph.append(node)
        return node.outputs[0]


def _made(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _shortcut(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(sum, other summand) where the only user of a value adds another activation of its own shape
    to it.
    """
    uses = list(value.uses())
    if (
        len(uses) != 1
        or value.is_graph_output()
        or uses[0].node.op_type != "Add"
        or uses[0].node.domain != ""
    ):
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if (
        other is None
        or other is value
        or is_constant(other)
        or other.shape is None
        or other.shape != value.shape
    ):
        return None
    return add.outputs[0], other


def joined(models: Mapping[str, ir.Model]) -> ir.Model:
    """Models by prefix in one graph that reads their inputs once; every other value's name begins
    with its prefix.
    """
    first, *others = (_renamed(model, prefix) for prefix, model in models.items())
    for other in others:
        _move(other.graph, first.graph)
    return first


def part(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """What makes some tensors of others, as a model of its own; weights are shared."""
    made = [name for name in dict.fromkeys(outputs) if name not in inputs]
    graph = ir.convenience.extract(model.graph, inputs, made)
    return ir.Model(
        graph, ir_version=model.ir_version, functions=list(model.functions.values())
    )


def _renamed(model: ir.Model, prefix: str) -> ir.Model:
    """A copy whose nodes, values and initializers carry a prefix; inputs keep their names, outputs
    are dropped.

    Shapes of what nodes make are forgotten: one symbol may have another size in another model.
    """
    copy = model.clone()
    graph = copy.graph
    graph.outputs.clear()
    for value in list(graph.initializers.values()):
        if not value.is_graph_input():
            del graph.initializers[value.name or ""]
            value.name = f"{prefix}{value.name}"
            graph.initializers[value.name] = value
    for node in graph:
        if node.name:
            node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            value.shape = None
            if value.name:
                value.name = f"{prefix}{value.name}"
    return copy


def _move(source: ir.Graph, target: ir.Graph) -> None:
    """Put all nodes and initializers of one graph behind those of another, whose inputs they
    read.
    """
    inputs = {value.name: value for value in target.inputs}
    for value in source.inputs:
        value.replace_all_uses_with(inputs[value.name])
    nodes = list(source)
    constants = [v for v in source.initializers.values() if not v.is_graph_input()]
    for value in constants:
        del source.initializers[value.name or ""]
    source.remove(nodes)
    for value in constants:
        target.initializers[value.name or ""] = value
    target.extend(nodes)
