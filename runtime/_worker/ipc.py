"""Messages between the worker and its parent: length-prefixed pickles, arrays beside them without a
copy.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<Q")


def send(file: BinaryIO, message: Any) -> None:
    """Write one message: the pickle, then the buffers of its arrays, each after its length in
    bytes.
    """
    buffers: list[pickle.PickleBuffer] = []
    parts: list[Any] = [
        pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    ]
    parts += [buffer.raw() for buffer in buffers]
    file.write(_LENGTH.pack(len(parts)))
    for part in parts:
        file.write(_LENGTH.pack(memoryview(part).nbytes))
        file.write(part)
    file.flush()


def receive(file: BinaryIO) -> Any:
    """Read one message. Errors: EOFError when the other side is gone, also in the middle of a
    message.
    """
    (count,) = _LENGTH.unpack(_read(file, _LENGTH.size))
    parts = [
        _read(file, _LENGTH.unpack(_read(file, _LENGTH.size))[0]) for _ in range(count)
    ]
    return pickle.loads(parts[0], buffers=parts[1:])


def _read(file: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        got = file.readinto(view[filled:])  # type: ignore[attr-defined]  # every buffered reader has it
        if not got:
            raise EOFError
        filled += got
    return data
