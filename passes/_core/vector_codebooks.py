"""Int8 codes made of few different vectors of neighbouring weights: which, if any.

    channel:  codes 3, -20, 7, 41 | 0, 12, -5, 9 | ...  ->  a number below 256 for each vector

Vectors lie within a channel; channels along the first axis or the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .channel_layout import Layout
from .lazy import blocks

MOST_VECTORS = 256
"""Vectors of a codebook at most: numbers of one byte, which nothing has to unpack."""

LENGTHS = {1: (9, 8, 10, 7), 2: (4, 5, 3)}
"""Weights of a vector by the bits that each takes, about; the first that divides a channel counts.

Nine are a kernel of 3 x 3.
"""

LONGEST_FIRST = sorted(itertools.chain(*LENGTHS.values()), reverse=True)
"""All lengths, as codes are looked for."""

LEAST_REPEATS = 1.5
"""Times that vectors other than zeros occur, in the mean, where they make a codebook; chosen by
hand.
"""

HEAD = 1024
"""Vectors of a tensor that are looked at first: of other codes nearly all differ."""

Array = NDArray[Any]
Vectors = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class VectorCodebook:
    """A tensor of int8 as `vectors` (count, length), ascending, and `index`, uint8, into them.

    Vectors are in the order of channels. `layout`: the tensor around their axis.
    """

    vectors: Vectors
    index: ir.TensorProtocol
    layout: Layout

    @property
    def length(self) -> int:
        """Weights of a vector."""
        return int(self.vectors.shape[1])

    @property
    def axis(self) -> int:
        """Axis of the channels: the first, or the last."""
        return 0 if self.layout.outer == 1 else -1


def length_for(width: int, bits: int) -> int | None:
    """Weights of a vector for channels of so many weights; None where none divides them."""
    for length in LENGTHS[bits]:
        if width % length == 0:
            return length
    return None


def codebook_of(tensor: ir.TensorProtocol) -> VectorCodebook | None:
    """Find the vectors that the codes of a weight are; None where they are too many."""
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    rank = len(shape)
    if tensor.dtype != ir.DataType.INT8 or rank < 2 or not tensor.size:
        return None
    for axis in (0, rank - 1):
        layout = Layout.of(shape, axis)
        for length in _likely_lengths(tensor, layout):
            vectors = _distinct(tensor, layout, length)
            if vectors is not None:
                index = _index(tensor, layout, vectors)
                return VectorCodebook(vectors, index, layout)
    return None


def _likely_lengths(tensor: ir.TensorProtocol, layout: Layout) -> list[int]:
    """Lengths that divide a channel, the longest first, but those of too many vectors at once."""
    _, block = next(blocks(tensor, layout.granule))
    view, _ = layout.view(block, 0)
    rows = layout.rows(view)
    width = layout.outer * layout.inner
    likely = []
    for length in LONGEST_FIRST:
        if width % length:
            continue
        few = _few(rows, length)
        if len(few) <= MOST_VECTORS:
            likely.append(length)
    return likely


def _few(rows: Array, length: int) -> Vectors:
    """The different ones among HEAD vectors of the first part of a weight."""
    vectors_each = rows.shape[1] // length
    held = vectors_each * length
    channels = HEAD // max(vectors_each, 1) + 1
    few = rows[:channels, :held]
    vectors = vectors_of(few, length)
    return merged([vectors[:HEAD]])


def _distinct(tensor: ir.TensorProtocol, layout: Layout, length: int) -> Vectors | None:
    """The different vectors of a weight; None for too many."""
    occupied = 0
    found = np.zeros((0, length), np.int8)
    granule = layout.granule
    if layout.outer > 1:
        # vectors of such channels go through as many slices
        granule *= length
    for start, block in blocks(tensor, granule):
        view, _ = layout.view(block, start)
        vectors = vectors_of(layout.rows(view), length)
        found = merged([found, vectors])
        if len(found) > MOST_VECTORS:
            return None
        occupied += _occupied(vectors)
    # zeros say nothing: most of many are pruned, and what is left is there once or twice
    told_apart = _occupied(found)
    if told_apart == 0:
        return None
    repeats = occupied / told_apart
    return found if repeats >= LEAST_REPEATS else None


def _occupied(vectors: Vectors) -> int:
    """Number of vectors that are not all zeros."""
    is_occupied = vectors.any(axis=1)
    return int(np.count_nonzero(is_occupied))


def vectors_of(rows: Array, length: int) -> Array:
    """Rows of channels (channels, width) cut into vectors (n, length)."""
    contiguous = np.ascontiguousarray(rows)
    return contiguous.reshape(-1, length)


def merged(parts: Sequence[Vectors]) -> Vectors:
    """The different vectors of all, ascending as bytes are: (n, length) each."""
    together = np.concatenate(parts)
    length = together.shape[1]
    distinct = np.unique(_as_bytes(together))
    return distinct.view(np.int8).reshape(-1, length)


def index_into(vectors: Vectors, codes: Vectors) -> NDArray[np.uint8]:
    """The number of each vector, (n, length), among the ascending ones of a codebook."""
    ascending = _as_bytes(vectors)
    wanted = _as_bytes(codes)
    places = np.searchsorted(ascending, wanted)
    return places.astype(np.uint8)


def _as_bytes(vectors: Vectors) -> Array:
    """Vectors as single elements, compared byte by byte: (n, length) -> (n,)."""
    contiguous = np.ascontiguousarray(vectors)
    # bytes of strings are padded with zeros, which numpy drops: of void it keeps all
    kind = np.dtype((np.void, vectors.shape[1]))
    return contiguous.view(kind).reshape(-1)


def _index(
    tensor: ir.TensorProtocol, layout: Layout, vectors: Vectors
) -> ir.LazyTensor:
    length = vectors.shape[1]

    def compute() -> ir.TensorProtocol:
        flat = tensor.numpy().reshape(-1)
        view, _ = layout.view(flat, 0)
        rows = layout.rows(view)
        codes = vectors_of(rows, length)
        index = index_into(vectors, codes)
        return ir.Tensor(index)

    shape = ir.Shape([tensor.size // length])
    return ir.LazyTensor(compute, dtype=ir.DataType.UINT8, shape=shape)
