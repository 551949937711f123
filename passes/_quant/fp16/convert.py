"""A whole model in float16 but for its ports, with float32 islands where float16 lacks range.

Nodes are half or single; a Cast stands where a value passes from one to the other, one for each
value and direction, right behind its producer (so that subgraphs reach it too). Weights are cast
when they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, Declined, PassOutcome
from ..._core.edit import is_constant
from ..._core.graph import Names, label, refresh_shapes
from ..._core.lazy import DerivedTensor, set_tensor
from ..._core.targets import TARGETS
from ..inserter import Inserter
from .precision import (
    HalfOperands,
    Reasons,
    constants_out_of_range,
    half_operands,
    is_float,
    ranges_out_of_range,
    size_arithmetic,
)

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


WhyNot = Callable[[ir.Node], str | None]
"""Reason why a node is not to be touched; None if it is."""


def to_half(
    model: ir.Model,
    context: Context,
    names: Names,
    why_not: WhyNot = lambda node: None,
) -> PassOutcome:
    """Make every node half whose operator, constants and (with data) ranges allow it; the interface
    stays float32.

    `why_not`: nodes that stay as they are. Shapes: unchanged. Stats: `nodes` (count, now float16),
    `islands` (count of nodes kept float32), `casts` (count of Cast nodes added), `weights` (count,
    now float16). Function bodies stay as they are. Numbers below 6e-8 become 0 and those below
    6.1e-5 lose digits; layers made of such numbers stay float32.
    """
    operands, reasons = half_nodes(model, context, why_not)
    outcome = PassOutcome(changed=len(operands))
    outcome.declined = [
        Declined(label(node), reason) for node, reason in reasons.items()
    ]
    if not operands:
        return outcome
    if not TARGETS[context.target].computes_half:
        context.warn(
            "float16",
            "ONNX Runtime's CPU provider computes in float32 all the same: "
            "compress-weights(fp16) makes as small a file and keeps every fused kernel",
        )
    caster = _Caster(names, operands)
    # a list: nodes are added
    for graph in list(model.graphs()):
        caster.convert(graph)
    for node, own in operands.items():
        _retype(node, own)
    refresh_shapes(model)
    outcome.stats = {
        "nodes": len(operands),
        "islands": len(reasons),
        "casts": caster.casts,
        "weights": caster.weights,
    }
    return outcome


def half_nodes(
    model: ir.Model, context: Context, why_not: WhyNot
) -> tuple[dict[ir.Node, HalfOperands], Reasons]:
    """The nodes to make half, and a reason for each other node that touches float32."""
    operands: dict[ir.Node, HalfOperands] = {}
    reasons: Reasons = {}
    opset = model.opset_imports.get("", 1)
    for graph in model.graphs():
        for node in graph:
            if not touches_float(node):
                continue
            found = why_not(node) or half_operands(node, opset)
            if isinstance(found, str):
                reasons[node] = found
            elif found.inputs or found.outputs:
                operands[node] = found
    # numbers before ranges, which cost a run of the model
    for single in (constants_out_of_range(operands), size_arithmetic(operands)):
        reasons |= single
        operands = {n: s for n, s in operands.items() if n not in reasons}
    if operands and context.has_data():
        reasons |= ranges_out_of_range(model, context, operands)
    elif operands:
        context.warn(
            "float16",
            "without data nothing shows which activations overflow: --data keeps those float32",
        )
    return {n: s for n, s in operands.items() if n not in reasons}, reasons


def touches_float(node: ir.Node) -> bool:
    """True for a node that reads or makes float32."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


class _Caster:
    """Brings every float32 value to the precision that each of its users wants."""

    def __init__(self, names: Names, operands: dict[ir.Node, HalfOperands]) -> None:
        self.names = names
        self.operands = operands
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
        # inputs with a default that callers may override are cast like any other input
        initializers = {id(v) for v in graph.initializers.values() if is_constant(v)}
        for value in list(graph.inputs):
            if is_float(value) and id(value) not in initializers:
                self._single(inserter, value)
        for node in list(graph):
            made_half = (
                self.operands[node].outputs if node in self.operands else frozenset()
            )
            for index, value in enumerate(node.outputs):
                if not is_float(value):
                    continue
                if index in made_half:
                    self._half(inserter, value)
                else:
                    self._single(inserter, value)

    def _half_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Uses of a value at which it may be float16."""
        uses = []
        for node, index in value.uses():
            if node in self.operands and index in self.operands[node].inputs:
                uses.append((node, index))
        return uses

    def _constant(self, inserter: Inserter, value: ir.Value) -> None:
        """Store a constant in float16, beside the float32 one where that is read too."""
        uses = self._half_uses(value)
        if not uses:
            return
        assert value.const_value is not None
        self.weights += 1
        cast = DerivedTensor(value.const_value, _to_half, HALF)
        is_only_half = len(uses) == len(value.uses())
        # nobody reads it in float32 any more
        if is_only_half and not value.is_graph_output():
            set_tensor(value, cast)
            return
        copy = inserter.initializer(f"{value.name}_half", cast)
        for node, index in uses:
            node.replace_input_with(index, copy)

    def _single(self, inserter: Inserter, value: ir.Value) -> None:
        """Let half users of a value that is made in float32 read a Cast of it."""
        uses = self._half_uses(value)
        if not uses:
            return
        cast = self._cast(inserter, value, HALF)
        for node, index in uses:
            node.replace_input_with(index, cast)

    def _half(self, inserter: Inserter, value: ir.Value) -> None:
        """Let float32 users of a value that is made in float16, and the graph's outputs, read a
        Cast of it.
        """
        half = set(self._half_uses(value))
        others = [(n, i) for n, i in value.uses() if (n, i) not in half]
        name = value.name or "value"
        is_output = value.is_graph_output()
        if is_output:
            # the interface keeps the name, for the Cast's output
            value.name = self.names.fresh(f"{name}_half")
        if is_output or others:
            cast = self._cast(inserter, value, SINGLE)
            for node, index in others:
                node.replace_input_with(index, cast)
            if is_output:
                self._become_output(
                    inserter.graph,
                    value,
                    cast,
                    name,
                )
        value.type = ir.TensorType(HALF)

    def _become_output(
        self, graph: ir.Graph, value: ir.Value, cast: ir.Value, name: str
    ) -> None:
        """Make `cast` the graph's output under the old name, with the notes on it."""
        cast.name = name
        cast.doc_string = value.doc_string
        cast.metadata_props.update(value.metadata_props)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = cast

    def _cast(
        self, inserter: Inserter, value: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        shape = None if value.shape is None else value.shape.copy()
        node = inserter.node(
            "Cast",
            [value],
            "cast",
            dtype,
            shape,
            {"to": int(dtype)},
        )
        inserter.place_after(value, [node])
        self.casts += 1
        return node.outputs[0]


def _to_half(block: NDArray[Any], start: int) -> NDArray[Any]:
    return block.astype(np.float16)


def _retype(node: ir.Node, own: HalfOperands) -> None:
    """Change attributes that say float32 where the output is float16 now."""
    if not own.outputs:
        return
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
    elif node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        # without the attribute it makes zeros of float32
        value = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        half = ir.Tensor(value.astype(np.float16))
        node.attributes["value"] = ir.AttrTensor("value", half)
