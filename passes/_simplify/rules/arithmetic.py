"""Rules for elementwise ops that change nothing, and for pairs of which one does both's work."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..._core.edit import Edit, array_of, dims_of, ints_given, used_once
from ..._core.graph import input_of, producer_of

IDEMPOTENT = frozenset({"Relu", "Abs", "Ceil", "Floor", "Round", "Sign"})
NOT_NEGATIVE = frozenset(
    {"Abs", "Sigmoid", "Softmax", "Exp", "Sqrt", "Softplus", "HardSigmoid", "Relu"}
)
INVOLUTIONS = frozenset({"Neg", "Not", "BitwiseNot"})


def identity(node: ir.Node, edit: Edit) -> bool:
    """Identity(x) = x; stays between an input and an output of a graph."""
    source = node.inputs[0]
    if source is None:
        return False
    return edit.bypass(node, source)


def dropout(node: ir.Node, edit: Edit) -> bool:
    """Dropout(x) = x in inference; not where the mask is used or training may be on."""
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        return False
    # up to opset 6 an attribute may turn training on
    if edit.opset < 7:
        return False
    flag = input_of(node, 2)
    if flag is not None:
        training = array_of(flag)
        if training is None or training.any():
            return False
    return identity(node, edit)


def neutral(element: float, sides: tuple[int, ...]) -> Callable[[ir.Node, Edit], bool]:
    """X op c = x where every element of c is neutral and c does not widen x.

    `sides`: inputs at which c may stand. Adding 0.0 to -0.0 gives 0.0, which counts as the same.
    Not where c may be the scale or the bias of a normalization, by which ONNX Runtime knows it.
    """

    def rule(node: ir.Node, edit: Edit) -> bool:
        for side in sides:
            constant = array_of(node.inputs[side])
            other = node.inputs[1 - side]
            if constant is None or other is None:
                continue
            if constant.ndim and _is_normalized(other):
                continue
            if (constant == element).all() and _keeps_shape(other, constant.shape):
                return edit.bypass(node, other)
        return False

    # counts of rules go by this name
    rule.__name__ = "neutral_operand"
    return rule


def by_reciprocal(node: ir.Node, edit: Edit) -> bool:
    """X * (1 / Sqrt(y)) = x / Sqrt(y), as ONNX Runtime knows a normalisation."""
    for index in (0, 1):
        inverse = producer_of(node.inputs[index], "Reciprocal")
        if inverse is None or not used_once(inverse.outputs[0]):
            continue
        if producer_of(inverse.inputs[0], "Sqrt") is None:
            continue
        inputs = [node.inputs[1 - index], inverse.inputs[0]]
        quotient = edit.node_before(node, "Div", inputs)
        return edit.bypass(node, quotient.outputs[0])
    return False


def _is_normalized(value: ir.Value) -> bool:
    """True for x / sqrt(...), and that times a scale."""
    node = producer_of(value, "Div", "Mul")
    if node is None:
        return False
    if node.op_type == "Div":
        return producer_of(node.inputs[1], "Sqrt") is not None
    for factor in node.inputs:
        division = producer_of(factor, "Div")
        if division is not None:
            return producer_of(division.inputs[1], "Sqrt") is not None
    return False


def _keeps_shape(value: ir.Value, operand: tuple[int, ...]) -> bool:
    """True if broadcasting `value` with a tensor of shape `operand` never changes its shape."""
    if operand == ():
        return True
    dims = dims_of(value)
    if dims is None or len(operand) > len(dims):
        return False
    # broadcasting aligns shapes at their ends
    aligned = zip(
        operand[::-1],
        dims[::-1],
        strict=False,
    )
    return all(size in (1, dim) for size, dim in aligned)


def one_input(node: ir.Node, edit: Edit) -> bool:
    """Concat, Sum, Mean, Max or Min of one tensor is that tensor."""
    if len(node.inputs) != 1:
        return False
    return identity(node, edit)


def repeated(node: ir.Node, edit: Edit) -> bool:
    """f(f(x)) = f(x), and Relu of what is never negative."""
    inner = producer_of(node.inputs[0])
    if inner is None:
        return False
    if inner.op_type == node.op_type and node.op_type in IDEMPOTENT:
        return identity(node, edit)
    if node.op_type == "Relu" and _not_negative(inner):
        return identity(node, edit)
    return False


def _not_negative(node: ir.Node) -> bool:
    if node.op_type != "Clip":
        return node.op_type in NOT_NEGATIVE
    bound = input_of(node, 1)
    low = array_of(bound)
    if low is not None and low.size == 1 and bool(low >= 0):
        return True
    # the bound of opsets before 11; without one, below every number
    former_low = node.attributes.get_float("min", -1.0)
    return former_low >= 0


def involution(node: ir.Node, edit: Edit) -> bool:
    """Neg(Neg(x)) = x, Not(Not(x)) = x."""
    inner = producer_of(node.inputs[0], node.op_type)
    if inner is None or inner.inputs[0] is None:
        return False
    return edit.bypass(node, inner.inputs[0])


def clip_clip(node: ir.Node, edit: Edit) -> bool:
    """Clip(Clip(x, a, b), c, d) = Clip(x, max(a, c), min(b, d)) where the intervals meet.

    Of opset 11 and newer, where bounds are inputs.
    """
    inner = producer_of(node.inputs[0], "Clip")
    if inner is None or edit.opset < 11:
        return False
    if not used_once(inner.outputs[0]):
        return False
    first = _bounds(inner)
    second = _bounds(node)
    if first is None or second is None:
        return False
    low = _tighter(max, first[0], second[0])
    high = _tighter(min, first[1], second[1])
    # disjoint: the result is a constant, which the formula does not give
    if low is not None and high is not None and low > high:
        return False
    if low is not None:
        _set_bound(
            node,
            inner,
            1,
            low,
            edit,
        )
    if high is not None:
        _set_bound(
            node,
            inner,
            2,
            high,
            edit,
        )
    edit.set_input(node, 0, inner.inputs[0])
    edit.remove(inner)
    return True


def _tighter(
    choose: Callable[[float, float], float], first: float | None, second: float | None
) -> float | None:
    """The bound that holds where two do, None where both are open."""
    if first is None:
        return second
    if second is None:
        return first
    return choose(first, second)


def _bounds(node: ir.Node) -> tuple[float | None, float | None] | None:
    """(low, high) of a Clip, None where open; None if a bound is computed."""
    found: list[float | None] = []
    for index in (1, 2):
        value = input_of(node, index)
        if value is None:
            found.append(None)
            continue
        array = array_of(value)
        if array is None or array.size != 1:
            return None
        found.append(array.item())
    low, high = found
    return low, high


def _set_bound(
    node: ir.Node, inner: ir.Node, index: int, wanted: float, edit: Edit
) -> None:
    """Make the constant that holds `wanted`, of either Clip, input `index` of the outer one."""
    for source in (node, inner):
        value = input_of(source, index)
        array = array_of(value)
        if array is None or array.item() != wanted:
            continue
        if source is inner:
            edit.set_input(node, index, value)
        return


def pad_nothing(node: ir.Node, edit: Edit) -> bool:
    """Pad by zero on every side."""
    pads = ints_given(node, "pads", 1)
    if not pads or any(pads):
        return False
    return identity(node, edit)
