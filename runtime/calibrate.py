"""Activation statistics in constant memory: a histogram whose range doubles by merging bins, exact in any order."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._thresholds import METHODS

BINS = 4096
BLOCK = 64 * 1024  # elements: the scratch arrays of one block stay in the cache
LANES = 4  # copies of the bins that neighbours count into: a Relu's many zeros do not wait for each other
_MIN_EXPONENT = -60


class RangeObserver:
    """Minimum, maximum and a symmetric histogram of everything seen; mergeable, so shards can be combined.

    The histogram has BINS bins over [-2^k, 2^k), k the smallest that holds every value. When a larger value comes,
    k grows and neighbouring bins are added: as bin edges are powers of two times integers, the counts are those that
    one pass with the final k would give, whatever the order of updates and merges.
    Errors: RefusedError naming the tensor when a value is NaN or infinite.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.exponent = _MIN_EXPONENT
        self.bins = np.zeros(BINS, np.int64)

    def update(self, array: NDArray[Any]) -> None:
        """Take every element of a float array of any shape."""
        flat = np.ascontiguousarray(array).reshape(-1)
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32)
        size = min(BLOCK, flat.size)
        scratch, index = np.empty(size, flat.dtype), np.empty(size, np.intp)
        lanes = LANES if flat.size >= LANES * BINS else 1
        offsets = _lane_offsets(BLOCK, lanes, flat.dtype.char)
        counts = np.zeros(lanes * BINS, np.int64)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            exponent = self._extend(block)
            if exponent > self.exponent:
                self._take(counts)
                self._grow(exponent)
            part = slice(0, block.size)
            np.multiply(block, block.dtype.type(math.ldexp(BINS / 2, -self.exponent)), out=scratch[part])
            np.floor(scratch[part], out=scratch[part])  # not truncation of a shifted value: tiny negatives would go up
            np.add(scratch[part], offsets[part], out=scratch[part])
            np.copyto(index[part], scratch[part], casting="unsafe")
            np.add.at(counts, index[part], 1)
            self.count += block.size
        self._take(counts)

    def _extend(self, block: NDArray[Any]) -> int:
        """Widen lowest and highest; the exponent that the block needs."""
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RefusedError(f"tensor '{self.name}'", "is NaN or infinite on the calibration data",
                               "check the data and the model: run `onnx-opt verify` with the same data")
        self.low, self.high = min(self.low, low), max(self.high, high)
        return max(math.frexp(low)[1], math.frexp(high)[1])

    def _take(self, counts: NDArray[np.int64]) -> None:
        """Move the counts of all lanes into the bins."""
        self.bins += counts.reshape(-1, BINS).sum(0)
        counts[:] = 0

    def _grow(self, exponent: int) -> None:
        """Widen to [-2^exponent, 2^exponent) by adding neighbouring bins; a step halves the resolution."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        if self.count == 0:
            return
        bins, half = self.bins, BINS // 2
        for _ in range(min(steps, half.bit_length())):  # then only the two bins beside zero are left
            merged = np.zeros(BINS, np.int64)
            merged[half // 2 : half + half // 2] = bins.reshape(-1, 2).sum(1)
            bins = merged
        self.bins = bins

    def merge(self, other: RangeObserver) -> None:
        """Take everything another observer saw; associative and commutative."""
        if other.count == 0:
            return
        widened = RangeObserver(other.name)
        widened.exponent, widened.bins, widened.count = other.exponent, other.bins.copy(), other.count
        self._grow(other.exponent)
        widened._grow(self.exponent)
        self.bins += widened.bins
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The BINS + 1 bin edges."""
        return (np.arange(BINS + 1, dtype=np.float64) - BINS / 2) * np.float64(math.ldexp(2 / BINS, self.exponent))

    def range(self, method: str = "minmax", percentile: float = 99.99) -> tuple[float, float]:
        """(low, high) to quantize by; always holds 0 and lies within [min(0, lowest), max(0, highest)] seen.

        `minmax`: everything; `percentile`: the central `percentile` %, as much cut off on either side; `entropy`: least
        KL divergence; `mse`: least squared error of an 8-bit grid; `auto`: least expected error of the layers that
        read it. Nothing seen, or only zeros: (0, 0).
        """
        if self.count == 0:
            return 0.0, 0.0
        if self.low == self.high:  # a constant: no distribution to cut
            return min(self.low, 0.0), max(self.high, 0.0)
        low, high = METHODS[method](self.bins, self.edges, self.low, self.high, percentile)
        return max(min(low, 0.0), min(self.low, 0.0)), min(max(high, 0.0), max(self.high, 0.0))


@functools.cache
def _lane_offsets(size: int, lanes: int, dtype: str) -> NDArray[Any]:
    """(size,) where each element of a block counts from: the bin at zero of its lane."""
    return (np.arange(size) % lanes * BINS + BINS // 2).astype(dtype)
