"""Taking channels out: every tensor sliced, every attribute and shape constant made to fit.

The graph is walked once in its order. A node's inputs are already in their new shape; its update
fits attributes and constants; tracing it then must give the expected shape of its outputs. Where it
does not, a computed shape is replaced by one that is right, or the surgery fails and names the
node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Edit
from .._core.graph import label
from .relations import Slots
from .shapes import Shape
from .trace import Trace

Kept = Mapping[str, Mapping[int, Slots]]
"""By value name and axis: the slots that stay, ascending. What is absent stays whole."""

TARGETS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Ops that are given the shape of their output, and by which input."""


class SurgeryError(Exception):
    """A node that cannot be made to fit; the channels that touch it must stay."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{label(node)}: {reason}")
        self.node = node
        self.reason = reason


def set_int(node: ir.Node, name: str, value: int) -> None:
    """Set an integer attribute of a node."""
    node.attributes[name] = ir.AttrInt64(name, value)


class Surgery:
    """One removal of slots from one model, in place.

    `old` is the trace of the model before; `new` grows on the way.
    """

    def __init__(self, model: ir.Model, old: Trace, new: Trace, kept: Kept) -> None:
        self.edit = Edit(model)
        self.old = old
        self.new = new
        self._kept = kept
        # the trace may be of the original model: values of both are told by their names
        self.names = {value.name: value for value in old.shapes if value.name}

    # --- before and after -------------------------------------------------------

    def kept(self, value: ir.Value | None, axis: int) -> Slots | None:
        """Slots of an axis that stay; None if all do."""
        if value is None:
            return None
        axes = self._kept.get(value.name or "")
        if axes is None:
            return None
        rank = len(self.before(value))
        return axes.get(axis % rank)

    def narrowed(self, value: ir.Value | None, axis: int) -> bool:
        """Return whether an axis lost slots."""
        return self.kept(value, axis) is not None

    def before(self, value: ir.Value) -> Shape:
        """Shape of a value before the surgery."""
        return self.old.shapes[self.names[value.name or ""]]

    def after(self, value: ir.Value) -> Shape:
        """Shape that a value must have after the surgery."""
        kept = self._kept.get(value.name or "", {})
        sizes = list(self.before(value))
        for axis, slots in kept.items():
            sizes[axis] = len(slots)
        return tuple(sizes)

    def former(self, value: ir.Value | None) -> ir.Value | None:
        """The value of that name before the surgery."""
        if value is None or not value.name:
            return None
        return self.names.get(value.name)

    def old_constants(self, value: ir.Value | None) -> list[int] | None:
        """Integers that a tensor held before the surgery, whatever size the symbolic dims have."""
        return self.old.constants(self.former(value))

    def positions(self, value: ir.Value, axis: int, slots: Slots) -> Slots:
        """Places of old slots of an axis now; they must all have stayed."""
        kept = self.kept(value, axis)
        if kept is None:
            return slots
        # kept slots ascend: a place is the count of those before
        found = np.searchsorted(kept, slots)
        assert (found < len(kept)).all()
        assert (kept[found] == slots).all()
        return found

    # --- changes ----------------------------------------------------------------

    def constant(
        self, node: ir.Node, index: int, values: Sequence[int] | NDArray[Any]
    ) -> None:
        """Make input `index` of a node a constant: an int64 vector, or an array as given."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        array = values
        if not isinstance(array, np.ndarray):
            array = np.array(array, np.int64)
        stem = node.name or node.outputs[0].name
        value = self.edit.constant(
            graph,
            array,
            f"{stem}_{index}",
        )
        self.edit.set_input(node, index, value)
        self.new.know(value)

    def select(self, node: ir.Node, index: int, axis: int, slots: Slots) -> None:
        """Let a node read only some positions of an axis of input `index`, by a new Gather."""
        graph = node.graph
        source = node.inputs[index]
        assert isinstance(graph, ir.Graph)
        assert source is not None
        positions = slots.astype(np.int64)
        indices = self.edit.constant(
            graph,
            positions,
            f"{source.name}_kept",
        )
        # the walk is at this node: what is put in front is traced at once
        gather = self.edit.node_before(
            node,
            "Gather",
            [source, indices],
            axis=axis,
        )
        gather.outputs[0].type = source.type
        self.new.know(indices)
        self.new.step(gather)
        self.edit.set_input(
            node,
            index,
            gather.outputs[0],
        )
