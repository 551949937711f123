"""The walk that takes channels out of a model.

It slices what is constant, updates every node, and checks every shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.declared import forget_inner_declarations
from .._core.edit import is_constant
from .._core.graph import refresh_shapes
from .._core.lazy import set_tensor
from .._core.ops import is_standard
from .ops.elementwise import broadcast
from .relations import optional_input
from .sliced import SlicedTensor
from .surgery import TARGETS, Kept, Surgery, SurgeryError
from .table import RULES, UPDATES
from .trace import Trace

COPIED = 0
"""In the shape given to a Reshape without `allowzero`: the size of the same axis of its input."""

REST = -1
"""In the shape given to a Reshape: the size that the others leave."""

Told = int | Fraction
"""Entry of a shape that is given: a number, or the part that is left of the computed one."""


def remove_slots(model: ir.Model, kept: Kept, old: Trace) -> None:
    """Keep only `kept` of every tensor, in place. Weights are not copied.

    `old`: the trace of the model as it is, or of its original. Errors: SurgeryError at the first
    node that cannot be made to fit; the model is then spoilt.
    """
    for name, axes in kept.items():
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            set_tensor(value, SlicedTensor(value.const_value, axes))
    new = Trace(model, old.sizes)
    surgery = Surgery(
        model,
        old,
        new,
        kept,
    )
    # a copy of the list: updates insert nodes in front of those they fit
    for node in list(model.graph):
        try:
            _fit(node, surgery, kept)
        except SurgeryError:
            raise
        # an update may meet a node that it was not made for: what touches it stays
        except Exception as error:
            reason = f"its update failed ({type(error).__name__}: {error})"
            raise SurgeryError(node, reason) from error
    # they have the sizes from before
    forget_inner_declarations(model)
    refresh_shapes(model)


def _fit(node: ir.Node, surgery: Surgery, kept: Kept) -> None:
    """Fit one node to the new shapes of its inputs."""
    update = UPDATES.get((node.domain, node.op_type))
    if update is not None and _touches(node, kept):
        update(node, surgery)
    _hold_numbers(node, surgery)
    _follow(node, surgery)


def _touches(node: ir.Node, kept: Kept) -> bool:
    """Return whether a value that the node reads or makes loses slots."""
    both = (*node.inputs, *node.outputs)
    return any(value.name in kept for value in both if value is not None)


# --- numbers that come from shapes ----------------------------------------------


def _hold_numbers(node: ir.Node, surgery: Surgery) -> None:
    """Keep the value of sizes that enter the arithmetic of activations, as in 1 / sqrt(width)."""
    if _makes_numbers(node, surgery):
        return
    for index, value in enumerate(node.inputs):
        old = surgery.former(value)
        if value is None or old is None or is_constant(value):
            continue
        before = surgery.old.arrays.get(old)
        if before is None or not _enters_arithmetic(node, before):
            continue
        # a table that loses channels itself is no size, but a small weight
        if surgery.after(value) != surgery.before(value):
            continue
        now = surgery.new.arrays.get(value)
        if now is not None and np.array_equal(before, now):
            continue
        # under other sizes of the input the number is another: no constant can stand for it
        twin = surgery.old.twin
        if twin is not None and not np.array_equal(before, twin.arrays.get(old, ())):
            raise SurgeryError(
                node,
                "it computes with sizes that follow both channels and the input "
                f"('{value.name}')",
            )
        surgery.constant(node, index, before)


def _makes_numbers(node: ir.Node, surgery: Surgery) -> bool:
    """Return whether a node was itself part of a computation of sizes, none of activations."""
    for value in node.outputs:
        old = surgery.former(value)
        if old is not None and old in surgery.old.arrays:
            return True
    return False


def _enters_arithmetic(node: ir.Node, numbers: NDArray[np.generic]) -> bool:
    rule = RULES.get((node.domain, node.op_type))
    return numbers.dtype.kind == "f" or rule is broadcast


# --- shapes that are given ------------------------------------------------------


def _follow(node: ir.Node, surgery: Surgery) -> None:
    """Trace a node, and give it another output shape where the one it makes is wrong."""
    surgery.new.step(node)
    wrong = _misfit(node, surgery)
    # a shape that the graph computes may follow the channels by itself
    if wrong is not None and is_standard(node, *TARGETS):
        _retarget(node, surgery)
        surgery.new.step(node)
        wrong = _misfit(node, surgery)
    if wrong is not None:
        made = surgery.new.shape(wrong)
        expected = surgery.after(wrong)
        raise SurgeryError(node, f"makes {made}, not {expected}")


def _misfit(node: ir.Node, surgery: Surgery) -> ir.Value | None:
    """An output whose shape is not the expected one."""
    for value in node.outputs:
        if value.name not in surgery.names:
            continue
        if surgery.new.shape(value) != surgery.after(value):
            return value
    return None


def _retarget(node: ir.Node, surgery: Surgery) -> None:
    """Give the op the shape it must make.

    Constants where a dim is static, the op's own computation where it is dynamic.
    """
    index = TARGETS[node.op_type]
    value = optional_input(node, index)
    given = surgery.new.ints(value)
    expected = surgery.after(node.outputs[0])
    if value is None or given is None or len(given) != len(expected):
        raise SurgeryError(node, "the shape that it is given is not known")
    allows_zero = node.attributes.get_int("allowzero", 0)
    has_rest = node.op_type == "Reshape" and not allows_zero and REST not in given
    told: list[Told] = []
    for axis, (number, size) in enumerate(zip(given, expected, strict=True)):
        entry = _told(
            node,
            axis,
            number,
            size,
            surgery,
        )
        # one size that changes is what the others leave: nothing is computed for it
        if has_rest and isinstance(entry, Fraction) and entry != 1:
            entry = REST
            has_rest = False
        told.append(entry)
    _set_target(
        node,
        index,
        value,
        told,
        surgery,
    )


def _told(node: ir.Node, axis: int, number: int, size: int, surgery: Surgery) -> Told:
    """Entry for one axis: a number, or the part that is left of the one that the graph computes.

    `number`: the one given now; `size`: the size that the axis must have.
    """
    result = surgery.names[node.outputs[0].name or ""]
    dynamic = surgery.old.varies(result, axis)
    allows_zero = node.attributes.get_int("allowzero", 0)
    copies = node.op_type == "Reshape" and number == COPIED and not allows_zero
    if copies or number == REST:
        # these say the same whatever the input's size is
        return number
    broadcasts = node.op_type == "Expand" and number == 1
    if not dynamic:
        return number if broadcasts else size
    part = Fraction(size, max(number, 1))
    if part == 1 or broadcasts:
        return Fraction(1)
    # as of batch x heads: under any other size of the input the same part must be left
    twin = surgery.old.twin
    other = twin.shape(result) if twin is not None else None
    before = surgery.old.shape(result)
    if other is None or before is None or number != before[axis]:
        raise SurgeryError(
            node, "a dynamic size of the shape that it is given would change"
        )
    if other[axis] % part.denominator:
        raise SurgeryError(
            node,
            "a dynamic size of the shape that it is given would not shrink by a fixed part",
        )
    return part


def _set_target(
    node: ir.Node,
    index: int,
    value: ir.Value,
    told: Sequence[Told],
    surgery: Surgery,
) -> None:
    """Set a new shape tensor: given numbers, and parts of what the old one computes."""
    is_dynamic = []
    static = []
    parts = []
    for entry in told:
        if isinstance(entry, Fraction):
            is_dynamic.append(True)
            # a shape of which parts are computed keeps those, by a Where
            static.append(0)
            parts.append(entry)
        else:
            is_dynamic.append(False)
            static.append(entry)
            parts.append(Fraction(1))
    dynamic = np.array(is_dynamic)
    if not dynamic.any():
        surgery.constant(node, index, static)
        return
    numerators = np.array([part.numerator for part in parts], np.int64)
    denominators = np.array([part.denominator for part in parts], np.int64)
    computed = value
    is_multiplied = numerators != 1
    if is_multiplied.any():
        computed = _computed(node, "Mul", [computed, numerators], surgery)
    is_divided = denominators != 1
    if is_divided.any():
        computed = _computed(node, "Div", [computed, denominators], surgery)
    if not dynamic.all():
        numbers = np.array(static, np.int64)
        computed = _computed(node, "Where", [dynamic, computed, numbers], surgery)
    surgery.edit.set_input(node, index, computed)


def _computed(
    node: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | NDArray[Any]],
    surgery: Surgery,
) -> ir.Value:
    """Put a node of shape arithmetic in front of another, and trace it; arrays are constants."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    values: list[ir.Value | None] = []
    for given in inputs:
        value = given
        if not isinstance(value, ir.Value):
            value = surgery.edit.constant(graph, value, f"{node.name}_shape")
            surgery.new.know(value)
        values.append(value)
    made = surgery.edit.node_before(node, op, values)
    made.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    surgery.new.step(made)
    return made.outputs[0]
