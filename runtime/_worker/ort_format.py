"""Models in ORT format, with the same bytes for the same model.

ONNX Runtime writes their table of kernel types in the order of a hash, another one in each process.
The table is at the head of the file, in front of the model: a new head with a sorted table takes
its place, and the model behind it stays as it is.

Source: ONNX Runtime's ort.fbs (tables InferenceSession and KernelTypeStrResolver) and the layout of
FlatBuffers, in which what is written first comes last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

IDENTIFIER = b"ORTM"

_ALIGNMENT = 64
"""The model moves by a multiple of this many bytes, which keeps all in it aligned."""

# slots of the tables' fields, and how FlatBuffers numbers them while reading
_VERSION, _MODEL, _STATE, _RESOLVER = range(4)


class Argument(NamedTuple):
    """An input or output of an operator whose type chooses its kernel."""

    kind: int
    place: int


Kernels = list[tuple[bytes, list[tuple[bytes, list[Argument]]]]]
"""Arguments by name of a type, by operator."""


def sorted_kernels(content: bytes) -> bytes:
    """The same model in ORT format with its kernel types in sorted order.

    As it is where its head is not of the form that releases up to 1.32 write.
    """
    root = _root(content)
    version = _field(root, _VERSION)
    model_field = _field(root, _MODEL)
    resolver_field = _field(root, _RESOLVER)
    is_known = version and model_field and resolver_field
    if content[4:8] != IDENTIFIER or not is_known:
        return content
    if _field(root, _STATE):
        return content
    model = root.Indirect(model_field)
    # a table's own layout lies in front of it, unless it shares an earlier one's
    layout = model - _signed(content, model)
    start = min(model, layout)
    resolver_place = root.Indirect(resolver_field)
    resolver = _table(content, resolver_place)
    kernels = _kernels(resolver)
    own_version = root.String(version)
    head = bytearray(_head(own_version, kernels))
    missing = (start - len(head)) % _ALIGNMENT
    head += bytes(missing)
    new_root = _root(head)
    field = _field(new_root, _MODEL)
    in_model = model - start
    distance = len(head) + in_model - field
    head[field : field + 4] = distance.to_bytes(4, "little")
    rest = content[start:]
    return bytes(head) + rest


def _root(content: bytes | bytearray) -> Any:
    return _table(content, _unsigned(content, 0))


def _field(table: Any, slot: int) -> int:
    """Place of a field in the file; 0 where it is not there."""
    offset: int = table.Offset(_number(slot))
    return table.Pos + offset if offset else 0


def _table(content: bytes | bytearray, place: int) -> Any:
    from flatbuffers.table import Table

    return Table(content, place)


def _number(slot: int) -> int:
    return 4 + 2 * slot


def _unsigned(content: bytes | bytearray, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "little")


def _signed(content: bytes, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "little", signed=True)


def _kernels(resolver: Any) -> Kernels:
    kernels: Kernels = []
    for entry in _entries(resolver, 0):
        types = []
        for own in _entries(entry, 1):
            arguments = [_argument(each) for each in _entries(own, 1)]
            types.append((_text(own), arguments))
        kernels.append((_text(entry), sorted(types)))
    return sorted(kernels)


def _entries(table: Any, slot: int) -> list[Any]:
    """Tables of a vector; none where the field is not there."""
    offset = table.Offset(_number(slot))
    if not offset:
        return []
    first = table.Vector(offset)
    count = table.VectorLen(offset)
    return [
        _table(table.Bytes, table.Indirect(first + 4 * index)) for index in range(count)
    ]


def _text(table: Any) -> bytes:
    text: bytes = table.String(_field(table, 0))
    return text


def _argument(table: Any) -> Argument:
    # a field at its default of 0 is not written
    kind = _field(table, 0)
    index = _field(table, 1)
    return Argument(
        kind=table.Bytes[kind] if kind else 0,
        place=_unsigned(table.Bytes, index) if index else 0,
    )


def _head(version: bytes, kernels: Kernels) -> bytes:
    """A file's head; its offset to the model is to be written yet."""
    from flatbuffers import Builder

    builder = Builder(1024)
    entries = []
    for operator, types in kernels:
        own = [_type_entry(builder, name, arguments) for name, arguments in types]
        entries.append(_entry(builder, operator, own))
    kernel_types = _vector(builder, entries)
    text = builder.CreateString(version)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, kernel_types, 0)
    resolver = builder.EndObject()
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(_VERSION, text, 0)
    # any number: a default would not be written
    builder.PrependUint32Slot(_MODEL, 1, 0)
    builder.PrependUOffsetTRelativeSlot(_RESOLVER, resolver, 0)
    builder.Finish(builder.EndObject(), IDENTIFIER)
    return bytes(builder.Output())


def _type_entry(builder: Any, name: bytes, arguments: list[Argument]) -> int:
    tables = []
    for argument in arguments:
        builder.StartObject(2)
        builder.PrependInt8Slot(0, argument.kind, 0)
        builder.PrependUint32Slot(1, argument.place, 0)
        tables.append(builder.EndObject())
    return _entry(builder, name, tables)


def _entry(builder: Any, name: bytes, tables: list[int]) -> int:
    """A table of a text and a vector of tables."""
    vector = _vector(builder, tables)
    text = builder.CreateString(name)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    place: int = builder.EndObject()
    return place


def _vector(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    # FlatBuffers are written backwards
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    place: int = builder.EndVector()
    return place
