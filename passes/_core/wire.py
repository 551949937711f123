"""Protobuf's wire format, as far as it takes to leave the tensors of a model file aside.

A message is a row of fields: a tag (the field's number and the kind of what follows), and for text,
bytes and messages a length and that many bytes. So the few large fields of a file are found by
stepping over all others. Source: protobuf.dev, Encoding.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

LEAST = 1 << 16
"""Bytes (64 KiB) from which a tensor is left out of a skeleton.

Chosen by hand: small ones are shapes and scalars, which are read over and over.
"""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_WIDTHS = {FIXED64: 8, FIXED32: 4}

_DEEPEST = 100
"""Messages inside each other that protobuf parses."""

_MOST_FIELDS = 1000
"""Fields of a node, attribute or tensor that are looked at: those with more hold lists of numbers.

Chosen by hand; a walk over a million numbers would take longer than their parse.
"""

# numbers of fields in onnx.proto, by the kind of message that they hold
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}

_SHORT = ("node", "attribute")

# onnx.proto of TensorProto
_RAW_DATA = 9
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14

# data_location = EXTERNAL, its tag and its value
_IS_EXTERNAL = bytes([_DATA_LOCATION << 3 | VARINT, 1])


class Buffer(Protocol):
    """Bytes, or a map of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice, /) -> bytes: ...


class Field(NamedTuple):
    """A field of a message: its number, its kind on the wire, where it starts, where what it holds
    (`body`), and where it ends.
    """

    number: int
    kind: int
    start: int
    body: int
    end: int


class Extent(NamedTuple):
    """A stretch of a file, in bytes."""

    offset: int
    length: int


class Skeleton(NamedTuple):
    """A model file without its large tensors, and where these lie in the file."""

    encoded: bytes
    extents: frozenset[Extent]


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that lies between `start` and `end`.

    The last may end behind `end`, or behind the data: it is cut short then. Errors: ValueError
    where the bytes are no message.
    """
    at = start
    while at < end:
        tag, body = varint(data, at)
        number = tag >> 3
        kind = tag & 7
        if number == 0:
            raise ValueError("no field has the number 0")
        if kind == VARINT:
            _, stop = varint(data, body)
        elif kind == BYTES:
            length, body = varint(data, body)
            stop = body + length
        elif kind in _WIDTHS:
            stop = body + _WIDTHS[kind]
        else:
            raise ValueError("not a kind that ONNX has")
        yield Field(number, kind, at, body, stop)
        at = stop


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number whose bytes begin at `at`, and the place behind it.

    Errors: ValueError where there is none.
    """
    value = 0
    # seven bits a byte, the lowest first; the eighth says that more follow
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("not a varint")


def encoded_varint(value: int) -> bytes:
    """The shortest bytes of a number."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def skeleton(data: Buffer, location: str) -> Skeleton | None:
    """Make the file whose large tensors are external data at `location`: the file `data` itself.

    None where it has none, or where the bytes are not what writers of ONNX make of a model: a
    parser has to judge them then.
    """
    walk = _LeavingOut(data, location)
    try:
        encoded = walk.message("model", 0, len(data), depth=0)
    except ValueError:
        return None
    if encoded is None:
        return None
    return Skeleton(encoded, frozenset(walk.extents))


class _LeavingOut:
    """A walk over the large messages of a file; `extents` collects what it leaves out."""

    def __init__(self, data: Buffer, location: str) -> None:
        self.data = data
        self.location = location
        self.extents: list[Extent] = []

    def message(self, kind: str, start: int, end: int, depth: int) -> bytes | None:
        """Encode a message without its large tensors; None where it has none."""
        if depth > _DEEPEST:
            raise ValueError("nested deeper than protobuf parses")
        if kind == "tensor":
            return self._tensor(start, end)
        holds = MESSAGES[kind]
        found = len(self.extents)
        parts: list[bytes] = []
        copied = start
        for count, field in enumerate(self._fields(start, end)):
            # graphs may have any number of nodes
            if count == _MOST_FIELDS and kind in _SHORT:
                del self.extents[found:]
                return None
            inner = holds.get(field.number)
            if inner is None or field.end - field.body < LEAST:
                continue
            if field.kind != BYTES:
                raise ValueError("not a message")
            encoded = self.message(inner, field.body, field.end, depth + 1)
            if encoded is None:
                continue
            tag = self._tag(field)
            length = encoded_varint(len(encoded))
            before = self.data[copied : field.start]
            parts += [before, tag, length, encoded]
            copied = field.end
        if not parts:
            return None
        parts.append(self.data[copied:end])
        return b"".join(parts)

    def _tensor(self, start: int, end: int) -> bytes | None:
        raw = None
        for count, field in enumerate(self._fields(start, end)):
            is_external = field.number in (_EXTERNAL_DATA, _DATA_LOCATION)
            if is_external or count == _MOST_FIELDS:
                return None
            if field.number == _RAW_DATA:
                # of several the last counts, which is left to protobuf
                if raw is not None or field.kind != BYTES:
                    return None
                raw = field
        if raw is None or raw.end - raw.body < LEAST:
            return None
        self._tag(raw)
        extent = Extent(raw.body, raw.end - raw.body)
        self.extents.append(extent)
        before = self.data[start : raw.start]
        behind = self.data[raw.end : end]
        return before + behind + _reference(self.location, extent)

    def _fields(self, start: int, end: int) -> Iterator[Field]:
        """Fields of a message that lies whole in the data. Errors: ValueError."""
        for field in fields(self.data, start, end):
            if field.end > end:
                raise ValueError("a field ends behind its message")
            yield field

    def _tag(self, field: Field) -> bytes:
        """The tag of a field, which has the shortest encoding, and so has its length."""
        tag = encoded_varint(field.number << 3 | field.kind)
        length = encoded_varint(field.end - field.body)
        if self.data[field.start : field.body] != tag + length:
            raise ValueError("an encoding that no writer makes")
        return tag


class LeftOut(NamedTuple):
    """A tensor that is to be written here, by the offset that its reference has; bytes."""

    offset: int
    length: int


Part = bytes | LeftOut


def filled(encoded: bytes, location: str) -> tuple[list[Part], int]:
    """Parts of a model's file that has tensors in the place of references, and its length in bytes.

    The other way round of `skeleton`: `encoded` is a model as protobuf writes it, in which large
    tensors are external ones at `location`, a name that is nowhere else.
    """
    filling = _Filling(encoded, location)
    return filling.message("model", 0, len(encoded))


class _Filling:
    """A walk over the messages of a file that have references inside."""

    def __init__(self, encoded: bytes, location: str) -> None:
        self.encoded = encoded
        mark = location.encode()
        self._marks: list[int] = []
        at = encoded.find(mark)
        while at >= 0:
            self._marks.append(at)
            at = encoded.find(mark, at + 1)

    def message(self, kind: str, start: int, end: int) -> tuple[list[Part], int]:
        """Parts of a message with its tensors, and its length in bytes."""
        if kind == "tensor":
            return self._tensor(start, end)
        holds = MESSAGES[kind]
        parts: list[Part] = []
        total = end - start
        copied = start
        for field in fields(self.encoded, start, end):
            inner = holds.get(field.number)
            if inner is None or not self._has_mark(field):
                continue
            more, length = self.message(inner, field.body, field.end)
            tag = encoded_varint(field.number << 3 | field.kind)
            header = tag + encoded_varint(length)
            unchanged = self.encoded[copied : field.start]
            parts += [unchanged, header, *more]
            before = field.end - field.start
            after = len(header) + length
            total += after - before
            copied = field.end
        rest = self.encoded[copied:end]
        parts.append(rest)
        return parts, total

    def _has_mark(self, field: Field) -> bool:
        after = bisect.bisect_left(self._marks, field.body)
        if after == len(self._marks):
            return False
        return self._marks[after] < field.end

    def _tensor(self, start: int, end: int) -> tuple[list[Part], int]:
        before = b""
        behind = b""
        place: dict[bytes, bytes] = {}
        for field in fields(self.encoded, start, end):
            content = self.encoded[field.start : field.end]
            if field.number == _EXTERNAL_DATA:
                key, value = fields(self.encoded, field.body, field.end)
                name = self.encoded[key.body : key.end]
                place[name] = self.encoded[value.body : value.end]
            elif field.number == _DATA_LOCATION:
                continue
            # fields stand in the order of their numbers
            elif field.number < _RAW_DATA:
                before += content
            else:
                behind += content
        offset = int(place[b"offset"])
        length = int(place[b"length"])
        left_out = LeftOut(offset, length)
        tag = encoded_varint(_RAW_DATA << 3 | BYTES)
        before += tag
        before += encoded_varint(length)
        total = len(before) + length + len(behind)
        return [before, left_out, behind], total


def _reference(location: str, extent: Extent) -> bytes:
    """Fields of a TensorProto whose data lies in a file."""
    entries = {
        "location": location,
        "offset": str(extent.offset),
        "length": str(extent.length),
    }
    parts = []
    for key, value in entries.items():
        # StringStringEntryProto: key = 1, value = 2
        entry = _bytes_field(1, key.encode()) + _bytes_field(2, value.encode())
        parts.append(_bytes_field(_EXTERNAL_DATA, entry))
    return b"".join(parts) + _IS_EXTERNAL


def _bytes_field(number: int, content: bytes) -> bytes:
    tag = encoded_varint(number << 3 | BYTES)
    return tag + encoded_varint(len(content)) + content
