"""Tensors that stay in the model file that they came in."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .held_file import HeldFile

_BLOCK = 1 << 18
"""Bytes that are copied from file to file at a time, as `lazy.WRITE`."""


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
        dims = self.shape.numpy()
        return math.prod(dims)

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
        content = self.tobytes()
        packed = onnx.TensorProto(
            dims=dims,
            data_type=self.dtype.value,
            raw_data=content,
        )
        tensor = ir.serde.TensorProtoTensor(packed)
        array: NDArray[Any] = tensor.numpy()
        return array

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Read `count` elements from the number `start` on, flat; of types of whole bytes."""
        dtype = np.dtype(self.dtype.numpy())
        block = np.empty(count, dtype)
        view = block.view(np.uint8).data
        distance = start * dtype.itemsize
        self.file.read_into(view, self.offset + distance)
        if np.little_endian:
            return block
        return block.byteswap()

    def tobytes(self) -> bytes:
        content = bytearray(self.nbytes)
        view = memoryview(content)
        self.file.read_into(view, self.offset)
        return bytes(content)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes, block by block."""
        nbytes = self.nbytes
        longest = min(_BLOCK, nbytes)
        content = memoryview(bytearray(longest))
        for start in range(0, nbytes, _BLOCK):
            left = nbytes - start
            view = content[:left]
            self.file.read_into(view, self.offset + start)
            file.write(view)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        if dtype is None:
            return array
        return array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        array = self.numpy()
        return array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        array = self.numpy()
        return array.__dlpack_device__()

    def __repr__(self) -> str:
        dims = list(self.shape.numpy())
        return f"HeldTensor({self.name!r}, {self.dtype}{dims})"
