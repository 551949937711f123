"""Files that are held open, and tensors that stay in the model file that they came in."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError

CAN_HOLD = hasattr(os, "preadv")
"""False on Windows, which puts nothing in the place of a file that is open."""

_BLOCK = 1 << 18
"""Bytes that are copied from file to file at a time, as `lazy.WRITE`."""


_WINDOW = 1 << 14
"""Bytes that are read at a time where a few are asked for. Chosen by hand: some nodes' worth."""


class HeldFile:
    """A file that is read piece by piece, and stays open until nobody needs it.

    Another file may take its name meanwhile: this one is read all the same. Threads may share it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._current()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._state[0]

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on.

        Errors: RefusedError if someone has written to the file since it was opened.
        """
        filled = 0
        while filled < len(view):
            got = os.preadv(self.descriptor, [view[filled:]], offset + filled)
            if not got:
                break
            filled += got
        # asked afterwards: it may be written to at this very moment
        if filled < len(view) or self._current() != self._state:
            raise RefusedError(
                self.path,
                "was written to while it was in use",
                "run again, and put a new file in its place where it must change",
            )

    def _current(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns


class FileBytes:
    """The bytes of a held file, sliced like `bytes`: what lies close together is read at once.

    Not a map of the file: a page of it that is touched may bring megabytes with it, and one that
    another process cuts off ends this one. For one thread.
    """

    def __init__(self, file: HeldFile) -> None:
        self._file = file
        self._start = 0
        self._window = b""

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, at: slice) -> bytes:
        start, stop, _ = at.indices(len(self))
        begin = start - self._start
        end = stop - self._start
        if begin < 0 or end > len(self._window):
            self._read(start, stop)
            begin = 0
            end = stop - start
        return self._window[begin:end]

    def _read(self, start: int, stop: int) -> None:
        length = max(stop - start, _WINDOW)
        content = bytearray(min(length, len(self) - start))
        self._file.read_into(memoryview(content), start)
        self._start = start
        self._window = bytes(content)


class HeldTensor:
    """A tensor whose bytes lie in a held file, read when they are asked for.

    Satisfies `ir.TensorProtocol`. It is no `ir.ExternalTensor`: a model that holds it is written
    with its bytes, not with a reference to the file. Errors of all that reads: as
    `HeldFile.read_into`.
    """

    def __init__(self, file: HeldFile, offset: int, like: ir.TensorProtocol) -> None:
        """A tensor from `offset` of the file on, otherwise as the tensor `like`."""
        self.file = file
        self.offset = offset
        self.name: str | None = like.name
        self.doc_string: str | None = like.doc_string
        self.raw: Any = None
        self.metadata_props: MutableMapping[str, str] = dict(like.metadata_props)
        self.meta: MutableMapping[str, Any] = {}
        self.dtype = like.dtype
        self.shape: ir.ShapeProtocol = like.shape

    @property
    def size(self) -> int:
        return math.prod(self.shape.numpy())

    @property
    def nbytes(self) -> int:
        bits = self.size * self.dtype.bitwidth
        # rounded up: the last byte may be half full
        return -(-bits // 8)

    def numpy(self) -> NDArray[Any]:
        """The whole tensor, read now. For small tensors and tests; others stream `lazy.blocks`."""
        if self.dtype.bitwidth < 8:
            return self._unpacked()
        shape = self.shape.numpy()
        array = self.read(0, self.size).reshape(shape)
        # as of a tensor in memory: what is written to would be lost
        array.flags.writeable = False
        return array

    def _unpacked(self) -> NDArray[Any]:
        dims = self.shape.numpy()
        packed = onnx.TensorProto(
            dims=dims, data_type=self.dtype.value, raw_data=self.tobytes()
        )
        array: NDArray[Any] = ir.serde.TensorProtoTensor(packed).numpy()
        return array

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Read `count` elements from the number `start` on, flat; of types of whole bytes."""
        dtype = np.dtype(self.dtype.numpy())
        block = np.empty(count, dtype)
        view = block.view(np.uint8).data
        self.file.read_into(view, self.offset + start * dtype.itemsize)
        return block if np.little_endian else block.byteswap()

    def tobytes(self) -> bytes:
        content = bytearray(self.nbytes)
        self.file.read_into(memoryview(content), self.offset)
        return bytes(content)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes, block by block."""
        content = memoryview(bytearray(min(_BLOCK, self.nbytes)))
        for start in range(0, self.nbytes, _BLOCK):
            view = content[: self.nbytes - start]
            self.file.read_into(view, self.offset + start)
            file.write(view)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        dims = list(self.shape.numpy())
        return f"HeldTensor({self.name!r}, {self.dtype}{dims})"
