"""Kernels that zero or clip elements of a weight, block by block: by one threshold, by row
thresholds, by N:M.

All work on the float's bits: what is zeroed becomes +0.0 whatever its sign, and the order is that
of `_magnitude`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import DerivedTensor
from .._core.weight_axes import Rows
from .magnitude import KeyKind, Keys, compared, key_kind, magnitudes, value_of

Select = Literal["min", "max"]
Bools = NDArray[np.bool_]

_BITS: dict[int, type[np.unsignedinteger[Any]]] = {
    2: np.uint16,
    4: np.uint32,
    8: np.uint64,
}


def zero_beyond(
    tensor: ir.TensorProtocol, select: Select, key: int, cut: int, kind: KeyKind
) -> DerivedTensor:
    """Zero |w| below the key (select=min) or above it (max), and of those equal to it the ones at
    indices < `cut`.
    """
    strictly = _strictly(select)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        keys = magnitudes(block, kind, scratch=True)
        keep = compared(strictly, keys, key, kind)
        if cut < start + block.size:
            first = max(cut - start, 0)
            keep[first:] |= keys[first:] == kind(key)
        return _kept(block, keep)

    return DerivedTensor(tensor, kernel, tensor.dtype)


def zero_beyond_rows(
    tensor: ir.TensorProtocol,
    select: Select,
    view: Rows,
    keys_at: Keys,
    cuts: NDArray[np.int64],
) -> DerivedTensor:
    """As `zero_beyond`, with one key and one cut a pool. Shapes: keys_at, cuts (groups,
    channels).
    """
    strictly, kind = _strictly(select), key_kind([tensor])
    uncut = bool((cuts == view.length).all())

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        keys = magnitudes(block, kind).reshape(-1, view.channels, view.inner)
        row = start // (view.channels * view.inner) + np.arange(len(keys))
        at = keys_at[row // view.rows][:, :, None]
        keep = strictly(keys, at)
        if not uncut:
            index = (row % view.rows)[:, None, None] * view.inner + np.arange(
                view.inner
            )
            keep |= (keys == at) & (index >= cuts[row // view.rows][:, :, None])
        return _kept(block, keep.reshape(-1))

    return DerivedTensor(tensor, kernel, tensor.dtype, view.channels * view.inner)


def clip_at(tensor: ir.TensorProtocol, key: int, kind: KeyKind) -> DerivedTensor:
    """Saturate at the key's magnitude, rounded towards zero to the tensor's type."""
    limit = _rounded_down(
        value_of(key, kind).reshape(1), np.dtype(tensor.dtype.numpy())
    )
    return DerivedTensor(
        tensor, lambda block, start: _saturated(block, limit), tensor.dtype
    )


def clip_rows_at(tensor: ir.TensorProtocol, view: Rows, keys_at: Keys) -> DerivedTensor:
    """As `clip_at`, with one key a pool. Shapes: keys_at (groups, channels)."""
    limits = value_of(keys_at, key_kind([tensor])).astype(tensor.dtype.numpy())

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        values = block.reshape(-1, view.channels, view.inner)
        row = start // (view.channels * view.inner) + np.arange(len(values))
        return _saturated(values, limits[row // view.rows][:, :, None]).reshape(-1)

    return DerivedTensor(tensor, kernel, tensor.dtype, view.channels * view.inner)


def keep_n_of_m(
    tensor: ir.TensorProtocol, keep: int, of: int, inner: int
) -> DerivedTensor:
    """In every group of `of` elements along an axis keep the `keep` largest; among equals the later
    stay.

    `inner`: elements between neighbours along that axis (the product of the dimensions after it).
    """
    kind = key_kind([tensor])

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        keys = magnitudes(block, kind).reshape(-1, of, inner)
        larger = np.zeros(
            keys.shape, np.uint8
        )  # how many of its group outrank each element
        for i in range(of):
            for j in range(i + 1, of):
                first = keys[:, i] > keys[:, j]
                larger[:, j] += first
                larger[:, i] += ~first
        return _kept(block, (larger < keep).reshape(-1))

    return DerivedTensor(tensor, kernel, tensor.dtype, of * inner)


def _strictly(select: Select) -> np.ufunc:
    return np.greater if select == "min" else np.less


def _kept(block: NDArray[Any], keep: Bools) -> NDArray[Any]:
    bits = np.ascontiguousarray(block).view(_BITS[block.dtype.itemsize])
    kept: NDArray[Any] = np.multiply(bits, keep).view(block.dtype)
    return kept


def _saturated(values: NDArray[Any], limit: NDArray[Any]) -> NDArray[Any]:
    return np.where(values > limit, limit, np.where(values < -limit, -limit, values))


def _rounded_down(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    rounded = values.astype(dtype)
    over = rounded.astype(values.dtype) > values
    bits = rounded.view(_BITS[dtype.itemsize])
    lowered: NDArray[Any] = (
        (bits - over.astype(bits.dtype)).astype(bits.dtype).view(dtype)
    )
    return lowered
