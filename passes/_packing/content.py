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

from .._core.lazy import blocks

MOST_VALUES = 64
"""Distinct values that a palette has at most: indices of 6 bits; more save too little."""

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
        return [int(d) for d in self.tensor.shape.numpy()]


def content_of(tensor: ir.TensorProtocol) -> Content:
    """Gather the facts about a tensor of whole bytes an element; one pass, block by block."""
    content = Content(tensor)
    palette: Bits | None = np.zeros(0, BIT_TYPES[tensor.dtype.bitwidth])
    narrower = list(NARROWER.get(tensor.dtype, ()))
    last_nonzero = -1
    for start, block in bit_blocks(tensor):
        places = np.flatnonzero(block) + start
        content.size += block.size
        content.nonzeros += places.size
        gaps = np.diff(places, prepend=last_nonzero)
        for longest in LONGEST_GAPS:
            entries = -(-gaps // longest)
            content.gap_entries[longest] += int(entries.sum())
        if places.size:
            last_nonzero = int(places[-1])
        if palette is not None:
            palette = _with_distinct(palette, block)
        narrower = [kind for kind in narrower if _holds(block, tensor.dtype, kind)]
    content.palette = palette
    content.narrower = narrower
    return content


def _with_distinct(known: Bits, block: Bits) -> Bits | None:
    """The distinct elements of both, sorted; None for more than a palette has."""
    for part in (block[:HEAD], block):  # a weight that is not quantized shows it soon
        ordered = np.sort(np.concatenate([known, part]))
        first = np.ones(ordered.size, bool)
        first[1:] = ordered[1:] != ordered[:-1]
        distinct = ordered[first]
        if distinct.size > MOST_VALUES:
            return None
    return distinct


def bit_blocks(
    tensor: ir.TensorProtocol, granule: int = 1
) -> Iterator[tuple[int, Bits]]:
    """Stream a tensor as (start, flat block of bits)."""
    bits = BIT_TYPES[tensor.dtype.bitwidth]
    for start, block in blocks(tensor, granule):
        yield start, np.ascontiguousarray(block).reshape(-1).view(bits)


def as_type(bits: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Bits as elements of their type."""
    return np.ascontiguousarray(bits).view(dtype.numpy())


NARROWER: dict[ir.DataType, tuple[ir.DataType, ...]] = {
    ir.DataType.DOUBLE: (ir.DataType.FLOAT16, ir.DataType.FLOAT),
    ir.DataType.FLOAT: (ir.DataType.INT8, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    ir.DataType.INT64: (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32),
    ir.DataType.INT32: (ir.DataType.INT8, ir.DataType.INT16),
}
"""Types that a Cast turns into the key's exactly, the smallest first."""


def _holds(block: Bits, wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Return whether casting to `narrow` and back gives the same bits."""
    values = as_type(block, wide)
    if (
        wide in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
        and not np.isfinite(values).all()
    ):
        return False  # runtimes differ in what a Cast makes of a NaN's payload
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(narrow.numpy())
        back = cast.astype(wide.numpy())
    return np.array_equal(back.view(block.dtype), block)


def narrowed(tensor: ir.TensorProtocol, kind: ir.DataType) -> NDArray[Any]:
    """The tensor, flat, in a narrower type that holds it exactly."""
    parts = [
        as_type(b, tensor.dtype).astype(kind.numpy()) for _, b in bit_blocks(tensor)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, kind.numpy())
