"""Weights re-described, not copied: a tensor that is a source and a kernel, streamed block by block
when it is written.

Peak memory is one block however large the tensor; passes compose by nesting. Measured shape:
reference of the design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

BLOCK = 256 * 1024  # elements: 1 MiB of float32, small enough to stay in the cache
WRITE = (
    1 << 18
)  # bytes handed over at a time: measured 3 to 4 times faster on ext4 than 1 MiB, whose pages are huge
np.empty(
    1 << 24, np.uint8
)  # freed at once: glibc then keeps freed blocks up to this size instead of unmapping each
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
        self.granule = max(granule, 1)

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def nbytes(self) -> int:
        return -(-self.size * self.dtype.bitwidth // 8)

    def blocks(self, granule: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (start, flat block) in order; lengths are multiples of both granules."""
        for start, block in blocks(self.source, int(np.lcm(granule, self.granule))):
            out = self.kernel(block, start)
            assert out.size == block.size, (
                f"{self.name}: kernel returned {out.size} of {block.size} elements"
            )
            yield start, out

    def numpy(self) -> NDArray[Any]:
        """The whole tensor, computed now. For small tensors and tests; writers use `tofile`."""
        out = np.empty(self.size, self.dtype.numpy())
        for start, block in self.blocks():
            out[start : start + block.size] = block
        return out.reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def tobytes(self) -> bytes:
        data = b"".join(self._byte_blocks())
        assert len(data) == self.nbytes, (
            f"{self.name}: {len(data)} bytes computed, {self.nbytes} declared"
        )
        return data

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes block by block (the hook of onnx_ir's external data writer)."""
        written = 0
        for data in (
            _one_ahead(self._byte_blocks())
            if self.size > 2 * BLOCK
            else self._byte_blocks()
        ):
            view = memoryview(data)
            for start in range(0, view.nbytes, WRITE):
                file.write(view[start : start + WRITE])
            written += view.nbytes
        assert written == self.nbytes, (
            f"{self.name}: {written} bytes written, {self.nbytes} declared"
        )

    def _byte_blocks(self) -> Iterator[Any]:
        if (
            self.dtype.bitwidth < 8
        ):  # a block of whole bytes is packed like a tensor of its own
            for _, block in self.blocks(8 // self.dtype.bitwidth):
                yield ir.Tensor(block, dtype=self.dtype).tobytes()
            return
        for _, block in self.blocks():
            little = np.ascontiguousarray(block)
            if not np.little_endian:
                little = little.byteswap()
            yield little.reshape(-1).view(np.uint8).data

    def __repr__(self) -> str:
        return f"DerivedTensor({self.name!r}, {self.dtype}{list(self.shape.numpy())})"


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each computed on a second thread while the caller works on the one before
    it.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, items, end)
            yield item


def blocks(
    tensor: ir.TensorProtocol, granule: int = 1
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stream a tensor as (start, flat block); lengths are multiples of `granule` elements, the last
    may be short.

    External data is read with plain reads, never mapped whole. A granule larger than BLOCK makes
    larger blocks.
    """
    step = max(BLOCK // granule, 1) * granule
    if isinstance(tensor, DerivedTensor):
        yield from tensor.blocks(granule)
    elif isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        yield from _read_external(tensor, step)
    else:
        flat = tensor.numpy().reshape(-1)
        for start in range(0, flat.size, step):
            yield start, flat[start : start + step]


def _read_external(
    tensor: ir.ExternalTensor, step: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    dtype = np.dtype(tensor.dtype.numpy())
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek(tensor.offset or 0)
        for start in range(0, tensor.size, step):
            block = np.empty(min(step, tensor.size - start), dtype)
            view = block.view(np.uint8).data
            filled = 0
            while filled < len(view):
                got = file.readinto(view[filled:])
                if not got:
                    raise OSError(f"{tensor.path}: ends inside tensor '{tensor.name}'")
                filled += got
            yield start, block if np.little_endian else block.byteswap()


def set_tensor(value: ir.Value, tensor: Any) -> None:
    """Replace an initializer's tensor and its declared shape and type together (they drift apart
    otherwise).
    """
    tensor.name = value.name
    value.const_value = tensor
    value.shape = ir.Shape(tensor.shape.numpy())
    value.type = ir.TensorType(tensor.dtype)


"""Types whose values are weights; bfloat16 arrays are `ml_dtypes.bfloat16`."""
