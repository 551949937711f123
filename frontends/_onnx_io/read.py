"""Read a file as a ModelProto; one that is no ONNX model is named for what it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ... import RefusedError
from ...passes._core.held_file import LARGEST
from ...passes._core.wire import Buffer, fields

LIMIT = LARGEST
"""Bytes: protobuf's limit for one message."""

EXPORT_AGAIN = "fetch or export the model again"

# offset, first bytes there, kind of file, fix
_KINDS: list[tuple[int, bytes, str, str]] = [
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself",
        "git lfs pull",
    ),
    (0, b"\x89PNG", "a PNG image", "give an .onnx file"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give an .onnx file"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive (a PyTorch checkpoint, an .npz, a packed model?)",
        "unpack it, or export it: onnx-opt export",
    ),
    (0, b"\x1f\x8b", "a gzip archive", "gunzip it first"),
    (
        0,
        b"\x80\x02",
        "a Python pickle (an old PyTorch checkpoint?)",
        "export it to ONNX first",
    ),
    (0, b"\x89HDF", "an HDF5 file (Keras?)", "convert it with tf2onnx first"),
    (0, b"%PDF", "a PDF document", "give an .onnx file"),
    (0, b"\x7fELF", "an ELF binary", "give an .onnx file"),
    (0, b"\x93NUMPY", "a NumPy array", "give an .onnx file; arrays go to --data"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx first"),
    (
        4,
        b"ORTM",
        "a model in ONNX Runtime's own .ort format",
        "give the .onnx file that it was made from",
    ),
    (257, b"ustar", "a tar archive", "unpack it first"),
]

_TEXT = "python -c \"import onnx; onnx.save(onnx.load('{name}'), 'model.onnx')\""


def read_proto(path: str | Path) -> onnx.ModelProto:
    """Parse the file at `path`.

    Errors: RefusedError, naming the kind of file, or how much of it is missing.
    """
    where = str(path)
    data = _read(path, where)
    refuse_other_formats(data, where)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise RefusedError(where, _damage(data), EXPORT_AGAIN) from None
    if not proto.HasField("graph"):
        # protobuf takes many files for messages with fields that it does not know
        if proto.ir_version and proto.opset_import:
            raise RefusedError(where, "holds no graph", EXPORT_AGAIN)
        raise RefusedError(where, "is not an ONNX model", "give an .onnx file")
    refuse_bytes_in_text(proto, where)
    return proto


def refuse_bytes_in_text(proto: onnx.ModelProto, where: str) -> None:
    """Refuse names that are not UTF-8. Errors: RefusedError.

    ONNX's protobuf does not see to it: Python would get bytes in the place of text.
    """
    waiting: list[Any] = [proto]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            items = value if field.is_repeated else [value]
            if field.type == field.TYPE_MESSAGE:
                waiting += items
            elif field.type == field.TYPE_STRING and not all(
                isinstance(text, str) for text in items
            ):
                raise RefusedError(
                    where,
                    f"is damaged: {field.full_name} is not UTF-8",
                    EXPORT_AGAIN,
                )


def _read(path: str | Path, where: str) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(p.name for p in Path(path).glob("*.onnx"))
            example = inside[0] if inside else "model.onnx"
            raise RefusedError(
                where,
                "is a folder",
                f"give a file, as in {Path(path) / example}",
            )
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(where, "is not a regular file", "give an .onnx file")
        if status.st_size >= LIMIT:
            raise RefusedError(
                where,
                f"has {status.st_size / 1e9:.1f} GB; protobuf ends at 2 GiB",
                "save its weights as external data: onnx.save(model, path, "
                "save_as_external_data=True)",
            )
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise RefusedError(where, "no such file", _nearby(Path(path))) from None
    except ValueError:
        # a NUL in the name
        raise RefusedError(
            repr(where), "is not a file name", "check the path"
        ) from None
    except OSError as error:
        raise RefusedError(
            where,
            f"cannot be read: {error.strerror}",
            "check the path and its permissions",
        ) from error


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"check the path: folder '{path.parent}' does not exist"
    models = sorted(p.name for p in path.parent.glob("*.onnx"))[:3]
    if not models:
        return "check the path"
    return f"check the path; its folder holds {', '.join(models)}"


def refuse_other_formats(data: Buffer, where: str) -> None:
    """Refuse files of other kinds, by name. Errors: RefusedError."""
    if not len(data):
        raise RefusedError(where, "is empty", EXPORT_AGAIN)
    for offset, magic, kind, fix in _KINDS:
        if data[offset : offset + len(magic)] == magic:
            raise RefusedError(where, f"is {kind}", fix)
    head = data[:512].lstrip()
    if head.startswith((b"<?xml", b"<!DOCTYPE", b"<!doctype", b"<html")):
        raise RefusedError(
            where,
            "is an XML or HTML document (a failed download, an OpenVINO graph?)",
            EXPORT_AGAIN,
        )
    if head.startswith((b"{", b"ir_version:")) or (
        head.startswith(b"<") and b"ir_version" in head
    ):
        raise RefusedError(
            where,
            "is text; models are read in the binary form",
            _TEXT.format(name=Path(where).name),
        )
    start = data[:512]
    if start.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        raise RefusedError(
            where, "is a text file, not an ONNX model", "give an .onnx file"
        )


def _damage(data: bytes) -> str:
    """The fault of bytes that protobuf refused: cut short, or damaged inside."""
    try:
        for end in _field_ends(data):
            if end > len(data):
                return f"is cut short: a part ends at byte {end:,}, the file at {len(data):,}"
    except ValueError:
        return "is not an ONNX model, or is damaged"
    return "is damaged, or nested deeper than protobuf's 100 messages"


def _field_ends(data: bytes) -> Iterator[int]:
    """Byte at which each top-level field of a protobuf message ends.

    Errors: ValueError where the bytes are no message.
    """
    for field in fields(data, 0, len(data)):
        # ModelProto has about 20 fields; more is another format
        if field.number > 100:
            raise ValueError("not a field of a model")
        yield field.end


def innermost(error: BaseException) -> str:
    """The reason at the bottom of an onnx_ir error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
