"""Exact thresholds for every row of a weight: one pool for each output, pools contiguous or
strided.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import blocks
from .._core.weight_axes import Rows
from .magnitude import Keys, NonFiniteError, is_finite, key_kind, magnitudes
from .masks import Select

_SLAB = (
    1 << 22
)  # elements gathered at a time where a row is strided; the tensor is read once for each slab


def row_cuts(
    tensor: ir.TensorProtocol, view: Rows, select: Select, count: int
) -> tuple[Keys, NDArray[np.int64]]:
    """What `zero_beyond_rows` needs so that `count` elements of each pool are zero, those that are
    so already included.

    Shapes: both (groups, channels). Errors: NonFiniteError.
    """
    keys_at = np.empty((view.groups, view.channels), key_kind([tensor]))
    cuts = np.empty(keys_at.shape, np.int64)
    for groups, channels, keys in _pools(tensor, view):
        at, cut = (_lowest if select == "min" else _highest)(keys, count)
        shape = keys_at[groups, channels].shape
        keys_at[groups, channels], cuts[groups, channels] = (
            at.reshape(shape),
            cut.reshape(shape),
        )
    return keys_at, cuts


def row_limits(tensor: ir.TensorProtocol, view: Rows, count: int) -> Keys:
    """The largest magnitude of each pool once its `count` largest are gone. Shapes: (groups,
    channels).
    """
    keys_at: Keys = np.empty((view.groups, view.channels), key_kind([tensor]))
    rank = view.length - count - 1
    for groups, channels, keys in _pools(tensor, view):
        keys_at[groups, channels] = np.partition(keys, rank, axis=1)[:, rank].reshape(
            keys_at[groups, channels].shape
        )
    return keys_at


def _pools(
    tensor: ir.TensorProtocol, view: Rows
) -> Iterator[tuple[slice, slice, Keys]]:
    """(which groups, which channels, their pools as rows): keys are (groups * channels, length)."""
    if view.channels == 1:
        for start, block in blocks(tensor, view.length):
            keys = _finite(tensor, block).reshape(-1, view.length)
            yield (
                slice(start // view.length, start // view.length + len(keys)),
                slice(None),
                keys,
            )
        return
    lines = view.groups * view.rows
    width = max(_SLAB // (lines * view.inner), 1)
    for first in range(0, view.channels, width):
        channels = slice(first, min(first + width, view.channels))
        slab: Keys = np.empty(
            (lines, channels.stop - first, view.inner), key_kind([tensor])
        )
        for start, block in blocks(tensor, view.channels * view.inner):
            part = _finite(tensor, block).reshape(-1, view.channels, view.inner)
            line = start // (view.channels * view.inner)
            slab[line : line + len(part)] = part[:, channels]
        by_pool = slab.reshape(view.groups, view.rows, -1, view.inner).transpose(
            0, 2, 1, 3
        )
        yield slice(None), channels, by_pool.reshape(-1, view.length)


def _finite(tensor: ir.TensorProtocol, block: NDArray[np.generic]) -> Keys:
    keys = magnitudes(block, key_kind([tensor]))
    if not is_finite(keys):
        raise NonFiniteError(0)
    return keys


def _lowest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    if not count:
        return np.zeros(len(keys), keys.dtype), np.zeros(len(keys), np.int64)
    at = np.partition(keys, count - 1, axis=1)[:, count - 1]
    return at, _cuts(keys, at, count - np.count_nonzero(keys < at[:, None], axis=1))


def _highest(keys: Keys, count: int) -> tuple[Keys, NDArray[np.int64]]:
    length = keys.shape[1]
    counts = np.maximum(count - np.count_nonzero(keys == 0, axis=1), 0)
    ordered = np.sort(keys, axis=1)
    at = ordered[np.arange(len(keys)), np.minimum(length - counts, length - 1)]
    return at, _cuts(keys, at, counts - np.count_nonzero(keys > at[:, None], axis=1))


def _cuts(keys: Keys, at: Keys, ties: NDArray[np.intp]) -> NDArray[np.int64]:
    """The index in each pool before which elements equal to its key are its first `ties`."""
    equal = keys == at[:, None]
    cuts = np.where(ties > 0, keys.shape[1], 0)
    for pool in np.flatnonzero((ties > 0) & (ties < np.count_nonzero(equal, axis=1))):
        cuts[pool] = np.flatnonzero(equal[pool])[ties[pool] - 1] + 1
    return cuts.astype(np.int64)
