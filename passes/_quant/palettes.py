"""Palettes: the few int8 codes that the weights of a channel, or of some channels, may have.

    channel:  codes 3, -20, 3, 41, 0 …  ->  palette -20, 0, 3, 41 and an index for each weight

Kernels see int8 codes like any others; `pack` stores indices of few bits and the palettes. Where
uniform steps lie far apart in the middle, where most weights are, a palette has values there.

Source: Han, Mao, Dally, Deep Compression, ICLR 2016 (arXiv:1510.00149), section 3.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.channel_palettes import MOST_VALUES
from .._core.half_precision import SMALLEST, on_halves
from .._core.lazy import DerivedTensor
from .._core.saturation import KernelPairs
from .palette_values import HIGHEST, Codes, Rows, best_values
from .weights import LEAST_SCALE, Floats, channel_absmax

MOST_BITS = 6
"""Bits of an index beyond which a palette saves too little against the byte of a code."""

LEAST_WIDTH = 32
"""Weights of a channel below which it keeps 8 bits: depthwise convolutions, which would lose most
and save least. Measured on EfficientNet-Lite0.
"""

LARGEST_END = 0.1
"""Share of all weights beyond which the first or last layer has palettes like the others: it would
be half of the file, and loses little. Measured on EfficientNet-Lite0.
"""

MOST_BYTES = 0.0625
"""Share of the bytes of indices that palettes may take before channels try to share them; chosen by
hand.
"""

AS_GOOD = 1.2
"""Squared error, in that of a palette for each channel, up to which neighbours share one.

Measured on EfficientNet-Lite0: sharing at any price cost 8 points of accuracy.
"""

FREE_ZEROS = 0.5
"""Share of zeros from which a mask and an index of each other weight take fewer bytes than an index
of each weight.
"""

PART = 1 << 22
"""Weights that palettes are fitted to at once."""

STORED = "palette_codes"
"""Key of a tensor's `meta`: the `StoredCodes` that its weights are."""


@dataclass(frozen=True, eq=False)
class Palettes:
    """`values` (channels, count) int8, ascending, perhaps some twice; `scales` (channels,)."""

    values: Codes
    scales: NDArray[np.float64]
    limited: KernelPairs | None = None
    """Pairs of codes that may saturate a kernel: none."""

    @property
    def levels(self) -> int:
        """The largest code that any may have."""
        return HIGHEST

    @functools.cached_property
    def bounds(self) -> NDArray[np.float32]:
        """Numbers of steps halfway between neighbours: (channels, count - 1)."""
        wide = self.values.astype(np.float32)
        sums = wide[:, 1:] + wide[:, :-1]
        return np.asarray(sums / 2, np.float32)

    def nearest(self, steps: Rows, channels: slice = slice(None)) -> Codes:
        """Codes of weights in steps of their scales: (outer, channels, inner) -> the same."""
        bounds = self.bounds[channels]
        index = np.zeros(steps.shape, np.intp)
        for bound in bounds.T:
            index += steps > bound[:, None]
        values = self.values[channels]
        count = values.shape[1]
        first = count * np.arange(len(values))
        index += first[:, None]
        return values.reshape(-1)[index]


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """Codes (int8, the weight's shape) and scales (channels,) that a weight of a layout is."""

    codes: ir.TensorProtocol
    scales: NDArray[np.float64]
    layout: Layout


def fitted(
    rows: Rows, bits: int, importance: NDArray[np.float64] | None = None
) -> Palettes:
    """Palettes with the least squared error, each weight counted by its importance.

    Channels that hold zeros, pruned perhaps, have 0 in their palette; where half of all weights are
    zeros, 0 counts for nothing. Neighbours share a palette where each alone would be large beside
    its indices, and one for all is nearly as good; each channel keeps a scale of its own.

    Shapes: rows (channels, width); importance (channels or 1, width).
    """
    channels, width = rows.shape
    count = 1 << bits
    is_free = _zeros_are_free(rows, bits)
    scales = _full_scales(rows)
    shared = sharing(channels, width, bits)
    length = shared * width
    own: list[Codes] = []
    together: list[Codes] = []
    own_error = 0.0
    shared_error = 0.0
    groups = PART // max(length, 1)
    step = max(groups, 1) * shared
    for start in range(0, channels, step):
        part = slice(start, start + step)
        factors = scales[part, None]
        steps = rows[part] / factors
        # an error of a step counts by the square of the scale
        weights = np.broadcast_to(factors**2, steps.shape)
        if importance is not None:
            weights = weights * _of_part(importance, part)
        values, error = _best_values(steps, weights, count, is_free)
        own.append(values)
        own_error += error
        if shared == 1:
            continue
        shared_steps = steps.reshape(-1, length)
        shared_weights = weights.reshape(-1, length)
        values, error = _best_values(shared_steps, shared_weights, count, is_free)
        repeated = np.repeat(values, shared, axis=0)
        together.append(repeated)
        shared_error += error
    chosen = own
    if shared > 1 and shared_error <= AS_GOOD * own_error:
        chosen = together
    values = np.concatenate(chosen)
    return Palettes(values, scales)


def _zeros_are_free(rows: Rows, bits: int) -> bool:
    """True if 0 is a value beside the others: where a mask stores zeros."""
    zeros = rows.size - int(np.count_nonzero(rows))
    # of one bit a value would be left beside 0, of one sign
    is_in_a_mask = zeros >= FREE_ZEROS * rows.size or bits == 1
    return is_in_a_mask and 2**bits < MOST_VALUES


def _best_values(
    steps: Rows, weights: Rows, count: int, is_free: bool
) -> tuple[Codes, float]:
    """The best values, and 0 beside them in palettes that need it if it `is_free`."""
    has_zero = (steps == 0).any(axis=1)
    if not is_free or not has_zero.any():
        return best_values(steps, weights, count)
    values = np.zeros((len(steps), count + 1), np.int8)
    values[has_zero], error = best_values(steps[has_zero], weights[has_zero], count + 1)
    has_none = ~has_zero
    if has_none.any():
        found, others = best_values(steps[has_none], weights[has_none], count)
        # once more, since all palettes are of one length
        values[has_none] = found[:, [*range(count), count - 1]]
        error += others
    return values, error


def _full_scales(rows: Rows) -> NDArray[np.float64]:
    """Scales that put the largest weight of each channel on the largest code: (channels,).

    Of half precision, since indices of few bits leave the scales a good part of a small file.
    """
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1, initial=0.0)
    # channels below the least scale are zeros
    is_usable = largest > HIGHEST * LEAST_SCALE
    usable = np.where(is_usable, largest, 1.0)
    exact = usable.astype(np.float64) / HIGHEST
    return on_halves(exact, SMALLEST)


def _of_part(importance: NDArray[np.float64], part: slice) -> NDArray[np.float64]:
    """Importance for some of the channels, where it is not common to all."""
    if len(importance) == 1:
        return importance
    return importance[part]


def sharing(channels: int, width: int, bits: int) -> int:
    """Number of neighbouring channels that have a palette in common: a divisor of all."""
    index_bytes = width * bits / 8
    least = 2**bits / (MOST_BYTES * index_bytes)
    for count in range(1, channels):
        if count >= least and channels % count == 0:
            return count
    return channels


def codes_of(tensor: ir.TensorProtocol, layout: Layout, bits: int) -> StoredCodes:
    """Codes of a weight on palettes: those that an earlier step chose, or the nearest ones.

    Of the latter only the palettes are computed now. Scales that are not finite are those of a
    weight that holds NaN or infinity, for the caller to refuse.
    """
    stored = tensor.meta.get(STORED)
    if isinstance(stored, StoredCodes) and stored.layout == layout:
        return stored
    highest = channel_absmax(tensor, layout)
    if not np.isfinite(highest).all():
        return StoredCodes(tensor, highest.astype(np.float64), layout)
    view, _ = layout.view(tensor.numpy().reshape(-1), 0)
    palettes = fitted(layout.rows(view), bits)
    codes = nearest_codes(tensor, layout, palettes)
    return StoredCodes(codes, palettes.scales, layout)


def nearest_codes(
    tensor: ir.TensorProtocol, layout: Layout, palettes: Palettes
) -> DerivedTensor:
    """The nearest code of each weight, computed when it is written."""
    inverse = (1.0 / palettes.scales).astype(np.float32)

    def kernel(block: Floats, start: int) -> Codes:
        view, channels = layout.view(block, start)
        steps = view * inverse[channels][:, None]
        return palettes.nearest(steps, channels).reshape(-1)

    return DerivedTensor(
        tensor,
        kernel,
        ir.DataType.INT8,
        layout.granule,
    )


def rescaled(stored: StoredCodes, scales: Floats) -> ir.TensorProtocol:
    """Codes for scales that had to be larger: as many distinct ones, or fewer."""
    factors = (stored.scales / scales).astype(np.float32)
    if np.allclose(factors, 1.0, rtol=1e-6):
        return stored.codes
    layout = stored.layout

    def kernel(block: Codes, start: int) -> Codes:
        view, channels = layout.view(block, start)
        codes = np.rint(view * factors[channels][:, None])
        return codes.astype(np.int8).reshape(-1)

    return DerivedTensor(
        stored.codes,
        kernel,
        ir.DataType.INT8,
        layout.granule,
    )
