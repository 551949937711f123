"""Rules that remove redundant Cast nodes, and replace CastLike by Cast where the type is known."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.edit import Edit
from ..._core.graph import producer_of

D = ir.DataType
SIGNED = [D.INT8, D.INT16, D.INT32, D.INT64]
UNSIGNED = [D.UINT8, D.UINT16, D.UINT32, D.UINT64]
INTEGERS = {*SIGNED, *UNSIGNED}
FLOAT_BITS = {
    D.FLOAT16: (11, 5),
    D.BFLOAT16: (8, 8),
    D.FLOAT: (24, 8),
    D.DOUBLE: (53, 11),
}
"""Significand bits (with the hidden one) and exponent bits (IEEE 754; bfloat16: 8 and 8)."""


def widens(source: ir.DataType, target: ir.DataType) -> bool:
    """True if every value of `source` is a value of `target`, so that casting loses nothing."""
    # True and False are 1 and 0 in every numeric type
    if source == target or source == D.BOOL:
        return True
    if source in FLOAT_BITS and target in FLOAT_BITS:
        significand, exponent = FLOAT_BITS[source]
        wide_significand, wide_exponent = FLOAT_BITS[target]
        return significand <= wide_significand and exponent <= wide_exponent
    if source not in INTEGERS:
        return False
    if target in FLOAT_BITS:
        if target == D.FLOAT16:
            return False
        significand, _ = FLOAT_BITS[target]
        return _magnitude_bits(source) <= significand
    if target not in INTEGERS:
        return False
    # negative numbers would wrap around
    if source in SIGNED and target in UNSIGNED:
        return False
    return _magnitude_bits(source) <= _magnitude_bits(target)


def _magnitude_bits(integer: ir.DataType) -> int:
    if integer in SIGNED:
        return integer.bitwidth - 1
    return integer.bitwidth


def cast_to_same(node: ir.Node, edit: Edit) -> bool:
    """Cast(x) = x where x has that type already."""
    source = node.inputs[0]
    if source is None or source.dtype is None:
        return False
    if source.dtype != node.attributes.get_int("to", 0):
        return False
    return edit.bypass(node, source)


def cast_cast(node: ir.Node, edit: Edit) -> bool:
    """Cast(Cast(x)) = Cast(x) where the inner cast loses nothing and the outer sees the same."""
    inner = producer_of(node.inputs[0], "Cast")
    if inner is None or inner.inputs[0] is None:
        return False
    first = inner.inputs[0].dtype
    between = D(inner.attributes.get_int("to", 0))
    last = D(node.attributes.get_int("to", 0))
    if first is None or not widens(first, between):
        return False
    if not _sees_the_same(first, between, last):
        return False
    edit.set_input(node, 0, inner.inputs[0])
    return True


def _sees_the_same(first: ir.DataType, between: ir.DataType, last: ir.DataType) -> bool:
    """True if a cast to `last` gives the same from `first` as from the wider `between`.

    A float that becomes an integer of another type is left alone.
    """
    if last in (first, D.BOOL):
        return True
    whole = INTEGERS | {D.BOOL}
    if {first, between, last} <= whole:
        return True
    if last not in FLOAT_BITS:
        return False
    return first in FLOAT_BITS or first in whole


def cast_like(node: ir.Node, edit: Edit) -> bool:
    """CastLike(x, y) = Cast(x) to the type of y, where that is known: y may then go."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return False
    attributes = {}
    # of casts to 8-bit floats; older opsets do not know it
    if "saturate" in node.attributes:
        attributes["saturate"] = node.attributes.get_int("saturate", 1)
    to = int(like.dtype)
    cast = edit.node_before(
        node,
        "Cast",
        [node.inputs[0]],
        to=to,
        **attributes,
    )
    old = node.outputs[0]
    new = cast.outputs[0]
    new.type = old.type
    new.shape = old.shape
    return edit.bypass(node, new)
