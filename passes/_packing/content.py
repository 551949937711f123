"""Facts about a constant that decide how it is stored, gathered in one pass over its blocks.

Elements are compared by their bits: 0.0 and -0.0 differ, and NaN equals itself, so that decoding
gives back every bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_palettes import MOST_VALUES
from .._core.lazy import blocks

LONGEST_GAPS = (15, 255)
"""Distances between nonzeros that half a byte and one byte hold; longer ones take fillers."""

HEAD = 4096
"""Elements of a block that are looked at first for distinct values."""

BIT_TYPES: dict[int, type[np.unsignedinteger[Any]]] = {
    8: np.uint8,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
"""Unsigned type by the bits of an element."""

Array = NDArray[Any]
Bits = NDArray[np.unsignedinteger[Any]]


@dataclass
class Content:
    """Facts about one constant.

    `size`, `nonzeros`: counts of elements; zero is the element of all-zero bits. `gap_entries`:
    distances between nonzeros, fillers counted, by the longest that is stored.
    `palette`: the distinct elements as
    bits, sorted; None where there are more than `MOST_VALUES`. `narrower`: types whose values all
    elements are, smaller than their own.
    """

    tensor: ir.TensorProtocol
    size: int = 0
    nonzeros: int = 0
    gap_entries: Counter[int] = field(default_factory=Counter)
    palette: Bits | None = None
    narrower: list[ir.DataType] = field(default_factory=list)

    @property
    def dtype(self) -> ir.DataType:
        """Element type."""
        return self.tensor.dtype

    @property
    def dims(self) -> list[int]:
        """Shape."""
        shape = self.tensor.shape
        dims = shape.numpy()
        return [int(dim) for dim in dims]

    @property
    def bit_type(self) -> type[np.unsignedinteger[Any]]:
        """Unsigned type as wide as an element."""
        width = self.dtype.bitwidth
        return BIT_TYPES[width]

    def bit_blocks(self, granule: int = 1) -> Iterator[Bits]:
        """Stream the elements as flat blocks of bits."""
        for _, block in bit_blocks(self.tensor, granule):
            yield block


def content_of(tensor: ir.TensorProtocol, every: int = 1) -> Content:
    """Gather the facts about a tensor of whole bytes an element; one pass, block by block.

    `every`: of one block in so many. No palette, and no narrower type, then hold for the whole, and
    there are no gaps to count.
    """
    content = Content(tensor)
    dtype = tensor.dtype
    palette: Bits | None = np.zeros(0, content.bit_type)
    kinds = NARROWER.get(dtype, ())
    narrower = list(kinds)
    last_nonzero = -1
    for start, block in bit_blocks(tensor, every=every):
        content.size += block.size
        if every > 1:
            content.nonzeros += int(np.count_nonzero(block))
        else:
            last_nonzero = _count_nonzeros(content, block, start, last_nonzero)
        if palette is not None:
            palette = _with_distinct(palette, block)
        for kind in list(narrower):
            if not _holds(block, dtype, kind):
                narrower.remove(kind)
    content.palette = palette
    content.narrower = narrower
    return content


def _count_nonzeros(content: Content, block: Bits, start: int, before: int) -> int:
    """Add the nonzeros of a block, and the gaps between them; return the place of the last.

    `before`: the place of the last nonzero of the blocks before.
    """
    inside = np.flatnonzero(block)
    if not inside.size:
        return before
    places = inside + start
    content.nonzeros += places.size
    gaps = np.diff(places, prepend=before)
    _count_entries(content, gaps)
    return int(places[-1])


def _count_entries(content: Content, gaps: NDArray[np.intp]) -> None:
    """Add the nonzeros that end these gaps, and the fillers within them."""
    for longest in LONGEST_GAPS:
        # one for each nonzero; fillers are few, and only their gaps are divided
        long = gaps[gaps > longest]
        fillers = (long - 1) // longest
        content.gap_entries[longest] += gaps.size + int(fillers.sum())


def _with_distinct(known: Bits, block: Bits) -> Bits | None:
    """The distinct elements of both, sorted; None for more than a palette has."""
    # a weight that is not quantized shows it soon
    head = block[:HEAD]
    early = _distinct(known, head)
    if early.size > MOST_VALUES:
        return None
    distinct = _distinct(known, block)
    if distinct.size > MOST_VALUES:
        return None
    return distinct


def _distinct(known: Bits, more: Bits) -> Bits:
    """The distinct elements of both, sorted."""
    both = np.concatenate([known, more])
    both.sort()
    later = both[1:]
    before = both[:-1]
    size = both.size
    is_first = np.ones(size, bool)
    is_first[1:] = later != before
    return both[is_first]


def bit_blocks(
    tensor: ir.TensorProtocol, granule: int = 1, every: int = 1
) -> Iterator[tuple[int, Bits]]:
    """Stream a tensor as (start, flat block of bits), as `blocks` does."""
    dtype = tensor.dtype
    width = dtype.bitwidth
    bit_type = BIT_TYPES[width]
    for start, block in blocks(tensor, granule, every):
        # a view of other elements needs them side by side
        contiguous = np.ascontiguousarray(block)
        flat = contiguous.reshape(-1)
        bits = flat.view(bit_type)
        yield start, bits


def as_type(bits: Array, dtype: ir.DataType) -> Array:
    """Bits as elements of their type."""
    kind = dtype.numpy()
    contiguous = np.ascontiguousarray(bits)
    return contiguous.view(kind)


NARROWER: dict[ir.DataType, tuple[ir.DataType, ...]] = {
    ir.DataType.DOUBLE: (ir.DataType.FLOAT16, ir.DataType.FLOAT),
    ir.DataType.FLOAT: (ir.DataType.INT8, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    ir.DataType.INT64: (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32),
    ir.DataType.INT32: (ir.DataType.INT8, ir.DataType.INT16),
}
"""Types that a Cast turns into the key's exactly, the smallest first."""

NAN_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
"""Those of its keys that have NaN."""


def _holds(block: Bits, wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Return whether casting to `narrow` and back gives the same bits."""
    values = as_type(block, wide)
    if wide in NAN_TYPES:
        is_finite = np.isfinite(values)
        # runtimes differ in what a Cast makes of a NaN's payload
        if not is_finite.all():
            return False
    narrow_type = narrow.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(narrow_type)
        back = cast.astype(values.dtype)
    back_bits = back.view(block.dtype)
    return np.array_equal(back_bits, block)


def narrowed(tensor: ir.TensorProtocol, kind: ir.DataType) -> Array:
    """The tensor, flat, in a narrower type that holds it exactly."""
    narrow_type = kind.numpy()
    wide = tensor.dtype
    nothing = np.zeros(0, narrow_type)
    parts = [nothing]
    for _, block in bit_blocks(tensor):
        values = as_type(block, wide)
        part = values.astype(narrow_type)
        parts.append(part)
    return np.concatenate(parts)
