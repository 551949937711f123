"""Standard ops at other versions of the opset, and the test that a node means the same there.

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

Parameters = Sequence[Any]
"""The inputs or outputs of an op: `onnx.defs.OpSchema.FormalParameter`."""

REVIEWED = range(13, 29)
"""Opsets between which the tables below are complete: every change of an op was read.

No node is moved beyond them.
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


@functools.cache
def schema_of(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """The standard op as of an opset; None where it has none."""
    if not onnx.defs.has(op_type, version):
        return None
    return onnx.defs.get_schema(op_type, version)


def plain(attribute: ir.Attr) -> object:
    """An attribute's value as onnx holds it: texts as bytes."""
    value: object = attribute.value
    if isinstance(value, str):
        return value.encode()
    return value


def states_default(schema: onnx.defs.OpSchema, attribute: ir.Attr) -> bool:
    """True if the schema gives the attribute a default, and that is its value."""
    known = schema.attributes.get(attribute.name)
    if known is None or known.required or attribute.is_ref():
        return False
    # an attribute without a default has an empty one
    if not known.default_value.name:
        return False
    default = onnx.helper.get_attribute_value(known.default_value)
    return bool(default == plain(attribute))


def least_version(node: ir.Node, version: int, floor: int) -> int:
    """The lowest opset, from `floor` up, at which a node of opset `version` means the same.

    Types of its inputs and outputs should be known: a value without one is taken to be of any type
    that its op allows.
    """
    if schema_of(node.op_type, version) is None:
        return version
    schemas = _versions(node.op_type, floor, version)
    steps = list(itertools.pairwise(schemas))
    # from the newest change down, until one matters to the node
    for older, newer in reversed(steps):
        if not _same(node, older, newer):
            return int(newer.since_version)
    oldest = int(schemas[0].since_version)
    return max(floor, oldest)


def means_the_same(node: ir.Node, version: int, other: int) -> bool:
    """True if a standard node of opset `version` means the same at `other`."""
    # versions change step by step, so the way between them is the same both ways
    low, high = sorted((version, other))
    if low not in REVIEWED:
        return low == high
    if schema_of(node.op_type, low) is None:
        return low == high
    schemas = _versions(node.op_type, low, high)
    steps = itertools.pairwise(schemas)
    return all(_same(node, older, newer) for older, newer in steps)


@functools.cache
def _versions(op_type: str, low: int, high: int) -> list[onnx.defs.OpSchema]:
    """The op as of each opset from `low` to `high`, every version of it once."""
    found = {}
    for version in range(low, high + 1):
        schema = schema_of(op_type, version)
        if schema is not None:
            found[schema.since_version] = schema
    return [found[version] for version in sorted(found)]


def _same(node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema) -> bool:
    """True if the node is allowed by both versions of its op, and means the same in both."""
    if older.deprecated or newer.deprecated:
        return False
    if newer.since_version not in REVIEWED:
        return False
    return (
        _same_attributes(node, older, newer)
        and _same_values(node, newer)
        and _same_parameters(node, older, newer)
        and _types_allowed(node, older, newer)
    )


def _same_attributes(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    for name in older.attributes:
        if name not in newer.attributes:
            return False
        if _default(older, name) != _default(newer, name):
            return False
    added = [name for name in newer.attributes if name not in older.attributes]
    if added and not _only_adds(newer):
        return False
    for name in added:
        attribute = node.attributes.get(name)
        if attribute is not None and not states_default(newer, attribute):
            return False
    return True


def _only_adds(schema: onnx.defs.OpSchema) -> bool:
    """True if without its new attributes and inputs the op is as it was before this version."""
    return (schema.name, schema.since_version) in ADDITIONS


def _default(schema: onnx.defs.OpSchema, name: str) -> tuple[bool, bytes]:
    known = schema.attributes[name]
    return known.required, known.default_value.SerializeToString()


def _same_values(node: ir.Node, newer: onnx.defs.OpSchema) -> bool:
    version = (newer.name, newer.since_version)
    if version not in NEW_VALUES:
        return True
    name, values = NEW_VALUES[version]
    attribute = node.attributes.get(name)
    if attribute is None:
        default = newer.attributes[name].default_value
        value = onnx.helper.get_attribute_value(default)
        return value not in values
    # a function's caller may give any value
    if attribute.is_ref():
        return False
    return plain(attribute) not in values


def _same_parameters(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    """True if every input and output that the node uses is one in both versions."""
    if len(older.inputs) != len(newer.inputs) and not _only_adds(newer):
        return False
    inputs = _used(node.inputs)
    if inputs > min(older.max_input, newer.max_input):
        return False
    if inputs < max(older.min_input, newer.min_input):
        return False
    outputs = _used(node.outputs)
    if outputs > min(older.max_output, newer.max_output):
        return False
    # outputs that change places keep their names
    pairs = zip(
        older.outputs[:outputs],
        newer.outputs[:outputs],
        strict=False,
    )
    return all(before.name == after.name for before, after in pairs)


def _used(values: Iterable[ir.Value | None]) -> int:
    """Number of values up to the last that has a name."""
    used = 0
    for count, value in enumerate(values, 1):
        if value is not None and value.name:
            used = count
    return used


def _types_allowed(
    node: ir.Node, older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema
) -> bool:
    if not _allowed(node.inputs, older.inputs, newer.inputs):
        return False
    return _allowed(node.outputs, older.outputs, newer.outputs)


def _allowed(
    values: Sequence[ir.Value | None], older: Parameters, newer: Parameters
) -> bool:
    """True if both versions allow the type of every value that stands for these parameters."""
    for index, value in enumerate(values):
        if value is None or not value.name:
            continue
        before = _types_of(older, index)
        after = _types_of(newer, index)
        text = type_text(value.type)
        # a value of unknown type fits where both versions allow the same types
        if text is None:
            if before != after:
                return False
        elif text not in before or text not in after:
            return False
    return True


def _types_of(parameters: Parameters, index: int) -> Any:
    """Types that the parameter of a number allows, the last one where it is variadic."""
    last = len(parameters) - 1
    return parameters[min(index, last)].types


def type_text(kind: ir.TypeProtocol | None) -> str | None:
    """A type as schemas spell it, `seq(tensor(float))`; None if it is not known."""
    match kind:
        case ir.SequenceType() | ir.OptionalType():
            inner = type_text(kind.elem_type)
            if inner is None:
                return None
            outer = "seq" if isinstance(kind, ir.SequenceType) else "optional"
            return f"{outer}({inner})"
        case ir.SparseTensorType():
            element = kind.dtype.name.lower()
            return f"sparse_tensor({element})"
        case ir.TensorType() if kind.dtype != ir.DataType.UNDEFINED:
            element = kind.dtype.name.lower()
            return f"tensor({element})"
    return None
