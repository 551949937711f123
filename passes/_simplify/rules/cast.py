"""Rules for casts: to the same type, of a cast that loses nothing, like a tensor of known type."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.edit import Edit

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
"""Significand bits (with the hidden one) and exponent bits."""


def widens(source: ir.DataType, target: ir.DataType) -> bool:
    """Whether every value of `source` is a value of `target`, so that casting loses nothing."""
    if source == target or source == D.BOOL:
        return True
    if source in FLOAT_BITS and target in FLOAT_BITS:
        return all(
            a <= b for a, b in zip(FLOAT_BITS[source], FLOAT_BITS[target], strict=True)
        )
    if source not in INTEGERS:
        return False
    bits = source.bitwidth - (source in SIGNED)
    if target in FLOAT_BITS:
        return bits <= FLOAT_BITS[target][0] and target != D.FLOAT16
    if target not in INTEGERS or (source in SIGNED and target in UNSIGNED):
        return False
    return bits <= target.bitwidth - (target in SIGNED)


def cast_to_same(node: ir.Node, edit: Edit) -> bool:
    """Cast(x) = x where x has that type already."""
    source = node.inputs[0]
    if (
        source is None
        or source.dtype is None
        or source.dtype != node.attributes.get_int("to", 0)
    ):
        return False
    return edit.bypass(node, source)


def cast_cast(node: ir.Node, edit: Edit) -> bool:
    """Cast(Cast(x)) = Cast(x) where the inner cast loses nothing and the outer sees the same
    number.
    """
    middle = node.inputs[0]
    inner = middle.producer() if middle is not None else None
    if (
        inner is None
        or inner.op_type != "Cast"
        or inner.domain != ""
        or inner.inputs[0] is None
    ):
        return False
    first, between = inner.inputs[0].dtype, D(inner.attributes.get_int("to", 0))
    last = D(node.attributes.get_int("to", 0))
    if first is None or not widens(first, between):
        return False
    all_integers = {first, between, last} <= INTEGERS | {D.BOOL}
    to_float = last in FLOAT_BITS and (
        first in FLOAT_BITS or first in INTEGERS or first == D.BOOL
    )
    if not (last in (first, D.BOOL) or all_integers or to_float):
        return False
    edit.set_input(node, 0, inner.inputs[0])
    return True


def cast_like(node: ir.Node, edit: Edit) -> bool:
    """CastLike(x, y) = Cast(x) to the type of y, where that is known: y need not be computed for
    it.
    """
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return False
    attributes = (
        {"saturate": node.attributes.get_int("saturate", 1)}
        if "saturate" in node.attributes
        else {}
    )
    cast = edit.node_before(
        node, "Cast", [node.inputs[0]], to=int(like.dtype), **attributes
    )
    cast.outputs[0].type, cast.outputs[0].shape = (
        node.outputs[0].type,
        node.outputs[0].shape,
    )
    return edit.bypass(node, cast.outputs[0])
