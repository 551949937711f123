"""Rules for elementwise ops that change nothing, and for pairs of ops of which one does the work of
both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..._core.edit import Edit, array_of, dims_of, ints_of, used_once

IDEMPOTENT = frozenset({"Relu", "Abs", "Ceil", "Floor", "Round", "Sign"})
NOT_NEGATIVE = frozenset(
    {"Abs", "Sigmoid", "Softmax", "Exp", "Sqrt", "Softplus", "HardSigmoid", "Relu"}
)
INVOLUTIONS = frozenset({"Neg", "Not", "BitwiseNot"})


def identity(node: ir.Node, edit: Edit) -> bool:
    """Identity(x) = x; stays between an input and an output of a graph."""
    source = node.inputs[0]
    return source is not None and edit.bypass(node, source)


def dropout(node: ir.Node, edit: Edit) -> bool:
    """Dropout(x) = x in inference; not where the mask is used or training may be on."""
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]) or edit.opset < 7:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = array_of(node.inputs[2])
        if training is None or training.any():
            return False
    return identity(node, edit)


def neutral(element: float, sides: tuple[int, ...]) -> Callable[[ir.Node, Edit], bool]:
    """X op c = x where every element of c is neutral and c does not widen x. Also takes -0.0 + 0.0
    = 0.0 for -0.0.
    """

    def rule(node: ir.Node, edit: Edit) -> bool:
        for side in sides:
            constant, other = array_of(node.inputs[side]), node.inputs[1 - side]
            if constant is None or other is None or not (constant == element).all():
                continue
            if _keeps_shape(other, constant.shape):
                return edit.bypass(node, other)
        return False

    rule.__name__ = "neutral_operand"
    return rule


def _keeps_shape(value: ir.Value, operand: tuple[int, ...]) -> bool:
    """Whether broadcasting `value` with a tensor of shape `operand` gives the shape of `value` in
    every run.
    """
    if operand == ():
        return True
    dims = dims_of(value)
    if dims is None or len(operand) > len(dims):
        return False
    return all(
        size in (1, dim) for size, dim in zip(operand[::-1], dims[::-1], strict=False)
    )


def one_input(node: ir.Node, edit: Edit) -> bool:
    """Concat, Sum, Mean, Max or Min of one tensor is that tensor."""
    return len(node.inputs) == 1 and identity(node, edit)


def repeated(node: ir.Node, edit: Edit) -> bool:
    """f(f(x)) = f(x), and Relu of what is never negative."""
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if inner is None or inner.domain != "":
        return False
    same = inner.op_type == node.op_type and node.op_type in IDEMPOTENT
    return (same or (node.op_type == "Relu" and _not_negative(inner))) and identity(
        node, edit
    )


def _not_negative(node: ir.Node) -> bool:
    if node.op_type == "Clip":
        low = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return (
            low is not None and low.size == 1 and bool(low >= 0)
        ) or node.attributes.get_float("min", -1.0) >= 0
    return node.op_type in NOT_NEGATIVE


def involution(node: ir.Node, edit: Edit) -> bool:
    """Neg(Neg(x)) = x, Not(Not(x)) = x."""
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if (
        inner is None
        or inner.op_type != node.op_type
        or inner.domain != ""
        or inner.inputs[0] is None
    ):
        return False
    return edit.bypass(node, inner.inputs[0])


def clip_clip(node: ir.Node, edit: Edit) -> bool:
    """Clip(Clip(x, a, b), c, d) = Clip(x, max(a, c), min(b, d)) where the intervals meet; opset 11
    and newer.
    """
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if (
        source is None
        or inner is None
        or inner.op_type != "Clip"
        or inner.domain != ""
        or edit.opset < 11
    ):
        return False
    if not used_once(source):
        return False
    bounds = [_bounds(inner), _bounds(node)]
    if bounds[0] is None or bounds[1] is None:
        return False
    lows = [low for low, _ in (bounds[0], bounds[1]) if low is not None]
    highs = [high for _, high in (bounds[0], bounds[1]) if high is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        return False
    for index, wanted in ((1, low), (2, high)):
        if wanted is not None:
            _set_bound(node, inner, index, wanted, edit)
    edit.set_input(node, 0, inner.inputs[0])
    edit.remove(inner)
    return True


def _bounds(node: ir.Node) -> tuple[float | None, float | None] | None:
    """(low, high) of a Clip, None where open; None if a bound is computed."""
    found: list[float | None] = []
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = array_of(value)
        if value is not None and (array is None or array.size != 1):
            return None
        found.append(None if array is None else array.item())
    return found[0], found[1]


def _set_bound(
    node: ir.Node, inner: ir.Node, index: int, wanted: float, edit: Edit
) -> None:
    for source in (node, inner):
        value = source.inputs[index] if index < len(source.inputs) else None
        array = array_of(value)
        if array is not None and array.item() == wanted:
            if source is inner:
                edit.set_input(node, index, value)
            return


def pad_nothing(node: ir.Node, edit: Edit) -> bool:
    """Pad by zero on every side."""
    pads = list(node.attributes.get_ints("pads", [])) or (
        ints_of(node.inputs[1]) if len(node.inputs) > 1 else None
    )
    return bool(pads) and not np.any(pads) and identity(node, edit)
