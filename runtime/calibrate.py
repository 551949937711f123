"""Activation statistics in constant memory.

A histogram whose range doubles by merging bins, so that it is exact in any order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._statistics.thresholds import METHODS

BINS = 4096
"""Bins of a histogram, half of them for values below zero.

At least 1024 of them are within the largest magnitude, four to a step of an 8-bit grid. Chosen by
hand; not measured.
"""

BLOCK = 64 * 1024
"""Elements that are counted at once: the scratch arrays of one block stay in the CPU's cache.

Chosen by hand; not measured.
"""

LANES = 4
"""Copies of the bins that neighbouring elements count into.

A Relu's many zeros would else wait for each other in one counter. Measured when it was chosen: 1.5
times as fast.
"""

FINER = 4
"""Doublings of the number of bins in one count, at most.

What is clipped to a smaller range, with finer bins, can then be read off the same count. Chosen by
hand; not measured.
"""

_CODES = 1 << 16
"""Numbers that a bin can have: 16 bits, which are cheaper to compute than an index."""

_MIN_EXPONENT = -60
"""Exponent k of the narrowest range, [-2^k, 2^k). Chosen by hand; not measured."""


class RangeObserver:
    """Minimum, maximum and a symmetric histogram of everything seen.

    Mergeable, so that shards can be combined. The histogram has BINS bins over [-2^k, 2^k), k the
    smallest that holds every value. When a larger value comes, k grows and neighbouring bins are
    added: as bin edges are powers of two times integers, the counts are those that one pass with
    the final k would give, whatever the order of updates and merges. Errors: RefusedError naming
    the tensor when a value is NaN or infinite.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.exponent = _MIN_EXPONENT
        self.bins = np.zeros(BINS, np.int64)

    def update(
        self, array: NDArray[Any], clipped: Sequence[ClippedObserver] = ()
    ) -> None:
        """Take every element of a float array of any shape.

        `clipped` take the same elements, clipped, from the same count.
        """
        flat = np.ascontiguousarray(array).reshape(-1)
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32)
        if not flat.size:
            return
        low, high = extremes(flat)
        self._extend(low, high, flat.size)
        sharing = []
        finest = self.exponent
        for clip in clipped:
            if self._can_share(clip, low, high, flat.size):
                clip.extend(low, high, flat.size)
                sharing.append(clip)
                finest = min(finest, clip.observer.exponent)
            else:
                own = np.clip(flat, clip.low, clip.high)
                clip.observer.update(own)
        doublings = self.exponent - finest
        counts = bin_counts(
            flat,
            exponent=finest,
            bins=BINS << doublings,
            negative=low < 0,
        )
        self._add(counts, finest)
        for clip in sharing:
            clip.add(counts, finest)

    def _can_share(
        self, clip: ClippedObserver, low: float, high: float, size: int
    ) -> bool:
        """True if a count of `size` elements in [low, high] serves the clipped ones too."""
        clipped_low = clip.of(low)
        clipped_high = clip.of(high)
        needed = needed_exponent(clipped_low, clipped_high)
        exponent = max(clip.observer.exponent, needed)
        steps = self.exponent - exponent
        if steps > FINER:
            return False
        # with more bins than elements a second count costs less than adding up the bins
        bins = BINS << steps
        return size >= bins

    def _extend(self, low: float, high: float, count: int) -> None:
        """Widen lowest, highest and the bins to what `count` values in [low, high] need."""
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RefusedError(
                f"tensor '{self.name}'",
                "is NaN or infinite on the calibration data",
                "check the data and the model: run `onnx-opt verify` with the same data",
            )
        self.low = min(self.low, low)
        self.high = max(self.high, high)
        self._grow(needed_exponent(low, high))
        self.count += count

    def _add(self, counts: NDArray[np.int64], exponent: int) -> None:
        """Add counts of bins as fine as those of [-2^exponent, 2^exponent).

        There may be more than BINS of them, continued both ways; none counts out of range.
        """
        for _ in range(self.exponent - exponent):
            even = counts[::2]
            odd = counts[1::2]
            counts = even + odd
        extra = len(counts) - BINS
        first = extra // 2
        end = first + BINS
        self.bins += counts[first:end]

    def _grow(self, exponent: int) -> None:
        """Widen to [-2^exponent, 2^exponent) by adding neighbouring bins.

        Every step halves the resolution.
        """
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        if self.count == 0:
            return
        half = BINS // 2
        # after so many only the two bins beside zero are left, which more steps do not change
        steps = min(steps, half.bit_length())
        quarter = half // 2
        for _ in range(steps):
            pairs = self.bins.reshape(-1, 2)
            merged = np.zeros(BINS, np.int64)
            end = quarter + half
            merged[quarter:end] = pairs.sum(1)
            self.bins = merged

    def merge(self, other: RangeObserver) -> None:
        """Take everything another observer saw; associative and commutative."""
        if other.count == 0:
            return
        widened = RangeObserver(other.name)
        widened.exponent = other.exponent
        widened.bins = other.bins.copy()
        widened.count = other.count
        # whichever is narrower takes the other's exponent
        self._grow(other.exponent)
        widened._grow(self.exponent)
        self.bins += widened.bins
        self.count += other.count
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, (BINS + 1,)."""
        width = math.ldexp(2 / BINS, self.exponent)
        numbers = np.arange(BINS + 1, dtype=np.float64)
        from_zero = numbers - BINS / 2
        return from_zero * np.float64(width)

    def range(
        self, method: str = "minmax", percentile: float = 99.99, levels: int = 255
    ) -> tuple[float, float]:
        """Range (low, high) to quantize by.

        It holds 0 and lies within [min(0, lowest), max(0, highest)] seen; (0, 0) where nothing was
        seen but zeros. `minmax`: everything. `percentile`: the central `percentile` %, as much cut
        off on either side. `entropy`: least KL divergence. `mse`: least squared error of a grid
        with `levels` steps. `auto`: least expected error of the layers that read it.
        """
        if self.count == 0:
            return 0.0, 0.0
        lowest = min(self.low, 0.0)
        highest = max(self.high, 0.0)
        if self.low == self.high:
            # a constant: no distribution to cut
            return lowest, highest
        cut = METHODS[method]
        low, high = cut(
            self.bins,
            self.edges,
            self.low,
            self.high,
            percentile,
            levels,
        )
        low = min(low, 0.0)
        high = max(high, 0.0)
        return max(low, lowest), min(high, highest)


@dataclass(frozen=True)
class DerivedTap:
    """A tensor that is min(max(source, low), high), low <= 0 <= high, and so needs no count."""

    source: str
    low: float
    high: float


@dataclass(frozen=True)
class ClippedObserver:
    """An observer of min(max(x, low), high), low <= 0 <= high: Relu and most Clip.

    It can take the counts of x itself.
    """

    observer: RangeObserver
    low: float
    high: float

    def of(self, value: float) -> float:
        """Clip one value."""
        return min(max(value, self.low), self.high)

    def extend(self, low: float, high: float, count: int) -> None:
        """Widen the observer to what `count` values in [low, high] need, clipped."""
        clipped_low = self.of(low)
        clipped_high = self.of(high)
        self.observer._extend(clipped_low, clipped_high, count)

    def add(self, counts: NDArray[np.int64], exponent: int) -> None:
        """Add counts of x to the observer, clipped; the bins are those of `counts_of`."""
        own = self.counts_of(counts, exponent)
        self.observer._add(own, exponent)

    def counts_of(self, counts: NDArray[np.int64], exponent: int) -> NDArray[np.int64]:
        """Counts of clipped values from those of x, in the same bins.

        The bins are those of [-2^exponent, 2^exponent), continued both ways. A value beyond a bound
        goes where the bound itself lies, so the counts are exact.
        """
        bins = len(counts)
        first = _bin_of(self.low, exponent, bins)
        last = _bin_of(self.high, exponent, bins)
        below = counts[:first]
        above = counts[last + 1 :]
        inside = counts.copy()
        inside[:first] = 0
        inside[last + 1 :] = 0
        inside[first] += below.sum()
        inside[last] += above.sum()
        return inside


def _bin_of(bound: float, exponent: int, bins: int) -> int:
    """Number of the bin that a bound lies in; of the outermost one if it lies beyond."""
    scale = math.ldexp(BINS / 2, -exponent)
    middle = bins / 2
    last = bins - 1
    place = bound * scale + middle
    inside = min(max(place, 0), last)
    return int(inside)


def extremes(flat: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest value, NaN where there is one."""
    lows = []
    highs = []
    # both of one block, while that is in the cache
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        lows.append(block.min())
        highs.append(block.max())
    # numpy's, as Python's min would lose a NaN
    low = np.min(lows)
    high = np.max(highs)
    return float(low), float(high)


def needed_exponent(low: float, high: float) -> int:
    """Smallest k such that [low, high] lies within [-2^k, 2^k), at least -60."""
    needed = _MIN_EXPONENT
    for bound in (low, high):
        if bound:
            _, exponent = math.frexp(bound)
            needed = max(needed, exponent)
    return needed


def bin_counts(
    flat: NDArray[Any], exponent: int, bins: int, negative: bool
) -> NDArray[np.int64]:
    """Count the values in each bin, (bins,).

    The bins are those of [-2^exponent, 2^exponent), continued both ways where bins > BINS; values
    must lie in them. `negative`: values below zero may come.
    """
    lanes = LANES
    # lanes pay only where there are values to fill them, and numbers for all their bins
    if LANES * bins > min(flat.size, _CODES):
        lanes = 1
    offsets = _lane_offsets(BLOCK, lanes, bins)
    size = min(BLOCK, flat.size)
    # scratch arrays of all blocks
    all_scaled = np.empty(size, flat.dtype)
    all_short = np.empty(size, np.int16)
    all_index = np.empty(size, np.intp)
    bins_a_unit = math.ldexp(BINS / 2, -exponent)
    scale = flat.dtype.type(bins_a_unit)
    counts = np.zeros(lanes * bins, np.int64)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        length = block.size
        scaled = all_scaled[:length]
        short = all_short[:length]
        index = all_index[:length]
        np.multiply(block, scale, out=scaled)
        if negative:
            # not by truncating a shifted value: tiny negatives would be rounded up to zero
            np.floor(scaled, out=scaled)
        np.copyto(short, scaled, casting="unsafe")
        code = short.view(np.uint16)
        zero_bins = offsets[:length]
        # modulo 2^16, which is what makes negative numbers right
        np.add(code, zero_bins, out=code)
        np.copyto(index, code)
        np.add.at(counts, index, 1)
    by_lane = counts.reshape(lanes, bins)
    total: NDArray[np.int64] = by_lane.sum(0)
    return total


@functools.cache
def _lane_offsets(size: int, lanes: int, bins: int) -> NDArray[np.uint16]:
    """Index of the bin at zero, in the lane of each element of a block, (size,)."""
    lane = np.arange(size) % lanes
    first_bin = lane * bins
    zero_bin = first_bin + bins // 2
    return zero_bin.astype(np.uint16)
