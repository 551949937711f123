"""A whole model in float16, its inputs and outputs float32, with float32 islands where float16
cannot hold the numbers.

Nodes are half or single; a Cast stands where a value passes from one to the other, one for each
value and direction, right behind its producer (so that subgraphs reach it too). Weights are cast
when they are written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, Declined, PassOutcome
from ..._core.edit import is_constant
from ..._core.graph import Names, refresh_shapes
from ..._core.lazy import DerivedTensor, set_tensor
from ..._core.targets import TARGETS
from ..inserter import Inserter
from ..layers import label
from .precision import (
    Reasons,
    Slots,
    constants_out_of_range,
    half_slots,
    is_float,
    ranges_out_of_range,
    size_arithmetic,
)

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_half(model: ir.Model, context: Context, names: Names) -> PassOutcome:
    """Make every node half whose operator, constants and (with data) ranges allow it; the interface
    stays float32.

    Shapes: unchanged. Stats: `nodes` (count, now float16), `islands` (count of nodes kept float32),
    `casts` (count of Cast nodes added), `weights` (count, now float16). Function bodies stay as
    they are. Numbers below 6e-8 become 0 and those below 6.1e-5 lose digits; layers made of such
    numbers stay float32.
    """
    slots, reasons = half_nodes(model, context)
    outcome = PassOutcome(changed=len(slots))
    outcome.declined = [
        Declined(label(node), reason) for node, reason in reasons.items()
    ]
    if not slots:
        return outcome
    if not TARGETS[context.target].computes_half:
        context.warn(
            "float16",
            "ONNX Runtime's CPU provider computes in float32 all the same: "
            "compress-weights(fp16) makes as small a file and keeps every fused kernel",
        )
    caster = _Caster(names, slots)
    for graph in list(model.graphs()):
        caster.convert(graph)
    for node, slot in slots.items():
        _retype(node, slot)
    refresh_shapes(model)
    outcome.stats = {
        "nodes": len(slots),
        "islands": len(reasons),
        "casts": caster.casts,
        "weights": caster.weights,
    }
    return outcome


def half_nodes(
    model: ir.Model, context: Context
) -> tuple[dict[ir.Node, Slots], Reasons]:
    """The nodes to make half, and why each other node that touches float32 stays single."""
    slots: dict[ir.Node, Slots] = {}
    reasons: Reasons = {}
    for graph in model.graphs():
        for node in graph:
            if not any(is_float(v) for v in (*node.inputs, *node.outputs)):
                continue
            found = half_slots(node, model.opset_imports.get("", 1))
            if isinstance(found, str):
                reasons[node] = found
            elif found.inputs or found.outputs:
                slots[node] = found
    for single in (constants_out_of_range(slots), size_arithmetic(slots)):
        reasons |= single
        slots = {n: s for n, s in slots.items() if n not in reasons}
    if slots and context.has_data():
        reasons |= ranges_out_of_range(model, context, slots)
    elif slots:
        context.warn(
            "float16",
            "without data nothing shows which activations overflow: --data keeps those float32",
        )
    return {n: s for n, s in slots.items() if n not in reasons}, reasons


class _Caster:
    """Brings every float32 value to the precision that each of its users wants."""

    def __init__(self, names: Names, slots: dict[ir.Node, Slots]) -> None:
        self.names = names
        self.slots = slots
        self.casts = 0
        self.weights = 0

    def convert(self, graph: ir.Graph) -> None:
        """Handle the values that `graph` owns: its inputs, initializers and the outputs of its
        nodes.
        """
        inserter = Inserter(graph, self.names)
        for value in list(graph.initializers.values()):
            if is_float(value) and is_constant(value):
                self._constant(inserter, value)
        initializers = {id(v) for v in graph.initializers.values() if is_constant(v)}
        for value in list(graph.inputs):
            if is_float(value) and id(value) not in initializers:
                self._single(inserter, value)
        for node in list(graph):
            made_half = self.slots[node].outputs if node in self.slots else frozenset()
            for index, value in enumerate(node.outputs):
                if not is_float(value):
                    continue
                if index in made_half:
                    self._half(inserter, value)
                else:
                    self._single(inserter, value)

    def _half_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        return [
            (n, i)
            for n, i in value.uses()
            if n in self.slots and i in self.slots[n].inputs
        ]

    def _constant(self, inserter: Inserter, value: ir.Value) -> None:
        uses = self._half_uses(value)
        if not uses:
            return
        assert value.const_value is not None
        self.weights += 1
        cast = DerivedTensor(value.const_value, _to_half, HALF)
        if len(uses) == len(list(value.uses())) and not value.is_graph_output():
            set_tensor(value, cast)
            return
        copy = inserter.initializer(f"{value.name}_half", cast)
        for node, index in uses:
            node.replace_input_with(index, copy)

    def _single(self, inserter: Inserter, value: ir.Value) -> None:
        """A value that is made in float32: half users read a Cast of it."""
        uses = self._half_uses(value)
        if uses:
            cast = self._cast(inserter, value, HALF)
            for node, index in uses:
                node.replace_input_with(index, cast)

    def _half(self, inserter: Inserter, value: ir.Value) -> None:
        """A value that is made in float16: single users and the graph's outputs read a Cast of
        it.
        """
        half = set(self._half_uses(value))
        others = [(n, i) for n, i in value.uses() if (n, i) not in half]
        name, is_output = value.name or "value", value.is_graph_output()
        if is_output:
            value.name = self.names.fresh(f"{name}_half")
        if is_output or others:
            cast = self._cast(inserter, value, SINGLE)
            for node, index in others:
                node.replace_input_with(index, cast)
            if is_output:
                self._become_output(inserter.graph, value, cast, name)
        value.type = ir.TensorType(HALF)

    def _become_output(
        self, graph: ir.Graph, value: ir.Value, cast: ir.Value, name: str
    ) -> None:
        """`cast` is the graph's output now, under the old name and with what was said of it."""
        cast.name, cast.doc_string = name, value.doc_string
        cast.metadata_props.update(value.metadata_props)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = cast

    def _cast(
        self, inserter: Inserter, value: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        shape = None if value.shape is None else value.shape.copy()
        node = inserter.node("Cast", [value], "cast", dtype, shape, {"to": int(dtype)})
        inserter.place_after(value, [node])
        self.casts += 1
        return node.outputs[0]


def _to_half(block: NDArray[Any], start: int) -> NDArray[Any]:
    return block.astype(np.float16)


def _retype(node: ir.Node, slot: Slots) -> None:
    """Attributes that say float32 where the output is float16 now."""
    if not slot.outputs:
        return
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
    elif node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        value = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor(
            "value", ir.Tensor(value.astype(np.float16))
        )
