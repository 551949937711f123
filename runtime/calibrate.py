"""Activation statistics in constant memory: a histogram whose range doubles by merging bins, exact
in any order.
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
BLOCK = 64 * 1024  # elements: the scratch arrays of one block stay in the cache
LANES = 4  # copies of the bins that neighbours count into: a Relu's many zeros do not wait for each other
FINER = 4  # doublings of the bins in one count, so that what is clipped to a smaller range can be read off it
_CODES = (
    1 << 16
)  # bins are numbered in 16 bits, which are cheaper to compute than an index
_MIN_EXPONENT = -60


class RangeObserver:
    """Minimum, maximum and a symmetric histogram of everything seen; mergeable, so shards can be
    combined.

    The histogram has BINS bins over [-2^k, 2^k), k the smallest that holds every value. When a
    larger value comes, k grows and neighbouring bins are added: as bin edges are powers of two
    times integers, the counts are those that one pass with the final k would give, whatever the
    order of updates and merges. Errors: RefusedError naming the tensor when a value is NaN or
    infinite.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.exponent = _MIN_EXPONENT
        self.bins = np.zeros(BINS, np.int64)

    def update(self, array: NDArray[Any], clipped: Sequence[Clipped] = ()) -> None:
        """Take every element of a float array of any shape; `clipped` take the same, clipped, from
        the same count.
        """
        flat = np.ascontiguousarray(array).reshape(-1)
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32)
        if not flat.size:
            return
        low, high = extremes(flat)
        self._extend(low, high, flat.size)
        shared = []
        for clip in clipped:
            steps = self.exponent - max(
                clip.observer.exponent, needed_exponent(clip.of(low), clip.of(high))
            )
            if steps <= FINER and flat.size >= BINS << steps:
                clip.observer._extend(clip.of(low), clip.of(high), flat.size)
                shared.append(clip)
            else:
                clip.observer.update(np.clip(flat, clip.low, clip.high))
        finest = min([self.exponent, *(clip.observer.exponent for clip in shared)])
        counts = bin_counts(flat, finest, BINS << (self.exponent - finest), low < 0)
        self._add(counts, finest)
        for clip in shared:
            clip.observer._add(clip.counts_of(counts, finest), finest)

    def _extend(self, low: float, high: float, count: int) -> None:
        """Widen lowest, highest and the bins to what `count` values in [low, high] need."""
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RefusedError(
                f"tensor '{self.name}'",
                "is NaN or infinite on the calibration data",
                "check the data and the model: run `onnx-opt verify` with the same data",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(needed_exponent(low, high))
        self.count += count

    def _add(self, counts: NDArray[np.int64], exponent: int) -> None:
        """Add counts of the bins of [-2^exponent, 2^exponent), or of those continued both ways,
        none out of range.
        """
        for _ in range(self.exponent - exponent):
            counts = counts[::2] + counts[1::2]
        beyond = (len(counts) - BINS) // 2
        self.bins += counts[beyond : beyond + BINS]

    def _grow(self, exponent: int) -> None:
        """Widen to [-2^exponent, 2^exponent) by adding neighbouring bins; a step halves the
        resolution.
        """
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        if self.count == 0:
            return
        bins, half = self.bins, BINS // 2
        for _ in range(
            min(steps, half.bit_length())
        ):  # then only the two bins beside zero are left
            merged = np.zeros(BINS, np.int64)
            merged[half // 2 : half + half // 2] = bins.reshape(-1, 2).sum(1)
            bins = merged
        self.bins = bins

    def merge(self, other: RangeObserver) -> None:
        """Take everything another observer saw; associative and commutative."""
        if other.count == 0:
            return
        widened = RangeObserver(other.name)
        widened.exponent, widened.bins, widened.count = (
            other.exponent,
            other.bins.copy(),
            other.count,
        )
        self._grow(other.exponent)
        widened._grow(self.exponent)
        self.bins += widened.bins
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The BINS + 1 bin edges."""
        return (np.arange(BINS + 1, dtype=np.float64) - BINS / 2) * np.float64(
            math.ldexp(2 / BINS, self.exponent)
        )

    def range(
        self, method: str = "minmax", percentile: float = 99.99, levels: int = 255
    ) -> tuple[float, float]:
        """(low, high) to quantize by; always holds 0 and lies within [min(0, lowest), max(0,
        highest)] seen.

        `minmax`: everything; `percentile`: the central `percentile` %, as much cut off on either
        side; `entropy`: least KL divergence; `mse`: least squared error of a grid with `levels`
        steps; `auto`: least expected error of the layers that read it. Nothing seen, or only zeros:
        (0, 0).
        """
        if self.count == 0:
            return 0.0, 0.0
        if self.low == self.high:  # a constant: no distribution to cut
            return min(self.low, 0.0), max(self.high, 0.0)
        low, high = METHODS[method](
            self.bins, self.edges, self.low, self.high, percentile, levels
        )
        return max(min(low, 0.0), min(self.low, 0.0)), min(
            max(high, 0.0), max(self.high, 0.0)
        )


@dataclass(frozen=True)
class Tap:
    """Says of a tensor that it is min(max(source, low), high), with low <= 0 <= high, so that it
    needs no count.
    """

    source: str
    low: float
    high: float


@dataclass(frozen=True)
class Clipped:
    """What observes min(max(x, low), high) of a tensor x, low <= 0 <= high: Relu and most Clip."""

    observer: RangeObserver
    low: float
    high: float

    def of(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def counts_of(self, counts: NDArray[np.int64], exponent: int) -> NDArray[np.int64]:
        """Clipped counts from counts of x, whose bins are those of [-2^exponent, 2^exponent)
        continued both ways.

        A value beyond a bound goes where the bound itself lies, so it is exact.
        """
        first, last = (
            int(
                min(
                    max(bound * math.ldexp(BINS / 2, -exponent) + len(counts) / 2, 0),
                    len(counts) - 1,
                )
            )
            for bound in (self.low, self.high)
        )
        inside = np.zeros_like(counts)
        inside[first : last + 1] = counts[first : last + 1]
        inside[first] += counts[:first].sum()
        inside[last] += counts[last + 1 :].sum()
        return inside


def extremes(flat: NDArray[Any]) -> tuple[float, float]:
    """(lowest, highest), NaN where there is one; both while a block is in the cache."""
    lows, highs = [], []
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        lows.append(block.min())
        highs.append(block.max())
    return float(np.min(lows)), float(np.max(highs))  # Python's min would lose a NaN


def needed_exponent(low: float, high: float) -> int:
    """The smallest k such that [low, high] lies within [-2^k, 2^k), at least -60."""
    return max(
        [_MIN_EXPONENT, *(math.frexp(bound)[1] for bound in (low, high) if bound)]
    )


def bin_counts(
    flat: NDArray[Any], exponent: int, bins: int, negative: bool
) -> NDArray[np.int64]:
    """(bins,) of the values in each bin: those of [-2^exponent, 2^exponent), continued both ways
    where bins > BINS.

    `negative`: whether values below zero may come. Errors: none; values must lie in the bins.
    """
    lanes = LANES if LANES * bins <= min(flat.size, _CODES) else 1
    offsets = _lane_offsets(BLOCK, lanes, bins)
    size = min(BLOCK, flat.size)
    scaled, short, index = (
        np.empty(size, flat.dtype),
        np.empty(size, np.int16),
        np.empty(size, np.intp),
    )
    scale = flat.dtype.type(math.ldexp(BINS / 2, -exponent))
    counts = np.zeros(lanes * bins, np.int64)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        part = slice(0, block.size)
        np.multiply(block, scale, out=scaled[part])
        if negative:  # not truncation of a shifted value: tiny negatives would go up
            np.floor(scaled[part], out=scaled[part])
        np.copyto(short[part], scaled[part], casting="unsafe")
        code = short[part].view(np.uint16)
        np.add(
            code, offsets[part], out=code
        )  # modulo 2^16, which is what makes negatives right
        np.copyto(index[part], code)
        np.add.at(counts, index[part], 1)
    total: NDArray[np.int64] = counts.reshape(lanes, bins).sum(0)
    return total


@functools.cache
def _lane_offsets(size: int, lanes: int, bins: int) -> NDArray[np.uint16]:
    """(size,) where each element of a block counts from: the bin at zero of its lane."""
    return (np.arange(size) % lanes * bins + bins // 2).astype(np.uint16)
