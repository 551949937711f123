"""Weights re-described, not copied: a tensor is a source and a kernel, streamed when it is written.

Peak memory is a few blocks however large the tensor; passes compose by nesting. Why, and what it
closes: docs/decisions/2026-11-22-weights-are-described.md.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .held import HeldTensor

BLOCK = 256 * 1024
"""Elements of a block: 1 MiB of float32, small enough to stay in the cache."""

WRITE = 1 << 18
"""Bytes handed to the file at a time.

Measured 3 to 4 times faster on ext4 than 1 MiB, for which the kernel takes huge pages.
"""

KEPT = 1 << 24
"""Bytes up to which the heap keeps a freed array, above every block that is usual."""

LARGE_BLOCK = 16 * BLOCK
"""Elements of a block from which blocks are computed one at a time, for the memory they take."""

BATCH = 8 * BLOCK
"""Elements that a thread computes at a time: to hand over results costs as much as a kernel."""

THREADS = min(max(os.cpu_count() or 1, 2), 4)
"""Threads that compute blocks: more wait for memory, and for each other between numpy's calls."""

Kernel = Callable[[NDArray[Any], int], NDArray[Any]]
"""(flat block, index of its first element) -> flat block of as many elements, in the new type.

Blocks are computed on several threads at once, in no order. The kernel may change a block that owns
its memory, as that was made for it alone; any other is a view of a tensor.
"""

Part = Callable[[], NDArray[Any]]
"""A flat block that is computed when it is called, on whichever thread."""

Stored = ir.ExternalTensor | HeldTensor
"""Tensors of which pieces are read from a file."""

T = TypeVar("T")


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

    def parts(self, granule: int = 1, every: int = 1) -> Iterator[tuple[int, Part]]:
        """Yield (start, part) in order, as the function `parts` does."""
        both = int(np.lcm(granule, self.granule))
        for start, part in parts(self.source, both, every):
            yield start, functools.partial(self._computed, part, start)

    def _computed(self, part: Part, start: int) -> NDArray[Any]:
        block = part()
        out = self.kernel(block, start)
        assert out.size == block.size, (
            f"{self.name}: kernel returned {out.size} of {block.size} elements"
        )
        return out

    def numpy(self) -> NDArray[Any]:
        """The whole tensor, computed now. For small tensors and tests; writers use `tofile`."""
        flat = np.empty(self.size, self.dtype.numpy())
        for start, block in blocks(self):
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
        data = b"".join(compute() for compute in self._byte_parts())
        self._require_length(len(data))
        return data

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes block by block (the hook of onnx_ir's external data writer)."""
        keep_freed_blocks()
        written = 0
        for chunk in _by_size(self, self.granule, self._byte_parts()):
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

    def _byte_parts(self) -> Iterator[Callable[[], bytes | memoryview]]:
        bits = self.dtype.bitwidth
        # blocks of whole bytes, so that each is packed like a tensor of its own
        granule = max(8 // bits, 1)
        for _, part in self.parts(granule):
            yield functools.partial(self._bytes_of, part)

    def _bytes_of(self, part: Part) -> bytes | memoryview:
        block = part()
        if self.dtype.bitwidth < 8:
            return ir.Tensor(block, dtype=self.dtype).tobytes()
        flat = np.ascontiguousarray(block).reshape(-1)
        as_stored = _little_endian(flat)
        return as_stored.view(np.uint8).data

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


def map_blocks(
    function: Callable[[NDArray[Any], int], T],
    tensor: ir.TensorProtocol,
    granule: int = 1,
) -> Iterator[T]:
    """Yield function(block, start) of each block in order, several computed at once.

    What is summed up over results is the same with any number of threads.
    """

    def computed(part: Part, start: int) -> T:
        return function(part(), start)

    found = parts(tensor, granule)
    tasks = (functools.partial(computed, part, start) for start, part in found)
    return _by_size(tensor, granule, tasks)


def _by_size(
    tensor: ir.TensorProtocol, granule: int, tasks: Iterator[Callable[[], T]]
) -> Iterator[T]:
    """Results of a tensor's blocks in order, on threads where they pay."""
    # they do not for one or two blocks, and large ones together would fill memory
    if tensor.size <= 2 * BLOCK or granule >= LARGE_BLOCK:
        return (task() for task in tasks)
    return in_order(tasks, max(BATCH // max(BLOCK, granule), 1))


def in_order(tasks: Iterable[Callable[[], T]], batch: int = 1) -> Iterator[T]:
    """Yield the results of tasks in their order; a few batches run ahead, each on one thread.

    All tasks of the process share THREADS threads, so that what they work on stays in the caches.
    Of a task inside a task nothing runs ahead.
    """
    rest = iter(tasks)
    first = list(itertools.islice(rest, batch + 1))
    # threads do not pay for one batch, and one that waits for others would hold them up
    if len(first) <= batch or _shared.is_inside:
        for task in itertools.chain(first, rest):
            yield task()
        return
    rest = itertools.chain(first, rest)
    yield from _ahead(_threads(), rest, batch)


def side_by_side(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of tasks in their order, two at a time: of such as wait for `in_order`."""
    # those that it would wait for wait for this thread
    if _shared.is_inside:
        for task in tasks:
            yield task()
        return
    with ThreadPoolExecutor(2) as threads:
        yield from _ahead(threads, iter(tasks), batch=1)


def _ahead(
    threads: ThreadPoolExecutor, tasks: Iterator[Callable[[], T]], batch: int
) -> Iterator[T]:
    ahead: deque[Future[list[T]]] = deque()
    try:
        while some := list(itertools.islice(tasks, batch)):
            ahead.append(threads.submit(_results, some))
            if len(ahead) > THREADS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        # nothing reads a file any more when the caller goes on
        for future in ahead:
            future.cancel()
        wait(ahead)


class _Shared(threading.local):
    """True on a thread that computes blocks for others."""

    is_inside = False


_shared = _Shared()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    def enter() -> None:
        _shared.is_inside = True

    return ThreadPoolExecutor(THREADS, "blocks", initializer=enter)


if hasattr(os, "register_at_fork"):
    # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _results(tasks: Sequence[Callable[[], T]]) -> list[T]:
    return [task() for task in tasks]


def reusable(block: NDArray[Any]) -> NDArray[Any] | None:
    """A kernel's block where the kernel may write into it, for `out=` of numpy; else None.

    What a fresh megabyte costs is more than the arithmetic on it.
    """
    return block if block.flags.owndata else None


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Numbers in the byte order of files, or of files in that of the machine."""
    if np.little_endian:
        return array
    return array.byteswap()


def blocks(
    tensor: ir.TensorProtocol, granule: int = 1, every: int = 1
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stream a tensor as (start, flat block), in order; granule and every as of `parts`."""
    for start, part in parts(tensor, granule, every):
        yield start, part()


def parts(
    tensor: ir.TensorProtocol, granule: int = 1, every: int = 1
) -> Iterator[tuple[int, Part]]:
    """Divide a tensor into (start, part) in order; a part gives its flat block when it is called.

    Lengths are multiples of `granule` elements; that of the last block may not be. What lies in a
    file is read with plain reads, never mapped whole. A granule larger than BLOCK makes larger
    blocks.
    `every`: one block in so many is read, the others are passed over.
    """
    granules = max(BLOCK // granule, 1)
    step = granules * granule
    if isinstance(tensor, DerivedTensor):
        yield from tensor.parts(granule, every)
        return
    starts = range(0, tensor.size, step * every)
    # types below 8 bits are packed, which onnx_ir undoes for a whole tensor only
    if isinstance(tensor, Stored) and tensor.dtype.bitwidth >= 8:
        keep_freed_blocks()
        for start in starts:
            yield start, functools.partial(_read, tensor, start, step)
        return
    flat = tensor.numpy().reshape(-1)
    for start in starts:
        yield start, functools.partial(_slice, flat, start, step)


def _slice(flat: NDArray[Any], start: int, step: int) -> NDArray[Any]:
    return flat[start : start + step]


def _read(tensor: Stored, start: int, step: int) -> NDArray[Any]:
    count = min(step, tensor.size - start)
    if isinstance(tensor, HeldTensor):
        return tensor.read(start, count)
    dtype = np.dtype(tensor.dtype.numpy())
    block = np.empty(count, dtype)
    # a file of its own: threads that share one would move each other's place in it
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek((tensor.offset or 0) + start * dtype.itemsize)
        _fill(block, file, tensor)
    return _little_endian(block)


def _fill(block: NDArray[Any], file: io.FileIO, tensor: ir.ExternalTensor) -> None:
    """Read a whole block from an unbuffered file, which may give less than it is asked for."""
    view = block.view(np.uint8).data
    filled = 0
    while filled < len(view):
        got = file.readinto(view[filled:])
        if not got:
            raise OSError(f"{tensor.path}: ends inside tensor '{tensor.name}'")
        filled += got


def transposed(
    tensor: ir.TensorProtocol, axes: Sequence[int] | None = None
) -> ir.LazyTensor:
    """A tensor with its axes in another order, by default backwards, whenever it is read."""
    dims = tensor.shape.numpy()
    if axes is None:
        axes = range(len(dims))[::-1]

    def compute() -> ir.TensorProtocol:
        turned = np.transpose(tensor.numpy(), axes)
        contiguous = np.ascontiguousarray(turned)
        return ir.Tensor(contiguous, dtype=tensor.dtype)

    shape = ir.Shape([dims[axis] for axis in axes])
    return ir.LazyTensor(
        compute,
        dtype=tensor.dtype,
        shape=shape,
        name=tensor.name,
    )


def set_tensor(value: ir.Value, tensor: Any) -> None:
    """Replace an initializer's tensor, with its declared shape and type, which would be stale."""
    tensor.name = value.name
    value.const_value = tensor
    dims = tensor.shape.numpy()
    value.shape = ir.Shape(dims)
    value.type = ir.TensorType(tensor.dtype)
