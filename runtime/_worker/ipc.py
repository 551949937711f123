"""Messages between the worker and its child: what they hold, and how they cross a pipe.

A message is a length-prefixed pickle; arrays travel beside it without a copy.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

_LENGTH = struct.Struct("<Q")

Providers = list[tuple[str, dict[str, str]]]
"""Providers and their options, the preferred one first, as ONNX Runtime takes them."""

OUT_OF_MEMORY = 77
"""Exit code of a child that took more memory than it may. Chosen by hand."""


class FunctionCall(NamedTuple):
    """A request to run one of the child's functions."""

    function: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Failure(NamedTuple):
    """An exception in the child; `kind` is the name of its class."""

    kind: str
    where: str
    problem: str
    fix: str


class Reply(NamedTuple):
    """The answer to a call: the function's value, or the failure that ended it.

    `cpu_seconds`: of the child since its start, all threads together.
    """

    value: Any = None
    failure: Failure | None = None
    cpu_seconds: float = 0.0


class Installed(NamedTuple):
    """The onnxruntime that is imported: its version, and the wheels of that module by version."""

    version: str
    wheels: Mapping[str, str]


class OrtTensor(NamedTuple):
    """Input or output of a session in ONNX Runtime's own words, such as `tensor(float)`."""

    name: str
    type: str
    shape: list[Any]


class OpenedSession(NamedTuple):
    """A session in the child: the number that calls name it by, and its interface."""

    handle: int
    inputs: list[OrtTensor]
    outputs: list[OrtTensor]


class Powers(NamedTuple):
    """Sums of y^2 and of (y - y')^2 over an output; `noise` is NaN where the shapes differ."""

    signal: float
    noise: float


class Observation(NamedTuple):
    """A run whose tensors were looked at: bytes of its outputs, and those that were asked for."""

    size: int
    kept: dict[str, Any]


class OutputComparison(NamedTuple):
    """Two sessions on the same feeds: powers by output, values of scalars, bytes of outputs."""

    powers: dict[str, Powers]
    scalars: dict[str, float]
    size: int


def send(file: BinaryIO, message: Any) -> None:
    """Write one message: the number of parts, then each part after its length in bytes."""
    buffers: list[pickle.PickleBuffer] = []
    # protocol 5 hands out the buffers of arrays, which are written as they lie in memory
    pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts: list[Any] = [pickled]
    parts.extend(buffer.raw() for buffer in buffers)
    file.write(_LENGTH.pack(len(parts)))
    for part in parts:
        size = memoryview(part).nbytes
        file.write(_LENGTH.pack(size))
        file.write(part)
    file.flush()


def receive(file: BinaryIO) -> Any:
    """Read one message.

    Errors: EOFError when the other side is gone, also in the middle of a message.
    """
    count = _read_length(file)
    parts = []
    for _ in range(count):
        size = _read_length(file)
        parts.append(_read(file, size))
    # bytearrays, not bytes: the receiver may write into its arrays
    return pickle.loads(parts[0], buffers=parts[1:])


def _read_length(file: BinaryIO) -> int:
    (length,) = _LENGTH.unpack(_read(file, _LENGTH.size))
    return int(length)


def _read(file: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    filled = 0
    while filled < size:
        rest = view[filled:]
        got = file.readinto(rest)  # type: ignore[attr-defined]  # every buffered reader has it
        if not got:
            raise EOFError
        filled += got
    return data
