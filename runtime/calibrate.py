"""Activation statistics in constant memory: a histogram whose range doubles by merging bins, exact in any order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._thresholds import METHODS

BINS = 4096
BLOCK = 64 * 1024  # elements: the scratch arrays of one block stay in the cache
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
        scratch, index = np.empty(min(BLOCK, flat.size), flat.dtype), np.empty(min(BLOCK, flat.size), np.intp)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            self._count(block, scratch[: block.size], index[: block.size])

    def _count(self, block: NDArray[Any], scratch: NDArray[Any], index: NDArray[np.intp]) -> None:
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RefusedError(f"tensor '{self.name}'", "is NaN or infinite on the calibration data",
                               "check the data and the model: run `onnx-opt verify` with the same data")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(math.frexp(low)[1], math.frexp(high)[1]))
        np.multiply(block, block.dtype.type(math.ldexp(BINS / 2, -self.exponent)), out=scratch)
        np.floor(scratch, out=scratch)  # not truncation of a shifted value: that would round tiny negatives up
        np.add(scratch, BINS // 2, out=scratch)
        np.copyto(index, scratch, casting="unsafe")
        self.bins += np.bincount(index, minlength=BINS)
        self.count += block.size

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
