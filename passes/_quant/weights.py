"""Symmetric int8 weights, one scale per output channel, streamed.

Scales take one pass over a weight; codes are computed when the file is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import DerivedTensor, map_blocks, reusable
from .._core.saturation import LIMITED, KernelPairs, keep_within, pair_granule

Floats = NDArray[np.float32]
INT8_LEVELS = 127
"""Largest |q|: -128 is left out, so that the grid is symmetric."""

LEAST_SCALE = 1e-30
"""Least scale of a weight: its product with an input's scale must not be a denormal number."""

BIAS_LIMIT = 2.0**30
"""Largest |code| that a bias may need (count): half of int32 is left to the sum of products."""

INT32_LIMIT = 2.0**31 - 1


def channel_absmax(tensor: ir.TensorProtocol, layout: Layout) -> Floats:
    """max|w| of each output channel: (channels,) float32. NaN where the channel holds NaN."""

    def largest_of(block: NDArray[Any], start: int) -> tuple[slice, Floats]:
        view, channels = layout.view(block, start)
        highest = view.max(axis=(0, 2))
        lowest = view.min(axis=(0, 2))
        # not np.abs: it would copy the whole block
        exact = np.maximum(highest, -lowest)
        return channels, exact.astype(np.float32)

    out = np.zeros(layout.channels, np.float32)
    for channels, largest in map_blocks(largest_of, tensor, layout.granule):
        before = out[channels]
        out[channels] = np.maximum(before, largest)
    return out


def wide_enough(
    scales: Floats, bias: Floats | None, input_scale: float, has_zero: bool = True
) -> Floats:
    """Scales raised where a bias would overflow int32, or where they are zero or denormal.

    A channel of zeros gets 1/127, or the least usable scale where its codes are not zeros (not
    `has_zero`).

    Shapes: scales, bias (channels,) -> (channels,) float32, all positive and normal.
    """
    wide = scales.astype(np.float64)
    if bias is not None:
        magnitude = np.abs(bias.astype(np.float64))
        most_codes = input_scale * BIAS_LIMIT
        needed = magnitude / most_codes
        wide = np.maximum(wide, needed)
    if has_zero:
        wide = np.where(wide > 0, wide, 1.0 / INT8_LEVELS)
    # float32(input_scale * scale) is the bias's scale: keep it away from denormals.
    least = LEAST_SCALE / min(input_scale, 1.0)
    usable = np.maximum(wide, least)
    return usable.astype(np.float32)


def quantize_weight(
    tensor: ir.TensorProtocol,
    layout: Layout,
    scales: Floats,
    levels: int = INT8_LEVELS,
    pairs: KernelPairs | None = None,
) -> DerivedTensor:
    """round(w / scale) as int8, lazily, no pair of `pairs` beyond the limit.

    Exact zeros stay zeros.
    """
    inverse = (1.0 / scales.astype(np.float64)).astype(np.float32)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, channels = layout.view(block, start)
        factors = inverse[channels][:, None]
        # float32 as the result is: other blocks are of another size
        is_own = block.dtype == np.float32 and reusable(block) is not None
        out = view if is_own else None
        scaled = np.multiply(view, factors, out=out, dtype=np.float32)
        # pairs are cut by what the codes were rounded from
        codes = np.rint(scaled, out=scaled if pairs is None else None)
        np.clip(
            codes,
            -levels,
            levels,
            out=codes,
        )
        if pairs is not None:
            # both are views of the block: `keep_within` changes the codes in place
            rows = layout.rows(codes)
            exact = layout.rows(scaled)
            part = pairs.of_part(rows.shape[1])
            keep_within(rows, exact, part)
        flat: NDArray[Any] = codes.astype(np.int8).reshape(-1)
        return flat

    codes = DerivedTensor(
        tensor,
        kernel,
        ir.DataType.INT8,
        pair_granule(layout, pairs),
    )
    codes.meta[LIMITED] = (layout, pairs)
    return codes


def quantize_bias(
    bias: Floats, input_scale: np.float32, scales: Floats
) -> tuple[NDArray[np.int32], Floats]:
    """The bias as int32 and its scales, exactly float32(input_scale * weight scale).

    The runtime insists on that product.
    """
    products = np.float32(input_scale) * scales
    bias_scales = products.astype(np.float32)
    exact = bias.astype(np.float64) / bias_scales
    codes = np.rint(exact)
    clipped = np.clip(codes, -INT32_LIMIT, INT32_LIMIT)
    return clipped.astype(np.int32), bias_scales
