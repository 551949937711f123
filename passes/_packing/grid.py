"""Floats that are whole numbers times a scale, as dequantized weights are: which, if any."""

from __future__ import annotations

from collections.abc import Iterator
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

AT_ONCE = 4096
"""Channels of few elements that are looked at together."""

Array = NDArray[Any]
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
    for dims, layout in _layouts(tensor).items():
        scales = _scales(tensor, layout)
        if scales is None:
            continue
        if _is_exact(tensor, layout, scales):
            codes = _codes(tensor, layout, scales)
            broadcast = scales.reshape(dims)
            return ScaledCodes(codes, broadcast)
    return None


def _layouts(tensor: ir.TensorProtocol) -> dict[tuple[int, ...], Layout]:
    """Layouts to try in order, by the shape in which their scales broadcast."""
    sizes = tensor.shape
    dims = sizes.numpy()
    shape = tuple(int(dim) for dim in dims)
    rank = len(shape)
    ones = (1,) * rank
    whole = Layout(1, 1, tensor.size)
    found = {ones: whole}
    if rank < 2:
        return found
    last = rank - 1
    for axis in (0, last):
        channels = shape[axis]
        by_channel = list(ones)
        by_channel[axis] = channels
        key = tuple(by_channel)
        found[key] = Layout.of(shape, axis)
    return found


def _granule(layout: Layout) -> int:
    # one scale for all asks for no whole channel in a block
    if layout.channels == 1:
        return 1
    return layout.granule


def _parts(layout: Layout, block: Array, start: int) -> tuple[Floats, slice]:
    """A block as (outer, channels, inner), and the channels that it holds."""
    if layout.channels == 1:
        view = block.reshape(1, 1, -1)
        only = slice(0, 1)
        return view, only
    return layout.view(block, start)


def _views(tensor: ir.TensorProtocol, layout: Layout) -> Iterator[tuple[Floats, slice]]:
    """Blocks of a tensor as (outer, channels, inner), each with the channels that it holds."""
    granule = _granule(layout)
    for start, block in blocks(tensor, granule):
        yield _parts(layout, block, start)


def _scales(tensor: ir.TensorProtocol, layout: Layout) -> Floats | None:
    """The scale of each channel; None as soon as one has none."""
    width = layout.outer * layout.inner
    if layout.channels > 1 and width <= HIGHEST:
        return _scales_of_small(tensor, layout)
    nothing = np.zeros(0, np.float32)
    known = [nothing] * layout.channels
    for view, held in _views(tensor, layout):
        # a slice of all channels has no start
        first = held.start or 0
        count = view.shape[1]
        for index in range(count):
            channel = first + index
            earlier = known[channel]
            values = view[:, index]
            found = _magnitudes(earlier, values)
            if found is None:
                return None
            # of a part of a channel it may still be a multiple of the scale
            if _scale_of(found) is None:
                return None
            known[channel] = found
    scales = [_scale_of(magnitudes) for magnitudes in known]
    return np.array(scales, np.float32)


def _scales_of_small(tensor: ir.TensorProtocol, layout: Layout) -> Floats | None:
    """The same for channels of few elements, many at once: scales of blocks have thousands."""
    scales = np.ones(layout.channels, np.float32)
    for rows, held in _small_rows(tensor, layout):
        found = _scales_of_rows(rows)
        if found is None:
            return None
        scales[held] = found
    return scales


def _small_rows(
    tensor: ir.TensorProtocol, layout: Layout
) -> Iterator[tuple[Floats, slice]]:
    """Channels as rows (channels, width), some at a time, and which they are."""
    if layout.outer == 1:
        for view, held in _views(tensor, layout):
            yield layout.rows(view), held
        return
    # their elements lie far apart: there are few of each
    whole, _ = layout.view(tensor.numpy().reshape(-1), 0)
    for start in range(0, layout.channels, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        yield layout.rows(whole[:, part]), part


def _scales_of_rows(rows: Floats) -> Floats | None:
    """Scales of which each channel, a row, holds multiples, bit for bit: (channels, n).

    None as soon as one has none.
    """
    if not np.isfinite(rows).all():
        return None
    absolute = np.abs(rows)
    magnitudes = np.sort(absolute, axis=1)
    exact = magnitudes.astype(np.float64)
    distances = np.diff(exact, axis=1, prepend=0)
    apart = np.where(distances > 0, distances, np.inf)
    least = apart.min(axis=1, keepdims=True, initial=np.inf)
    # a value stands for all numbers that are rounded to it
    spacing = np.spacing(magnitudes)
    half = spacing.astype(np.float64) / 2
    # a channel of zeros has any scale
    scales = np.ones(len(rows), np.float32)
    is_nonzero = np.isfinite(least[:, 0])
    waiting = np.flatnonzero(is_nonzero)
    for parts in range(1, MOST_PARTS + 1):
        if not waiting.size:
            break
        own = exact[waiting]
        own_half = half[waiting]
        scaled = own * parts
        codes = np.rint(scaled / least[waiting])
        if codes.max() > HIGHEST:
            return None
        # a zero is a multiple of anything
        divisors = np.where(codes > 0, codes, np.nan)
        lowest = (own - own_half) / divisors
        highest = (own + own_half) / divisors
        low = np.nanmax(lowest, axis=1)
        high = np.nanmin(highest, axis=1)
        numbers = codes.astype(np.float32)
        wanted = magnitudes[waiting]
        is_found = np.zeros(len(waiting), bool)
        for candidates in _candidates((low + high) / 2):
            back = numbers * candidates[:, None]
            is_equal = np.all(back == wanted, axis=1)
            is_new = is_equal & ~is_found
            scales[waiting[is_new]] = candidates[is_new]
            is_found |= is_equal
        waiting = waiting[~is_found]
    return None if waiting.size else scales


def _magnitudes(known: Floats, values: Floats) -> Floats | None:
    """Distinct magnitudes of both, sorted, without 0; None for more than a grid has."""
    absolute = np.abs(values)
    distinct = np.unique(absolute)
    # 0 is among them here, and left out below
    if distinct.size > HIGHEST + 1:
        return None
    is_finite = np.isfinite(distinct)
    if not is_finite.all():
        return None
    is_nonzero = distinct > 0
    nonzero = distinct[is_nonzero]
    both = np.union1d(known, nonzero)
    if both.size > HIGHEST:
        return None
    return both


def _scale_of(magnitudes: Floats) -> np.float32 | None:
    """The scale of which all magnitudes are multiples, bit for bit; None where there is none."""
    found = _scales_of_rows(magnitudes[None])
    if found is None:
        return None
    return np.float32(found[0])


def _candidates(middle: NDArray[np.float64]) -> Iterator[Floats]:
    """Scales to try of each channel: the middle of those that may be, and its neighbours."""
    rounded = middle.astype(np.float32)
    yield rounded
    zero = np.float32(0)
    yield np.nextafter(rounded, zero)
    # in single precision: towards a double, the neighbour would be one of the doubles
    infinity = np.float32(np.inf)
    yield np.nextafter(rounded, infinity)


def _is_exact(tensor: ir.TensorProtocol, layout: Layout, scales: Floats) -> bool:
    """True if codes times scales give back the same bits, those of -0.0 too."""
    column = scales[:, None]
    for view, held in _views(tensor, layout):
        factors = column[held]
        codes = _rounded(view, factors)
        numbers = codes.astype(np.float32)
        back = numbers * factors
        back_bits = back.view(np.uint32)
        bits = view.view(np.uint32)
        if not np.array_equal(back_bits, bits):
            return False
    return True


def _codes(tensor: ir.TensorProtocol, layout: Layout, scales: Floats) -> DerivedTensor:
    column = scales[:, None]

    def kernel(block: Array, start: int) -> Array:
        view, held = _parts(layout, block, start)
        factors = column[held]
        codes = _rounded(view, factors)
        return codes.reshape(-1)

    granule = _granule(layout)
    return DerivedTensor(tensor, kernel, ir.DataType.INT8, granule)


def _rounded(view: Floats, factors: Floats) -> NDArray[np.int8]:
    quotients = view / factors
    whole: Floats = np.rint(quotients)
    return whole.astype(np.int8)
