"""Kernels that zero or clip elements of a weight, block by block.

By one threshold, by a threshold for each row, by N:M. All work on the float's bits: what is zeroed
becomes +0.0 whatever its sign, and magnitudes are ordered as in `magnitude`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import DerivedTensor, reusable
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
    """Zero |w| below the key (select=min) or above it (max).

    Of the elements equal to it, zero those at indices < `cut`.
    """
    strictly = _strictly(select)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        keys = magnitudes(block, kind, scratch=True)
        keep = compared(strictly, keys, key, kind)
        end = start + block.size
        if cut < end:
            # equal elements from the cut on stay
            first = max(cut - start, 0)
            equal = keys[first:] == kind(key)
            keep[first:] |= equal
        return _kept(block, keep)

    return DerivedTensor(tensor, kernel, tensor.dtype)


def zero_beyond_rows(
    tensor: ir.TensorProtocol,
    select: Select,
    view: Rows,
    keys_at: Keys,
    cuts: NDArray[np.int64],
) -> DerivedTensor:
    """Zero as `zero_beyond` does, with one key and one cut a pool.

    Shapes: keys_at, cuts (groups, channels).
    """
    strictly = _strictly(select)
    kind = key_kind([tensor])
    all_equal_go = bool((cuts == view.length).all())

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        flat = magnitudes(block, kind)
        keys = flat.reshape(
            -1,
            view.channels,
            view.inner,
        )
        row = _row_numbers(view, start, len(keys))
        group = row // view.rows
        key = keys_at[group][:, :, None]
        keep = strictly(keys, key)
        if not all_equal_go:
            row_of_pool = (row % view.rows)[:, None, None]
            first = row_of_pool * view.inner
            index = first + np.arange(view.inner)
            cut = cuts[group][:, :, None]
            equal_stay = (keys == key) & (index >= cut)
            keep |= equal_stay
        return _kept(block, keep.reshape(-1))

    granule = view.channels * view.inner
    return DerivedTensor(
        tensor,
        kernel,
        tensor.dtype,
        granule,
    )


def clip_at(tensor: ir.TensorProtocol, key: int, kind: KeyKind) -> DerivedTensor:
    """Saturate at the key's magnitude, rounded towards zero to the tensor's type."""
    dtype = np.dtype(tensor.dtype.numpy())
    exact = value_of(key, kind)
    limit = _rounded_down(exact.reshape(1), dtype)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        return _saturated(block, limit)

    return DerivedTensor(tensor, kernel, tensor.dtype)


def clip_rows_at(tensor: ir.TensorProtocol, view: Rows, keys_at: Keys) -> DerivedTensor:
    """Saturate as `clip_at` does, with one key a pool. Shapes: keys_at (groups, channels)."""
    kind = key_kind([tensor])
    dtype = tensor.dtype.numpy()
    # keys of a narrow type are exact in it: rounding changes nothing
    limits = value_of(keys_at, kind).astype(dtype)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        values = block.reshape(
            -1,
            view.channels,
            view.inner,
        )
        row = _row_numbers(view, start, len(values))
        group = row // view.rows
        limit = limits[group][:, :, None]
        saturated = _saturated(values, limit)
        return saturated.reshape(-1)

    granule = view.channels * view.inner
    return DerivedTensor(
        tensor,
        kernel,
        tensor.dtype,
        granule,
    )


def _row_numbers(view: Rows, start: int, count: int) -> NDArray[np.intp]:
    """Numbers, over all groups, of the `count` rows that begin at flat index `start`."""
    length = view.channels * view.inner
    first = start // length
    return first + np.arange(count)


def keep_n_of_m(
    tensor: ir.TensorProtocol, keep: int, of: int, inner: int
) -> DerivedTensor:
    """In every group of `of` elements along an axis keep the `keep` largest.

    Among equals the later ones stay. `inner`: elements between neighbours along that axis, the
    product of the dimensions after it.
    """
    kind = key_kind([tensor])

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        flat = magnitudes(block, kind)
        keys = flat.reshape(-1, of, inner)
        # elements of the group that outrank each one: no sort, since `of` is small
        outranked_by = np.zeros(keys.shape, np.uint8)
        for i in range(of):
            for j in range(i + 1, of):
                first = keys[:, i]
                second = keys[:, j]
                first_is_larger = first > second
                outranked_by[:, j] += first_is_larger
                outranked_by[:, i] += ~first_is_larger
        keep_here = outranked_by < keep
        return _kept(block, keep_here.reshape(-1))

    return DerivedTensor(
        tensor,
        kernel,
        tensor.dtype,
        granule=of * inner,
    )


def _strictly(select: Select) -> np.ufunc:
    return np.greater if select == "min" else np.less


def _kept(block: NDArray[Any], keep: Bools) -> NDArray[Any]:
    dtype = block.dtype
    as_bits = _BITS[dtype.itemsize]
    bits = np.ascontiguousarray(block).view(as_bits)
    out = None if reusable(block) is None else bits
    # times 0 or 1 as integers: a float times 0 would keep its sign
    product = np.multiply(bits, keep, out=out)
    # the block itself, so that the next kernel may write into it too
    if out is not None:
        return block
    kept: NDArray[Any] = product.view(dtype)
    return kept


def _saturated(values: NDArray[Any], limit: NDArray[Any]) -> NDArray[Any]:
    not_too_low = np.where(
        values < -limit,
        -limit,
        values,
    )
    return np.where(values > limit, limit, not_too_low)


def _rounded_down(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Magnitudes in a narrower type, none larger than it was."""
    rounded = values.astype(dtype)
    widened = rounded.astype(values.dtype)
    is_over = widened > values
    # the next smaller magnitude is one less as an integer
    as_bits = _BITS[dtype.itemsize]
    bits = rounded.view(as_bits)
    lowered = bits - is_over.astype(as_bits)
    result: NDArray[Any] = lowered.astype(as_bits).view(dtype)
    return result
