"""Palettes: the few int8 codes that the weights of a channel, or of some channels, may have.

    channel:  codes 3, -20, 3, 41, 0 …  ->  palette -20, 0, 3, 41 and an index for each weight

Kernels see int8 codes like any others; `pack` stores indices of few bits and the palettes. Where
uniform steps lie far apart in the middle, where most weights are, a palette has values there.

Source: Han, Mao, Dally, Deep Compression, ICLR 2016 (arXiv:1510.00149), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import DerivedTensor
from .._core.saturation import PAIR_LIMIT, KernelPairs
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

HIGHEST = PAIR_LIMIT // 2
"""Largest code: no two of a palette can saturate a kernel of any CPU."""

MOST_BYTES = 0.0625
"""Share of the bytes of indices that palettes may take before channels try to share them; chosen by
hand.
"""

AS_GOOD = 1.2
"""Squared error, in that of a palette for each channel, up to which neighbours share one.

Measured on EfficientNet-Lite0: sharing at any price cost 8 points of accuracy.
"""

FINER = 4
"""Bins for each code, in which weights are counted."""

BINS = 2 * HIGHEST * FINER + 1

ROUNDS = 20
"""Times that values move to the mean of their weights, at most; chosen by hand."""

CELLS = 64
"""Cells of a histogram that are divided into runs; chosen by hand."""

MOST_DIVIDED = 16
"""Values up to which the best division is sought: more lie well by the density alone."""

DIVIDED_AT_ONCE = 256
"""Palettes for which the errors of all runs are held."""

SPREAD = 8.0
"""Width (bins) of the kernel by which the density of weights is smoothed; chosen by hand."""

PART = 1 << 22
"""Weights that palettes are fitted to at once."""

Rows = NDArray[np.floating]
Codes = NDArray[np.int8]

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

    @property
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

    Channels that hold zeros, pruned perhaps, have 0 in their palette. Neighbours share one where
    each alone would be large beside its indices, and one for all is nearly as good; each channel
    keeps a scale of its own.

    Shapes: rows (channels, width); importance (channels or 1, width). Source: Lloyd, Least squares
    quantization in PCM, IEEE Transactions on Information Theory 28 (1982), on a histogram.
    """
    channels, width = rows.shape
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # channels below the least scale are zeros
    usable = np.where(largest > HIGHEST * LEAST_SCALE, largest, 1.0)
    scales = usable.astype(np.float64) / HIGHEST
    shared = sharing(channels, width, bits)
    own: list[Codes] = []
    together: list[Codes] = []
    own_error = shared_error = 0.0
    step = max(PART // max(width * shared, 1), 1) * shared
    for start in range(0, channels, step):
        part = slice(start, start + step)
        factors = scales[part, None]
        steps = rows[part] / factors
        # an error of a step counts by the square of the scale
        weights = np.broadcast_to(factors**2, steps.shape)
        if importance is not None:
            each = importance if len(importance) == 1 else importance[part]
            weights = weights * each
        values, error = _values(steps, weights, 2**bits)
        own.append(values)
        own_error += error
        if shared > 1:
            length = shared * width
            values, error = _values(
                steps.reshape(-1, length),
                weights.reshape(-1, length),
                2**bits,
            )
            together.append(np.repeat(values, shared, axis=0))
            shared_error += error
    is_as_good = shared > 1 and shared_error <= AS_GOOD * own_error
    return Palettes(np.concatenate(together if is_as_good else own), scales)


def sharing(channels: int, width: int, bits: int) -> int:
    """Number of neighbouring channels that have a palette in common: a divisor of all."""
    index_bytes = width * bits / 8
    least = 2**bits / (MOST_BYTES * index_bytes)
    for count in range(1, channels):
        if count >= least and channels % count == 0:
            return count
    return channels


def _values(steps: Rows, weights: Rows, count: int) -> tuple[Codes, float]:
    """Values of each palette, ascending, and their squared error over all.

    Shapes: (palettes, n), (palettes, n) -> (palettes, count).
    """
    histogram = _Histogram(steps, weights)
    has_zero = (steps == 0).any(axis=1)
    is_few = count <= MOST_DIVIDED
    start = histogram.divided(count) if is_few else histogram.by_density(count)
    values = histogram.improved(start, has_zero)
    return values.astype(np.int8), histogram.error(values)


class _Histogram:
    """Weights counted in bins, as running sums from the lowest: (palettes, BINS + 1) each."""

    def __init__(self, steps: Rows, weights: Rows) -> None:
        palettes = len(steps)
        exact = (steps + HIGHEST) * FINER
        places = np.clip(np.rint(exact), 0, BINS - 1).astype(np.intp)
        places += BINS * np.arange(palettes)[:, None]
        flat = places.reshape(-1)
        powers = [weights, weights * steps, weights * steps**2]
        sums: list[NDArray[np.float64]] = []
        for power in powers:
            flat_power = np.asarray(power, np.float64).reshape(-1)
            counted = np.bincount(flat, flat_power, BINS * palettes)
            sums.append(counted.reshape(palettes, BINS).astype(np.float64))
        self.density = sums[0]
        self._running = [_running(each) for each in sums]

    def by_density(self, count: int) -> NDArray[np.float64]:
        """Values as dense as the cube root of the weights: the best ones, where they are many.

        Source: Panter and Dite, Quantization distortion in pulse-count modulation, Proceedings of
        the IRE 39 (1951).
        """
        shares = (np.arange(count) + 0.5) / count
        return self._places(shares) / FINER - HIGHEST

    def divided(self, count: int) -> NDArray[np.float64]:
        """Values of the best division of CELLS cells, as dense as above, into so many runs.

        Source: Wang and Song, Ckmeans.1d.dp, The R Journal 3 (2011).
        """
        shares = np.arange(CELLS + 1) / CELLS
        ends = np.rint(self._places(shares)).astype(np.intp)
        ends[:, 0] = 0
        ends[:, -1] = BINS
        values = []
        # the errors of all runs are held for some palettes at a time
        for start in range(0, len(ends), DIVIDED_AT_ONCE):
            part = slice(start, start + DIVIDED_AT_ONCE)
            sums = [
                np.take_along_axis(running[part], ends[part], axis=1)
                for running in self._running
            ]
            values.append(_divided(sums, count))
        return np.concatenate(values)

    def _places(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bins below which a share of the cube roots of the density lies: (palettes, shares)."""
        reach = np.arange(-3 * SPREAD, 3 * SPREAD + 1)
        kernel = np.exp(-0.5 * (reach / SPREAD) ** 2)
        numbers = np.arange(BINS)
        places = []
        for own in self.density:
            smooth = np.convolve(own, kernel, "same")
            running = np.cbrt(smooth).cumsum()
            total = max(running[-1], 1e-300)
            places.append(np.interp(shares, running / total, numbers))
        return np.array(places)

    def improved(
        self, values: NDArray[np.float64], has_zero: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Whole values, each at the mean of the weights that are nearest to it."""
        for _ in range(ROUNDS):
            before = values
            weight, first, _ = self._parts(values)
            means = first / np.maximum(weight, 1e-300)
            values = np.where(weight > 0, means, values)
            values = _with_zero(values, has_zero)
            if np.array_equal(values, before):
                break
        return np.rint(values)

    def error(self, values: NDArray[np.float64]) -> float:
        """Squared error of all weights."""
        weight, first, second = self._parts(values)
        parts = second - 2 * values * first + values**2 * weight
        return float(parts.sum())

    def _parts(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Sums over the weights that are nearest to each value: (palettes, count) each."""
        bounds = (values[:, 1:] + values[:, :-1]) / 2
        exact = (bounds + HIGHEST) * FINER
        inner = np.clip(np.ceil(exact), 0, BINS).astype(np.intp)
        ends = np.pad(inner, ((0, 0), (1, 0)))
        ends = np.pad(ends, ((0, 0), (0, 1)), constant_values=BINS)
        taken = [np.take_along_axis(sums, ends, axis=1) for sums in self._running]
        return [np.diff(sums, axis=1) for sums in taken]


def _running(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of all bins before each: (palettes, BINS) -> (palettes, BINS + 1)."""
    return np.pad(sums.cumsum(axis=1), ((0, 0), (1, 0)))


def _divided(sums: list[NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    """Means of the runs of cells with the least squared error: (palettes, count).

    Shapes: running sums of weights, values and squares, (palettes, cells + 1).
    """
    palettes = len(sums[0])
    cells = sums[0].shape[1] - 1
    # from the end of cell i to that of cell j: axes 1 and 2
    weight, first, second = (each[:, None, :] - each[:, :, None] for each in sums)
    means = first / np.where(weight > 0, weight, np.inf)
    spread = second - means * first
    is_run = np.triu(np.ones((cells + 1, cells + 1), bool))
    errors = np.where(is_run, spread, np.inf)
    least = errors[:, 0]
    cuts = []
    for _ in range(count - 1):
        # the last run begins where the others end best
        totals = least[:, :, None] + errors
        cuts.append(totals.argmin(axis=1))
        least = totals.min(axis=1)
    # the runs from the last to the first, of every palette at once
    each = np.arange(palettes)
    end = np.full(palettes, cells)
    values = np.zeros((palettes, count))
    for index in range(count - 1, -1, -1):
        begin = cuts[index - 1][each, end] if index else np.zeros_like(end)
        values[:, index] = means[each, begin, end]
        end = begin
    return np.sort(values, axis=1)


def _with_zero(
    values: NDArray[np.float64], has_zero: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Values with the nearest to 0 at 0, where there are zeros to keep."""
    kept = values.copy()
    palettes = np.flatnonzero(has_zero)
    nearest = np.abs(kept[palettes]).argmin(axis=1)
    kept[palettes, nearest] = 0.0
    return kept


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
