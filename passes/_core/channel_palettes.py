"""Int8 codes that take few values in a channel, though many in all: which, if any.

Channels lie along the first axis or the last; neighbours may have their values in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .channel_layout import Layout
from .lazy import blocks

MOST_VALUES = 64
"""Distinct values that a palette has at most: indices of 6 bits; more save too little."""

CODES = 256
"""Values that int8 has."""

LARGEST = 64 << 20
"""Bytes of the marks, one for each channel and value, above which nobody looks. Chosen by hand."""


@dataclass(frozen=True, eq=False)
class ChannelPalettes:
    """A tensor of int8 as `table` (groups, values) and `index` (groups, n / groups) int32 into it.

    Elements are in the order of channels. `layout`: the tensor around their axis.
    """

    table: NDArray[np.int8]
    index: ir.TensorProtocol
    layout: Layout


def channel_palettes_of(tensor: ir.TensorProtocol) -> ChannelPalettes | None:
    """Find the palettes that take fewest bytes; None where channels have too many values."""
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    rank = len(shape)
    if tensor.dtype != ir.DataType.INT8:
        return None
    if rank < 2 or not tensor.size:
        return None
    best = None
    least = math.inf
    for axis in (0, rank - 1):
        layout = Layout.of(shape, axis)
        marks = _marks(tensor, layout)
        if marks is None:
            continue
        nbytes, together = _grouped(marks, tensor.size)
        if nbytes < least:
            best = (layout, together)
            least = nbytes
    if best is None:
        return None
    return _palettes(tensor, *best)


def _marks(tensor: ir.TensorProtocol, layout: Layout) -> NDArray[np.bool_] | None:
    """Mask of the values of each channel, (channels, CODES), lowest first; None for too many."""
    channels = layout.channels
    if channels * CODES > LARGEST:
        return None
    marks = np.zeros((channels, CODES), bool)
    for start, block in blocks(tensor, layout.granule):
        view, held = layout.view(block, start)
        own = marks[held]
        numbers = np.arange(len(own))
        places = _lookup_places(view)
        own[numbers[:, None], places] = True
        values = own.sum(axis=1)
        most = values.max(initial=0)
        if most > MOST_VALUES:
            return None
    return marks


def _lookup_places(codes: NDArray[Any]) -> NDArray[np.int16]:
    """Places of codes among all that int8 has, from the lowest on."""
    wide = codes.astype(np.int16)
    return wide + CODES // 2


def _grouped(marks: NDArray[np.bool_], size: int) -> tuple[float, NDArray[np.bool_]]:
    """Bytes of indices and palettes, and the values of each group that takes fewest.

    Groups are of neighbouring channels, all of one size.
    """
    channels = len(marks)
    best = marks
    least = math.inf
    for count in range(1, channels + 1):
        if channels % count:
            continue
        by_group = marks.reshape(-1, count, CODES)
        together: NDArray[np.bool_] = np.any(by_group, axis=1)
        values = _most_values(together)
        # larger groups have no fewer
        if values > MOST_VALUES:
            break
        told_apart = max(values, 2)
        bits = math.log2(told_apart)
        tables = len(together) * values
        nbytes = size * bits / 8 + tables
        if nbytes < least:
            best = together
            least = nbytes
    return least, best


def _most_values(together: NDArray[np.bool_]) -> int:
    """Number of values of the group that has most of them: (groups, CODES)."""
    values = together.sum(axis=1)
    return int(values.max())


def _palettes(
    tensor: ir.TensorProtocol, layout: Layout, together: NDArray[np.bool_]
) -> ChannelPalettes:
    groups = len(together)
    width = tensor.size // groups
    table, lookup = _tables(together)

    def compute() -> ir.TensorProtocol:
        flat = tensor.numpy().reshape(-1)
        view, _ = layout.view(flat, 0)
        rows = layout.rows(view)
        by_group = rows.reshape(groups, width)
        places = _lookup_places(by_group)
        columns = places.astype(np.intp)
        index = np.take_along_axis(lookup, columns, axis=1)
        contiguous = np.ascontiguousarray(index)
        return ir.Tensor(contiguous)

    index = ir.LazyTensor(
        compute,
        dtype=ir.DataType.INT32,
        shape=ir.Shape([groups, width]),
    )
    return ChannelPalettes(table, index, layout)


def _tables(
    together: NDArray[np.bool_],
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Values of each group, (groups, values), and the index of each code, (groups, CODES)."""
    groups = len(together)
    values = _most_values(together)
    # zero first, so that masks see zeros of indices too
    ascending = np.arange(CODES)
    order = np.roll(ascending, CODES // 2)
    marked = together[:, order]
    ranks = marked.cumsum(axis=1) - 1
    centred = order - CODES // 2
    codes = centred.astype(np.int8)
    table = np.zeros((groups, values), np.int8)
    group, place = np.nonzero(marked)
    slot = ranks[group, place]
    table[group, slot] = codes[place]
    lookup = np.zeros((groups, CODES), np.int32)
    lookup[:, order] = ranks
    return table, lookup
