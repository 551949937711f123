"""Weights re-described, not copied: a tensor is a source and a kernel, streamed when it is written.

Peak memory is one block however large the tensor; passes compose by nesting. Why, and what it
closes: docs/decisions/2026-11-22-weights-are-described.md.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

BLOCK = 256 * 1024
"""Elements of a block: 1 MiB of float32, small enough to stay in the cache."""

WRITE = 1 << 18
"""Bytes handed to the file at a time.

Measured 3 to 4 times faster on ext4 than 1 MiB, for which the kernel takes huge pages.
"""

KEPT = 1 << 24
"""Bytes up to which the heap keeps a freed array, above every block that is usual."""

Kernel = Callable[[NDArray[Any], int], NDArray[Any]]
"""(flat block, index of its first element) -> flat block of as many elements, in the new type."""


class DerivedTensor:
    """A tensor computed elementwise from another one, lazily. Satisfies `ir.TensorProtocol`.

    Shapes: as the source. `granule`: block lengths are multiples of it (a row, a channel), so that
    the kernel may reshape its block to (-1, granule). Errors: AssertionError if a kernel returns
    the wrong number of bytes.
    """

    def __init__(
        self,
        source: ir.TensorProtocol,
        kernel: Kernel,
        dtype: ir.DataType,
        granule: int = 1,
    ) -> None:
        self.name: str | None = source.name
        self.doc_string: str | None = None
        self.raw: Any = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}
        self.dtype = dtype
        self.shape: ir.ShapeProtocol = source.shape
        self.source = source
        self.kernel = kernel
        # a granule of 0 is that of a weight without elements
        self.granule = max(granule, 1)

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def nbytes(self) -> int:
        bits = self.size * self.dtype.bitwidth
        # rounded up to whole bytes
        return -(-bits // 8)

    def blocks(self, granule: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (start, flat block) in order; lengths are multiples of both granules."""
        both = int(np.lcm(granule, self.granule))
        for start, block in blocks(self.source, both):
            out = self.kernel(block, start)
            assert out.size == block.size, (
                f"{self.name}: kernel returned {out.size} of {block.size} elements"
            )
            yield start, out

    def numpy(self) -> NDArray[Any]:
        """The whole tensor, computed now. For small tensors and tests; writers use `tofile`."""
        flat = np.empty(self.size, self.dtype.numpy())
        for start, block in self.blocks():
            end = start + block.size
            flat[start:end] = block
        shape = self.shape.numpy()
        return flat.reshape(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        if dtype is None:
            return array
        return array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        # kDLCPU, device 0
        return (1, 0)

    def tobytes(self) -> bytes:
        data = b"".join(self._byte_blocks())
        self._require_length(len(data))
        return data

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes block by block (the hook of onnx_ir's external data writer)."""
        keep_freed_blocks()
        chunks = self._byte_blocks()
        # a second thread does not pay for tensors of one or two blocks
        if self.size > 2 * BLOCK:
            chunks = _one_ahead(chunks)
        written = 0
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, view.nbytes, WRITE):
                file.write(view[start : start + WRITE])
            written += view.nbytes
        self._require_length(written)

    def _require_length(self, nbytes: int) -> None:
        # a short tensor would shift or zero what the file holds behind it, unnoticed
        assert nbytes == self.nbytes, (
            f"{self.name}: {nbytes} bytes made, {self.nbytes} declared"
        )

    def _byte_blocks(self) -> Iterator[bytes | memoryview]:
        bits = self.dtype.bitwidth
        if bits < 8:
            # blocks of whole bytes, so that each is packed like a tensor of its own
            for _, block in self.blocks(granule=8 // bits):
                part = ir.Tensor(block, dtype=self.dtype)
                yield part.tobytes()
            return
        for _, block in self.blocks():
            flat = np.ascontiguousarray(block).reshape(-1)
            as_stored = _little_endian(flat)
            yield as_stored.view(np.uint8).data

    def __repr__(self) -> str:
        dims = list(self.shape.numpy())
        return f"DerivedTensor({self.name!r}, {self.dtype}{dims})"


@functools.cache
def keep_freed_blocks() -> None:
    """Have glibc keep freed blocks in the heap, for the rest of the process.

    It unmaps every freed block above 128 KiB at first, and the page faults of the next one cost
    more than a kernel. Once a larger block has been freed, it keeps all below that size
    (`mallopt(3)`, M_MMAP_THRESHOLD is dynamic); other allocators lose nothing.
    """
    np.empty(KEPT, np.uint8)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each computed on a second thread while the caller works on the last."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, items, end)
            yield item


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Numbers in the byte order of files, or of files in that of the machine."""
    if np.little_endian:
        return array
    return array.byteswap()


def blocks(
    tensor: ir.TensorProtocol, granule: int = 1
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stream a tensor as (start, flat block), in order.

    Lengths are multiples of `granule` elements; that of the last block may not be. External data is
    read with plain reads, never mapped whole. A granule larger than BLOCK makes larger blocks.
    """
    granules = max(BLOCK // granule, 1)
    step = granules * granule
    if isinstance(tensor, DerivedTensor):
        yield from tensor.blocks(granule)
        return
    # types below 8 bits are packed, which onnx_ir undoes for a whole tensor only
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        yield from _read_external(tensor, step)
        return
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, step):
        yield start, flat[start : start + step]


def _read_external(
    tensor: ir.ExternalTensor, step: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    keep_freed_blocks()
    dtype = np.dtype(tensor.dtype.numpy())
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek(tensor.offset or 0)
        for start in range(0, tensor.size, step):
            left = tensor.size - start
            block = np.empty(min(step, left), dtype)
            _fill(block, file, tensor)
            yield start, _little_endian(block)


def _fill(block: NDArray[Any], file: io.FileIO, tensor: ir.ExternalTensor) -> None:
    """Read a whole block from an unbuffered file, which may give less than it is asked for."""
    view = block.view(np.uint8).data
    filled = 0
    while filled < len(view):
        got = file.readinto(view[filled:])
        if not got:
            raise OSError(f"{tensor.path}: ends inside tensor '{tensor.name}'")
        filled += got


def set_tensor(value: ir.Value, tensor: Any) -> None:
    """Replace an initializer's tensor, with its declared shape and type, which would be stale."""
    tensor.name = value.name
    value.const_value = tensor
    dims = tensor.shape.numpy()
    value.shape = ir.Shape(dims)
    value.type = ir.TensorType(tensor.dtype)
