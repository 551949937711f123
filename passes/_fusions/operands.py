"""Operands of the nodes of a pattern: scalars, and what they are added to or multiplied by."""

from __future__ import annotations

import onnx_ir as ir

from .._core.edit import array_of, dims_of
from .._core.graph import producer_of


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    array = array_of(value)
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    return float(array.reshape(()))


def pair_of(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Both operands of a node that has two; None where one is left out."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    return first, second


def beside_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Operand that a commutative node combines with a constant number, and the number."""
    pair = pair_of(node)
    if pair is None:
        return None
    for value, other in (pair, pair[::-1]):
        number = scalar_of(other)
        # a scalar of rank four would raise the rank of the result
        if number is not None and not dims_of(other):
            return value, number
    return None


def scaled(value: ir.Value) -> tuple[ir.Value, float]:
    """Source of which a value is a constant multiple, and the factor; 1 where it is none."""
    factor = 1.0
    while True:
        node = producer_of(
            value,
            "Mul",
            "Div",
        )
        if node is None:
            return value, factor
        pair = pair_of(node)
        if pair is None:
            return value, factor
        if node.op_type == "Div":
            divisor = scalar_of(pair[1])
            if not divisor or dims_of(pair[1]):
                return value, factor
            value, factor = pair[0], factor / divisor
            continue
        found = beside_scalar(node)
        if found is None:
            return value, factor
        value, factor = found[0], factor * found[1]


def is_last(axis: int, rank: int) -> bool:
    """True for the last axis of a tensor, counted from either end."""
    return axis in (-1, rank - 1)
