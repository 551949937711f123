"""Floats that are whole numbers times a scale, as dequantized weights are: which, if any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import DerivedTensor, blocks

HIGHEST = 127
"""Largest whole number: one of int8."""

MOST_PARTS = 8
"""Times that the scale may lie within the least distance of two values: 3, 8 and 13 are 5 apart."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ScaledCodes:
    """A float32 tensor as int8 codes and their scales, which give back every bit.

    `scales`: in the shape in which they broadcast over the codes.
    """

    codes: DerivedTensor
    scales: Floats


def grid_of(tensor: ir.TensorProtocol) -> ScaledCodes | None:
    """Find the codes and scales of a float32 tensor: one for all, or one a channel.

    Channels lie along the first or the last axis. None where there are none; that shows in the
    first channel of most tensors.
    """
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    layouts = {(1,) * len(shape): Layout(1, 1, tensor.size)}
    if len(shape) > 1:
        layouts[(shape[0], *(1,) * (len(shape) - 1))] = Layout.of(shape, 0)
        layouts[(*(1,) * (len(shape) - 1), shape[-1])] = Layout.of(
            shape, len(shape) - 1
        )
    for dims, layout in layouts.items():
        scales = _scales(tensor, layout)
        if scales is not None and _is_exact(tensor, layout, scales):
            return ScaledCodes(_codes(tensor, layout, scales), scales.reshape(dims))
    return None


def _granule(layout: Layout) -> int:
    # one scale for all asks for no whole channel in a block
    return 1 if layout.channels == 1 else layout.granule


def _parts(layout: Layout, block: NDArray[Any], start: int) -> tuple[Floats, slice]:
    """A block as (outer, channels, inner), and the channels that it holds."""
    if layout.channels == 1:
        return block.reshape(1, 1, -1), slice(0, 1)
    return layout.view(block, start)


def _scales(tensor: ir.TensorProtocol, layout: Layout) -> Floats | None:
    """The scale of each channel; None as soon as one has none."""
    known = [np.zeros(0, np.float32)] * layout.channels
    for start, block in blocks(tensor, _granule(layout)):
        view, held = _parts(layout, block, start)
        for index in range(view.shape[1]):
            channel = (held.start or 0) + index
            found = _magnitudes(known[channel], view[:, index])
            # of a part of a channel it may still be a multiple of the scale
            if found is None or _scale_of(found) is None:
                return None
            known[channel] = found
    scales = [_scale_of(magnitudes) for magnitudes in known]
    return np.array(scales, np.float32)


def _magnitudes(known: Floats, values: Floats) -> Floats | None:
    """Distinct magnitudes of both, sorted, without 0; None for more than a grid has."""
    distinct = np.unique(np.abs(values))
    if distinct.size > HIGHEST + 1 or not np.isfinite(distinct).all():
        return None
    both = np.union1d(known, distinct[distinct > 0])
    return both if both.size <= HIGHEST else None


def _scale_of(magnitudes: Floats) -> np.float32 | None:
    """The scale of which all magnitudes are multiples, bit for bit; None where there is none."""
    if not magnitudes.size:
        return np.float32(1)
    exact = magnitudes.astype(np.float64)
    least = np.diff(exact, prepend=0).min()
    # a value stands for all numbers that are rounded to it
    half = np.spacing(magnitudes).astype(np.float64) / 2
    for parts in range(1, MOST_PARTS + 1):
        codes = np.rint(exact * parts / least)
        if codes[-1] > HIGHEST:
            return None
        low = ((exact - half) / codes).max()
        high = ((exact + half) / codes).min()
        middle = np.float32((low + high) / 2)
        for scale in (
            middle,
            np.nextafter(middle, np.float32(0)),
            np.nextafter(middle, exact[-1]),
        ):
            if np.array_equal(codes.astype(np.float32) * np.float32(scale), magnitudes):
                return np.float32(scale)
    return None


def _is_exact(tensor: ir.TensorProtocol, layout: Layout, scales: Floats) -> bool:
    """True if codes times scales give back the same bits, those of -0.0 too."""
    codes = _codes(tensor, layout, scales)
    for start, block in blocks(tensor, _granule(layout)):
        view, held = _parts(layout, block, start)
        whole = codes.kernel(block, start).reshape(view.shape)
        back = whole.astype(np.float32) * scales[held][:, None]
        if not np.array_equal(back.view(np.uint32), view.view(np.uint32)):
            return False
    return True


def _codes(tensor: ir.TensorProtocol, layout: Layout, scales: Floats) -> DerivedTensor:
    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, held = _parts(layout, block, start)
        whole = np.rint(view / scales[held][:, None])
        codes: NDArray[Any] = whole.astype(np.int8).reshape(-1)
        return codes

    return DerivedTensor(tensor, kernel, ir.DataType.INT8, _granule(layout))
