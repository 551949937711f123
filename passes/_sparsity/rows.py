"""Exact thresholds for every row of a weight: one pool for each output, contiguous or strided."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import blocks
from .._core.weight_axes import Rows
from .magnitude import Keys, NonFiniteError, is_finite, key_kind, magnitudes
from .masks import Select

_SLAB = 1 << 22
"""Elements gathered at a time where rows are strided; chosen by hand, not measured.

The tensor is read once for each slab, so that a smaller one saves memory and costs time.
"""


def row_cuts(
    tensor: ir.TensorProtocol, view: Rows, select: Select, count: int
) -> tuple[Keys, NDArray[np.int64]]:
    """Keys and cuts with which `zero_beyond_rows` leaves `count` zeros in each pool.

    Elements that are zero already count. Shapes: both (groups, channels). Errors: NonFiniteError.
    """
    keys_at = np.empty((view.groups, view.channels), key_kind([tensor]))
    cuts = np.empty(keys_at.shape, np.int64)
    rank = _lowest if select == "min" else _highest
    for groups, channels, keys in _pools(tensor, view):
        at, cut = rank(keys, count)
        shape = keys_at[groups, channels].shape
        keys_at[groups, channels] = at.reshape(shape)
        cuts[groups, channels] = cut.reshape(shape)
    return keys_at, cuts


def row_limits(tensor: ir.TensorProtocol, view: Rows, count: int) -> Keys:
    """The largest magnitude of each pool once its `count` largest are gone.

    Shapes: (groups, channels).
    """
    keys_at: Keys = np.empty((view.groups, view.channels), key_kind([tensor]))
    # the largest that stays, counted from 0
    rank = view.length - count - 1
    for groups, channels, keys in _pools(tensor, view):
        at = np.partition(keys, rank, axis=1)[:, rank]
        shape = keys_at[groups, channels].shape
        keys_at[groups, channels] = at.reshape(shape)
    return keys_at


def _pools(
    tensor: ir.TensorProtocol, view: Rows
) -> Iterator[tuple[slice, slice, Keys]]:
    """(groups, channels, pools of these as rows): keys are (groups * channels, length)."""
    if view.channels == 1:
        for start, block in blocks(tensor, view.length):
            keys = _finite(tensor, block).reshape(-1, view.length)
            first = start // view.length
            yield slice(first, first + len(keys)), slice(None), keys
        return
    # a pool is scattered over the tensor: gather some channels of every row
    lines = view.groups * view.rows
    width = max(_SLAB // (lines * view.inner), 1)
    for first in range(0, view.channels, width):
        channels = slice(first, min(first + width, view.channels))
        slab = _slab(tensor, view, channels)
        by_group = slab.reshape(
            view.groups,
            view.rows,
            -1,
            view.inner,
        )
        by_pool = by_group.transpose(0, 2, 1, 3)
        yield slice(None), channels, by_pool.reshape(-1, view.length)


def _slab(tensor: ir.TensorProtocol, view: Rows, channels: slice) -> Keys:
    """Keys of some channels of every row: (groups * rows, channels, inner)."""
    shape = (view.groups * view.rows, channels.stop - channels.start, view.inner)
    slab: Keys = np.empty(shape, key_kind([tensor]))
    granule = view.channels * view.inner
    for start, block in blocks(tensor, granule):
        part = _finite(tensor, block).reshape(
            -1,
            view.channels,
            view.inner,
        )
        row = start // granule
        slab[row : row + len(part)] = part[:, channels]
    return slab


def _finite(tensor: ir.TensorProtocol, block: NDArray[np.generic]) -> Keys:
    keys = magnitudes(block, key_kind([tensor]))
    if not is_finite(keys):
        raise NonFiniteError(0)
    return keys


def _lowest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """Key and cut of each pool, (pools, length), below which its `count` smallest lie."""
    if not count:
        return np.zeros(len(keys), keys.dtype), np.zeros(len(keys), np.int64)
    at = np.partition(keys, count - 1, axis=1)[:, count - 1]
    smaller = np.count_nonzero(keys < at[:, None], axis=1)
    return at, _cuts(keys, at, count - smaller)


def _highest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """Key and cut of each pool above which its largest lie: as many as `count` lacks in zeros."""
    length = keys.shape[1]
    zeros = np.count_nonzero(keys == 0, axis=1)
    counts = np.maximum(count - zeros, 0)
    ordered = np.sort(keys, axis=1)
    # where nothing is to go, the largest key: nothing lies above it, and its cut is 0
    place = np.minimum(length - counts, length - 1)
    at = ordered[np.arange(len(keys)), place]
    larger = np.count_nonzero(keys > at[:, None], axis=1)
    return at, _cuts(keys, at, counts - larger)


def _cuts(keys: Keys, at: Keys, ties: NDArray[np.intp]) -> NDArray[np.int64]:
    """The index in each pool before which elements equal to its key are its first `ties`."""
    equal = keys == at[:, None]
    cuts = np.where(
        ties > 0,
        keys.shape[1],
        0,
    )
    some_equal_stay = (ties > 0) & (ties < np.count_nonzero(equal, axis=1))
    for pool in np.flatnonzero(some_equal_stay):
        of_pool = np.flatnonzero(equal[pool])
        cuts[pool] = of_pool[ties[pool] - 1] + 1
    return cuts.astype(np.int64)
