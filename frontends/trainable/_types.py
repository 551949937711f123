"""Element types of a node's outputs, from the op's schema and the few ops whose attributes
decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

Dtype = ir.DataType | None

_BY_ATTRIBUTE = {
    "Cast": ("to", None),
    "BitCast": ("to", None),
    "RandomNormal": ("dtype", 1),
    "RandomUniform": ("dtype", 1),
    "Multinomial": ("dtype", 6),
    "SequenceEmpty": ("dtype", 1),
    "MelWeightMatrix": ("output_datatype", 1),
    "HannWindow": ("output_datatype", 1),
    "HammingWindow": ("output_datatype", 1),
    "BlackmanWindow": ("output_datatype", 1),
    "EyeLike": ("dtype", 0),
    "RandomNormalLike": ("dtype", 0),
    "RandomUniformLike": ("dtype", 0),
    "Bernoulli": ("dtype", 0),
    "DequantizeLinear": ("output_dtype", 0),
    "QuantizeLinear": ("output_dtype", 0),
}
"""Attribute that names the output's type, and its default; 0: the input decides."""

_BY_INPUT = {"CastLike": 1, "DequantizeLinear": 1, "QuantizeLinear": 2}
"""Input whose type the output has, where no attribute says otherwise (the first one for the
rest).
"""


def output_dtypes(
    domain: str,
    op: str,
    opset: int,
    attributes: Mapping[str, Any],
    inputs: Sequence[Dtype],
    count: int,
) -> list[Dtype]:
    """Return the element types of `count` outputs, None where unknown.

    Of sequences and optionals they are those of what they hold.
    """
    # what a schema cannot say: the type is in an attribute, or in another input
    if domain == "" and op in _BY_ATTRIBUTE:
        dtype = _by_attribute(op, attributes, inputs)
        return [dtype] * count
    if domain == "" and op == "ConstantOfShape":
        value = attributes.get("value")
        dtype = ir.DataType.FLOAT if value is None else value.dtype
        return [dtype] * count
    if domain == "" and op == "CastLike":
        dtype = inputs[1]
        return [dtype] * count
    schema = schema_of(domain, op, opset)
    if schema is None:
        return [None] * count
    return [_by_schema(schema, inputs, index) for index in range(count)]


def _by_attribute(
    op: str, attributes: Mapping[str, Any], inputs: Sequence[Dtype]
) -> Dtype:
    name, default = _BY_ATTRIBUTE[op]
    chosen = attributes.get(name, default)
    if chosen:
        return ir.DataType(chosen)
    index = _BY_INPUT.get(op, 0)
    if index < len(inputs) and inputs[index] is not None:
        return inputs[index]
    if op == "QuantizeLinear":
        # the standard's type of a zero point that is left out
        return ir.DataType.UINT8
    if inputs:
        return inputs[0]
    return None


def _by_schema(schema: Any, inputs: Sequence[Dtype], index: int) -> Dtype:
    # a variadic output is declared once, as the last one
    last = len(schema.outputs) - 1
    formal = schema.outputs[min(index, last)]
    # "T" of an input is "T" of an output: the one tells the other
    bound = _bound(schema, inputs)
    if formal.type_str in bound:
        return bound[formal.type_str]
    allowed = _allowed_types(schema, formal.type_str) or {formal.type_str}
    elements = {_element(text) for text in allowed}
    if len(elements) == 1:
        return elements.pop()
    return None


def _allowed_types(schema: Any, variable: str) -> set[str]:
    """Return the types that a type variable of a schema may stand for."""
    allowed: set[str] = set()
    for constraint in schema.type_constraints:
        if constraint.type_param_str == variable:
            allowed.update(constraint.allowed_type_strs)
    return allowed


def _bound(schema: Any, inputs: Sequence[Dtype]) -> dict[str, Dtype]:
    """Map type variables to element types, from the inputs present.

    Heterogeneous variadics bind by their first.
    """
    bound: dict[str, Dtype] = {}
    last = len(schema.inputs) - 1
    for position, dtype in enumerate(inputs):
        formal = schema.inputs[min(position, last)]
        if dtype is None or formal.type_str.startswith(_CONTAINERS):
            continue
        bound.setdefault(formal.type_str, dtype)
    return bound


_CONTAINERS = ("optional(", "seq(", "tensor(")
"""Beginnings of the types that schemas write out, in the order in which they nest."""


def _element(text: str) -> Dtype:
    """`seq(tensor(float))` -> FLOAT; None for maps."""
    for container in _CONTAINERS:
        text = text.removeprefix(container)
    name = text.rstrip(")").upper()
    if name in ir.DataType.__members__:
        return ir.DataType[name]
    return None


@lru_cache(maxsize=4096)
def schema_of(domain: str, op: str, opset: int) -> Any | None:
    """Return the latest schema not newer than `opset`; None for ops onnx does not define."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
