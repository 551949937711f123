"""Two models in one graph, fed the same inputs: tensors of one can be compared with the other's."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from .._core.edit import Edit, is_constant
from .._core.graph import holds_graphs
from .._core.joined import WHOLE, join_models, submodel
from .._core.linear import LinearLayer
from .._core.ops import is_standard
from .._dims.surgery import Kept

PRUNED = "pruned/"
"""Prefix of the names of the pruned model's values and nodes."""


class JointGraph:
    """The whole and the pruned model as one graph, every value named after its side.

    `model` has no outputs; weights are shared with both models. `kept`: what stayed of the whole
    model's tensors, by name.
    """

    def __init__(self, whole: ir.Model, pruned: ir.Model, kept: Kept) -> None:
        sides = {WHOLE: whole, PRUNED: pruned}
        self.model = join_models(sides)
        self._kept = kept
        self._edit = Edit(self.model)
        self._values = {value.name: value for value in self.model.graph.inputs}
        for node in self.model.graph:
            for value in node.outputs:
                self._values[value.name] = value

    def submodel(self, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
        """The nodes that make some tensors from others, as a model of its own."""
        return submodel(self.model, inputs, outputs)

    def frontier(self, pending: Sequence[LinearLayer]) -> list[str] | None:
        """Tensors from which everything follows that depends on pending layers of the pruned model.

        Inputs may be among them; what follows from constants alone is not. Nodes of the whole model
        wait for their namesakes. None where the type of one is not known, or no tensor's, and where
        subgraphs may read tensors on their own.
        """
        if any(holds_graphs(node) for node in self.model.graph):
            return None
        names = {f"{PRUNED}{layer.node.outputs[0].name}" for layer in pending}
        waiting = self._waiting(names)
        fed = self._fed()
        wanted: set[ir.Value] = set()
        for node in waiting:
            wanted.update(value for value in node.inputs if value in fed)
        for layer in pending:
            wanted.update(self._target_parts(layer.output))
        frontier = []
        for value in wanted:
            if value.producer() in waiting:
                continue
            if not isinstance(value.type, ir.TensorType):
                return None
            frontier.append(value.name or "")
        return sorted(frontier)

    def _fed(self) -> set[ir.Value]:
        """Values that depend on what the model is fed.

        Others are made anew in every run: a transposed weight takes longer to keep than to make.
        """
        fed = {value for value in self.model.graph.inputs if not is_constant(value)}
        for node in self.model.graph:
            if any(value in fed for value in node.inputs):
                fed.update(node.outputs)
        return fed

    def _waiting(self, names: Collection[str]) -> set[ir.Node]:
        """Nodes that make the named values, their namesakes, and all that depends on them."""
        waiting: set[ir.Node] = set()
        by_output = {}
        for node in self.model.graph:
            for value in node.outputs:
                by_output[value.name] = node
        # the pruned model comes first: its nodes decide for their namesakes
        for node in self._pruned_first():
            output = node.outputs[0].name or ""
            namesake = by_output.get(PRUNED + output.removeprefix(WHOLE))
            depends = any(_made_by(value, waiting) for value in node.inputs)
            named = output in names
            if named or depends or namesake in waiting:
                waiting.add(node)
        return waiting

    def _pruned_first(self) -> list[ir.Node]:
        """Nodes of the pruned model, then of the whole one, each side in the order of the graph."""

        # sorting is stable, and False comes first
        def is_whole(node: ir.Node) -> bool:
            return (node.outputs[0].name or "").startswith(WHOLE)

        return sorted(self.model.graph, key=is_whole)

    def name_of(self, value: ir.Value) -> str:
        """Name in the joint graph of a value of the pruned model."""
        if value.is_graph_input():
            return value.name or ""
        return f"{PRUNED}{value.name}"

    def target_of(self, value: ir.Value) -> str:
        """Name of a tensor that holds what a layer's output of the pruned model should be.

        The whole model's tensor of that name, its lost channels left out; behind a shortcut's Add,
        the whole model's sum less the pruned model's shortcut.
        """
        wanted, *present = self._target_parts(value)
        target = self._kept_part(wanted)
        if present:
            target = self._append("Sub", [target, *present], f"{value.name}_target")
        return target.name or ""

    def _target_parts(self, value: ir.Value) -> list[ir.Value]:
        """Tensors that make the target of a layer's output.

        The whole model's tensor, and the shortcut that the layer does not have to give.
        """
        shortcut = _shortcut(value)
        if shortcut is None:
            return [self._values[f"{WHOLE}{value.name}"]]
        total, other = shortcut
        wanted = self._values[f"{WHOLE}{total.name}"]
        present = self._values[self.name_of(other)]
        return [wanted, present]

    def _kept_part(self, value: ir.Value) -> ir.Value:
        """The slots that stayed of a tensor of the whole model."""
        # `kept` knows the whole model's own names
        name = (value.name or "").removeprefix(WHOLE)
        graph = self.model.graph
        kept = self._kept.get(name, {})
        for axis in sorted(kept):
            slots = kept[axis]
            slots = slots.astype(np.int64)
            indices = self._edit.constant(graph, slots, f"{name}_kept")
            value = self._append("Gather", [value, indices], f"{name}_part", axis=axis)
        return value

    def _append(
        self, op_type: str, inputs: list[ir.Value], stem: str, **attributes: int
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        node.name = self._edit.fresh(stem)
        output = node.outputs[0]
        output.name = self._edit.fresh(stem)
        # the type alone: the joint graph knows no shapes
        output.type = inputs[0].type
        self.model.graph.append(node)
        return output


def _made_by(value: ir.Value | None, nodes: Collection[ir.Node]) -> bool:
    return value is not None and value.producer() in nodes


def _shortcut(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(sum, other summand) where a value is only added to another activation of its own shape."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    use = uses[0]
    add = use.node
    if not is_standard(add, "Add"):
        return None
    other = add.inputs[1 - use.idx]
    # a constant there is a bias
    if other is None or other is value or is_constant(other):
        return None
    # a shortcut has the sum's own shape; a smaller summand broadcasts
    if other.shape is None or other.shape != value.shape:
        return None
    return add.outputs[0], other
