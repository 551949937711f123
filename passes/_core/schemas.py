"""What a standard op was at other versions of the opset, and whether a node means the same there.

Most new versions of an op only allow more types. Some add attributes or inputs that leave the op as
it was where a node does not use them, and some give an attribute new values. The rest is another op
under the same name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir

Slots = Sequence[Any]
"""The inputs or outputs of an op: `onnx.defs.OpSchema.FormalParameter`."""

REVIEWED = range(13, 29)
"""Opsets between which the tables below are complete: every change of an op was read. No node is
moved beyond them.
"""

ADDITIONS = frozenset(
    {
        ("AveragePool", 19),
        ("BatchNormalization", 14),
        ("Cast", 19),
        ("Cast", 24),
        ("CastLike", 19),
        ("CastLike", 24),
        ("DequantizeLinear", 21),
        ("DequantizeLinear", 23),
        ("GRU", 14),
        ("LSTM", 14),
        ("Pad", 18),
        ("QuantizeLinear", 19),
        ("QuantizeLinear", 21),
        ("QuantizeLinear", 23),
        ("RNN", 14),
        ("Range", 27),
        ("Reshape", 14),
        ("ScatterElements", 16),
        ("ScatterND", 16),
        ("Shape", 15),
        ("SpaceToDepth", 28),
        ("Split", 18),
    }
)
"""Versions with new attributes or last inputs without which the op is what it was before."""

NEW_VALUES = {
    ("AveragePool", 19): ("ceil_mode", (1,)),
    ("AveragePool", 22): ("ceil_mode", (1,)),
    ("MaxPool", 22): ("ceil_mode", (1,)),
    ("Mod", 28): ("fmod", (0,)),
    ("Pad", 19): ("mode", (b"wrap",)),
    ("Resize", 19): ("coordinate_transformation_mode", (b"half_pixel_symmetric",)),
    ("ScatterElements", 18): ("reduction", (b"max", b"min")),
    ("ScatterND", 18): ("reduction", (b"max", b"min")),
}
"""Versions that define an attribute's values anew, or for the first time, and which ones."""


def is_standard(node: ir.Node) -> bool:
    """Whether the node is an op of the standard domain."""
    return node.domain in ("", "ai.onnx")


@functools.cache
def schema_of(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """The standard op as of an opset; None where it has none."""
    return (
        onnx.defs.get_schema(op_type, version)
        if onnx.defs.has(op_type, version)
        else None
    )


def plain(attribute: ir.Attr) -> object:
    """An attribute's value as onnx holds it: texts as bytes."""
    return (
        attribute.value.encode()
        if isinstance(attribute.value, str)
        else attribute.value
    )


def states_default(schema: onnx.defs.OpSchema, attribute: ir.Attr) -> bool:
    """Whether the schema gives the attribute a default, and that is its value."""
    known = schema.attributes.get(attribute.name)
    if (
        known is None
        or known.required
        or attribute.is_ref()
        or not known.default_value.name
    ):
        return False
    return bool(
        onnx.helper.get_attribute_value(known.default_value) == plain(attribute)
    )


def least_version(node: ir.Node, version: int, floor: int) -> int:
    """The lowest opset, from `floor` up, at which a standard node of opset `version` means what it
    means there.

    Types of its inputs and outputs should be known: a value without one is taken to be of any type
    that its op allows.
    """
    if schema_of(node.op_type, version) is None:
        return version
    schemas = _versions(node.op_type, floor, version)
    for older, newer in reversed(list(itertools.pairwise(schemas))):
        if not _same(node, older, newer):
            return int(newer.since_version)
    return max(floor, int(schemas[0].since_version))


def means_the_same(node: ir.Node, version: int, other: int) -> bool:
    """Whether a standard node of opset `version` means the same at `other`."""
    low, high = sorted((version, other))
    if schema_of(node.op_type, low) is None or low not in REVIEWED:
        return low == high
    return all(
        _same(node, older, newer)
        for older, newer in itertools.pairwise(_versions(node.op_type, low, high))
    )


@functools.cache
def _versions(op_type: str, low: int, high: int) -> list[onnx.defs.OpSchema]:
    """The op as of each opset from `low` to `high`, every version of it once."""
    found = {
        schema.since_version: schema
        for version in range(low, high + 1)
        if (schema := schema_of(op_type, version)) is not None
    }
    return [found[version] for version in sorted(found)]


def _same(node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema) -> bool:
    """Whether the node is allowed by both versions of its op, and means the same in both."""
    if older.deprecated or newer.deprecated or newer.since_version not in REVIEWED:
        return False
    return (
        _same_attributes(node, older, newer)
        and _same_values(node, newer)
        and _same_slots(node, older, newer)
        and _types_allowed(node, older, newer)
    )


def _same_attributes(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    if any(
        name not in newer.attributes or _default(older, name) != _default(newer, name)
        for name in older.attributes
    ):
        return False
    added = [name for name in newer.attributes if name not in older.attributes]
    if added and ((newer.name, newer.since_version) not in ADDITIONS):
        return False
    given = [node.attributes[name] for name in added if name in node.attributes]
    return all(states_default(newer, attribute) for attribute in given)


def _default(schema: onnx.defs.OpSchema, name: str) -> tuple[bool, bytes]:
    known = schema.attributes[name]
    return known.required, known.default_value.SerializeToString()


def _same_values(node: ir.Node, newer: onnx.defs.OpSchema) -> bool:
    name, values = NEW_VALUES.get((newer.name, newer.since_version), ("", ()))
    if not name:
        return True
    attribute = node.attributes.get(name)
    if attribute is None:
        return (
            onnx.helper.get_attribute_value(newer.attributes[name].default_value)
            not in values
        )
    return not attribute.is_ref() and plain(attribute) not in values


def _same_slots(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    """Whether every input and output that the node uses is one in both versions."""
    inputs = _used(node.inputs)
    if (
        len(older.inputs) != len(newer.inputs)
        and (newer.name, newer.since_version) not in ADDITIONS
    ):
        return False
    if inputs > min(older.max_input, newer.max_input) or inputs < max(
        older.min_input, newer.min_input
    ):
        return False
    used = _used(node.outputs)
    if used > min(older.max_output, newer.max_output):
        return False
    return all(
        a.name == b.name
        for a, b in zip(older.outputs[:used], newer.outputs[:used], strict=False)
    )


def _used(values: Iterable[ir.Value | None]) -> int:
    """How many slots count: those up to the last that holds a named value."""
    return max(
        (i for i, value in enumerate(values, 1) if value is not None and value.name),
        default=0,
    )


def _types_allowed(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    inputs = _allowed(node.inputs, older.inputs, newer.inputs)
    return inputs and _allowed(node.outputs, older.outputs, newer.outputs)


def _allowed(values: Sequence[ir.Value | None], older: Slots, newer: Slots) -> bool:
    """Whether both versions allow the type of every value that stands in these slots."""
    for index, value in enumerate(values):
        if value is None or not value.name:
            continue
        before, after = (
            slots[min(index, len(slots) - 1)].types for slots in (older, newer)
        )  # variadic: the last
        text = type_text(value.type)
        if text is None and before != after:
            return False
        if text is not None and not (text in before and text in after):
            return False
    return True


def type_text(kind: ir.TypeProtocol | None) -> str | None:
    """A type as schemas spell it, `seq(tensor(float))`; None if it is not known."""
    match kind:
        case ir.SequenceType() | ir.OptionalType():
            inner = type_text(kind.elem_type)
            return (
                inner
                and f"{'seq' if isinstance(kind, ir.SequenceType) else 'optional'}({inner})"
            )
        case ir.SparseTensorType():
            return f"sparse_tensor({kind.dtype.name.lower()})"
        case ir.TensorType():
            return (
                f"tensor({kind.dtype.name.lower()})"
                if kind.dtype != ir.DataType.UNDEFINED
                else None
            )
    return None
