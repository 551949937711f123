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
    kind = key_kind([tensor])
    shape = (view.groups, view.channels)
    keys_at = np.empty(shape, kind)
    cuts = np.empty(shape, np.int64)
    rank = _lowest if select == "min" else _highest
    for groups, channels, keys in _pools(tensor, view):
        at, cut = rank(keys, count)
        place = (groups, channels)
        place_shape = cuts[place].shape
        keys_at[place] = at.reshape(place_shape)
        cuts[place] = cut.reshape(place_shape)
    return keys_at, cuts


def row_limits(tensor: ir.TensorProtocol, view: Rows, count: int) -> Keys:
    """The largest magnitude of each pool once its `count` largest are gone.

    Shapes: (groups, channels).
    """
    kind = key_kind([tensor])
    shape = (view.groups, view.channels)
    keys_at: Keys = np.empty(shape, kind)
    # the largest that stays, counted from 0
    rank = view.length - count - 1
    for groups, channels, keys in _pools(tensor, view):
        at = _of_rank(keys, rank)
        place = (groups, channels)
        place_shape = keys_at[place].shape
        keys_at[place] = at.reshape(place_shape)
    return keys_at


def _of_rank(keys: Keys, rank: int) -> Keys:
    """The key of each pool, (pools, length), that as many as `rank` come before: (pools,)."""
    parted = np.partition(keys, rank, axis=1)
    return parted[:, rank]


def _pools(
    tensor: ir.TensorProtocol, view: Rows
) -> Iterator[tuple[slice, slice, Keys]]:
    """(groups, channels, pools of these as rows): keys are (groups * channels, length)."""
    if view.channels == 1:
        all_channels = slice(None)
        for start, block in blocks(tensor, view.length):
            flat = _finite(tensor, block)
            keys = flat.reshape(-1, view.length)
            first = start // view.length
            end = first + len(keys)
            yield slice(first, end), all_channels, keys
        return
    # a pool is scattered over the tensor: gather some channels of every row
    all_groups = slice(None)
    of_channel = view.groups * view.rows * view.inner
    width = max(_SLAB // of_channel, 1)
    for first in range(0, view.channels, width):
        end = min(first + width, view.channels)
        channels = slice(first, end)
        slab = _slab(tensor, view, channels)
        by_group = slab.reshape(
            view.groups,
            view.rows,
            -1,
            view.inner,
        )
        by_pool = by_group.transpose(0, 2, 1, 3)
        keys = by_pool.reshape(-1, view.length)
        yield all_groups, channels, keys


def _slab(tensor: ir.TensorProtocol, view: Rows, channels: slice) -> Keys:
    """Keys of some channels of every row: (groups * rows, channels, inner)."""
    rows = view.groups * view.rows
    width = channels.stop - channels.start
    kind = key_kind([tensor])
    slab: Keys = np.empty((rows, width, view.inner), kind)
    granule = view.channels * view.inner
    for start, block in blocks(tensor, granule):
        flat = _finite(tensor, block)
        part = flat.reshape(
            -1,
            view.channels,
            view.inner,
        )
        first = start // granule
        end = first + len(part)
        slab[first:end] = part[:, channels]
    return slab


def _finite(tensor: ir.TensorProtocol, block: NDArray[np.generic]) -> Keys:
    kind = key_kind([tensor])
    keys = magnitudes(block, kind)
    if not is_finite(keys):
        raise NonFiniteError(0)
    return keys


def _lowest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """Key and cut of each pool, (pools, length), below which its `count` smallest lie."""
    if not count:
        pools = len(keys)
        no_keys = np.zeros(pools, keys.dtype)
        no_cuts = np.zeros(pools, np.int64)
        return no_keys, no_cuts
    at = _of_rank(keys, count - 1)
    is_smaller = keys < at[:, None]
    smaller = np.count_nonzero(is_smaller, axis=1)
    # the rest of the `count` are among those that equal the key
    ties = count - smaller
    cuts = _cuts(keys, at, ties)
    return at, cuts


def _highest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """Key and cut of each pool above which its largest lie: as many as `count` lacks in zeros."""
    pools, length = keys.shape
    zeros = np.count_nonzero(keys == 0, axis=1)
    missing = np.maximum(count - zeros, 0)
    ordered = np.sort(keys, axis=1)
    # where nothing is to go, the largest key: nothing lies above it, and its cut is 0
    last = length - 1
    place = np.minimum(length - missing, last)
    every_pool = np.arange(pools)
    at = ordered[every_pool, place]
    is_larger = keys > at[:, None]
    larger = np.count_nonzero(is_larger, axis=1)
    ties = missing - larger
    cuts = _cuts(keys, at, ties)
    return at, cuts


def _cuts(keys: Keys, at: Keys, ties: NDArray[np.intp]) -> NDArray[np.int64]:
    """The index in each pool before which elements equal to its key are its first `ties`."""
    equal = keys == at[:, None]
    all_equal = np.count_nonzero(equal, axis=1)
    length = keys.shape[1]
    some_go = ties > 0
    some_stay = ties < all_equal
    cuts = np.where(some_go, length, 0)
    is_split = some_go & some_stay
    for pool in np.flatnonzero(is_split):
        of_pool = np.flatnonzero(equal[pool])
        last = ties[pool] - 1
        cuts[pool] = of_pool[last] + 1
    return cuts.astype(np.int64)
