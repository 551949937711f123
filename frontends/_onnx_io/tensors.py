"""Checks of tensor messages, and of the files that hold external data."""

from __future__ import annotations

import math
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import onnx
import onnx_ir as ir

from ... import RefusedError
from .read import EXPORT_AGAIN

T = onnx.TensorProto
_KNOWN_TYPES = {t.value for t in ir.DataType} - {T.UNDEFINED}
_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
_OWN_FIELD = {
    T.FLOAT: ("float_data", 1),
    T.COMPLEX64: ("float_data", 2),
    T.DOUBLE: ("double_data", 1),
    T.COMPLEX128: ("double_data", 2),
    T.INT64: ("int64_data", 1),
    T.UINT32: ("uint64_data", 1),
    T.UINT64: ("uint64_data", 1),
    T.STRING: ("string_data", 1),
}
"""Type -> (the field its values are listed in, entries per element); all others use int32_data."""


def shown(text: str, limit: int = 80) -> str:
    """A name from a file, safe to print on one line."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    # control characters could rewrite the terminal
    safe = []
    for character in text:
        if not character.isprintable():
            escaped = character.encode("unicode_escape")
            character = escaped.decode()
        safe.append(character)
    return f"'{''.join(safe)}'"


def nbytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes that the dims and the type of a non-string tensor need."""
    elements = math.prod(tensor.dims)
    bits: int = elements * ir.DataType(tensor.data_type).bitwidth
    # rounded up: the last byte may be half full
    return -(-bits // 8)


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor unless exactly one field holds exactly the data that its type and dims need.

    Errors: RefusedError.
    """

    def refuse(problem: str) -> NoReturn:
        raise RefusedError(
            where, f"tensor {shown(tensor.name)} {problem}", EXPORT_AGAIN
        )

    if tensor.data_type not in _KNOWN_TYPES:
        refuse(f"has unknown type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        refuse(f"has a negative dimension: {list(tensor.dims)}")
    # an empty tensor may have any other dim, but no array can
    if 8 * math.prod(max(d, 1) for d in tensor.dims) >= 1 << 63:
        refuse(f"is more than any array: its shape is {list(tensor.dims)}")
    if tensor.HasField("segment"):
        refuse("is stored in segments, which ONNX tools do not read")
    if tensor.data_location not in (T.DEFAULT, T.EXTERNAL):
        refuse(f"has unknown data location {tensor.data_location}")
    held = [name for name in _FIELDS if len(getattr(tensor, name))]
    if tensor.data_location == T.EXTERNAL:
        if held:
            refuse(f"is external and also holds {held[0]}")
        if tensor.data_type == T.STRING:
            refuse("is text and external")
        return
    if len(held) > 1:
        refuse(f"holds its data twice: {' and '.join(held)}")
    field = held[0] if held else None
    _check_length(tensor, field, refuse)


def is_whole(tensor: onnx.TensorProto, length: int) -> bool:
    """True if external data of `length` bytes is what `check_tensor` takes as raw_data."""
    if tensor.data_type not in _KNOWN_TYPES or tensor.data_type == T.STRING:
        return False
    # as an external tensor it passes only if it holds nothing
    try:
        check_tensor(tensor, "")
    except RefusedError:
        return False
    return nbytes_of(tensor) == length


def _check_length(
    tensor: onnx.TensorProto, field: str | None, refuse: Callable[[str], NoReturn]
) -> None:
    size = math.prod(tensor.dims)
    if field == "raw_data":
        if tensor.data_type == T.STRING:
            refuse("is text in raw_data")
        have = len(tensor.raw_data)
        need = nbytes_of(tensor)
        unit = "bytes"
    else:
        own, width = _OWN_FIELD.get(tensor.data_type, ("int32_data", 1))
        if field is not None and field != own:
            refuse(f"holds {field} where its type needs {own}")
        # types of 2 and 4 bits share an entry of int32_data, one byte of it
        is_text = tensor.data_type == T.STRING
        bits = 8 if is_text else ir.DataType(tensor.data_type).bitwidth
        per_entry = 8 // bits if bits in (2, 4) else 1
        have = len(getattr(tensor, own))
        values = size * width
        need = -(-values // per_entry)
        unit = "values"
    if have != need:
        refuse(
            f"holds {have} {unit}, its shape {list(tensor.dims)} and type need {need}"
        )


class ExternalFiles:
    """The data files of one model, each examined once; missing ones are reported together."""

    def __init__(self, path: str | Path, allow_hardlinks: bool) -> None:
        self.where = str(path)
        self.folder = Path(os.path.abspath(path)).parent
        self.allow_hardlinks = allow_hardlinks
        self.hardlinked: set[str] = set()
        self._sizes: dict[str, int | None] = {}
        self._missing: Counter[str] = Counter()
        self._missing_bytes: Counter[str] = Counter()

    def check(self, tensor: onnx.TensorProto) -> None:
        """Refuse a tensor unless its bytes lie in a regular file below the model's folder."""
        entries = [(e.key, e.value) for e in tensor.external_data]
        place = dict(entries)
        nbytes = nbytes_of(tensor)
        repeats_key = len(place) != len(entries)
        if repeats_key or not place.get("location"):
            self._refuse(
                f"tensor {shown(tensor.name)} does not say where its data is",
                EXPORT_AGAIN,
            )
        offset = self._number(tensor, place.get("offset") or "0")
        length = self._number(tensor, place.get("length") or str(nbytes))
        if length != nbytes:
            self._refuse(
                f"tensor {shown(tensor.name)} declares {length:,} external bytes, its "
                f"shape and type need {nbytes:,}",
                EXPORT_AGAIN,
            )
        location = place["location"]
        if location not in self._sizes:
            self._sizes[location] = self._examine(location)
        size = self._sizes[location]
        if size is None:
            self._missing[location] += 1
            self._missing_bytes[location] += nbytes
        elif offset + nbytes > size:
            self._refuse(
                f"weights file {shown(location)} has {size:,} bytes; tensor {shown(tensor.name)} "
                f"lies at {offset:,} to {offset + nbytes:,}",
                "fetch the weights file again: it is cut short or another's",
            )

    def report_missing(self) -> None:
        """Refuse the model if data files were missing, and say what they should hold."""
        for location, count in self._missing.items():
            tensors = "1 tensor" if count == 1 else f"{count} tensors"
            size = _size_text(self._missing_bytes[location])
            self._refuse(
                f"weights file {shown(location)} is missing",
                f"put it beside the model; it holds {tensors} ({size})",
            )

    def _examine(self, location: str) -> int | None:
        """Size of a data file in bytes, None if there is none; it is not opened."""
        if os.path.isabs(location):
            self._refuse_escape(location, "is an absolute path")
        # a backslash separates folders on Windows only
        has_separator = "\\" in location and sys.platform == "win32"
        if "\0" in location or has_separator:
            self._refuse_escape(location, "is not a file name")
        path = os.path.join(self.folder, location)
        if not _inside(os.path.normpath(path), self.folder):
            self._refuse_escape(location, "lies outside the model's folder")
        # the name may lie inside the folder and still be a link that leads out of it
        try:
            target = os.path.realpath(path)
            folder = os.path.realpath(self.folder)
            if not _inside(target, folder):
                self._refuse_escape(
                    location, "is a link to a place outside the model's folder"
                )
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._refuse(
                f"weights file {shown(location)} cannot be read: {error.strerror}",
                "check the file",
            )
        if not stat.S_ISREG(status.st_mode):
            self._refuse(
                f"weights file {shown(location)} is not a regular file",
                "put the weights file itself there",
            )
        # a file from outside the folder can be linked into it, and no path tells
        if status.st_nlink > 1:
            if not self.allow_hardlinks:
                self._refuse(
                    f"weights file {shown(location)} has {status.st_nlink} hard "
                    "links, so it may be a foreign file",
                    "copy it (cp FILE NEW && mv NEW FILE), or load it in Python with "
                    "allow_hardlinks=True",
                )
            self.hardlinked.add(location)
        return status.st_size

    def _number(self, tensor: onnx.TensorProto, text: str) -> int:
        # no file has 10^19 bytes, and int() takes long over a text of any length
        is_number = text.isascii() and text.isdigit()
        if not is_number or len(text) >= 20:
            self._refuse(
                f"tensor {shown(tensor.name)} has external offset or length {shown(text)}",
                EXPORT_AGAIN,
            )
        return int(text)

    def _refuse_escape(self, location: str, problem: str) -> NoReturn:
        self._refuse(
            f"weights file {shown(location)} {problem}",
            "only trust such a model if you know its origin; copy the file beside "
            "the model and name it plainly",
        )

    def _refuse(self, problem: str, fix: str) -> NoReturn:
        raise RefusedError(self.where, problem, fix)


def _inside(path: str, folder: str | Path) -> bool:
    prefix = os.path.normcase(folder)
    # /models must not pass for the folder of /models2
    if not prefix.endswith(os.sep):
        prefix += os.sep
    return os.path.normcase(path).startswith(prefix)


def _size_text(nbytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} bytes"
