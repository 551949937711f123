"""Values of a palette that fit weights best, found on histograms: no weight is looked at twice.

First the best division of cells of the histogram into runs, or values as dense as theory says;
then each value moves to the mean of the weights that are nearest to it.

Source: Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28 (1982).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._core.saturation import PAIR_LIMIT

HIGHEST = PAIR_LIMIT // 2
"""Largest code: no two of a palette can saturate a kernel of any CPU."""

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

Rows = NDArray[np.floating]
Codes = NDArray[np.int8]


def best_values(steps: Rows, weights: Rows, count: int) -> tuple[Codes, float]:
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
            sums = []
            for running in self._running:
                taken = np.take_along_axis(running[part], ends[part], axis=1)
                sums.append(taken)
            values.append(_divided(sums, count))
        return np.concatenate(values)

    def _places(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bins below which a share of the cube roots of the density lies: (palettes, shares)."""
        reach = np.arange(-3 * SPREAD, 3 * SPREAD + 1)
        deviations = reach / SPREAD
        kernel = np.exp(-0.5 * deviations**2)
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
        crossed = 2 * values * first
        own = values**2 * weight
        parts = second - crossed + own
        return float(parts.sum())

    def _parts(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Sums over the weights that are nearest to each value: (palettes, count) each."""
        bounds = (values[:, 1:] + values[:, :-1]) / 2
        exact = (bounds + HIGHEST) * FINER
        inner = np.clip(np.ceil(exact), 0, BINS).astype(np.intp)
        ends = np.pad(inner, ((0, 0), (1, 0)))
        ends = np.pad(ends, ((0, 0), (0, 1)), constant_values=BINS)
        parts = []
        for sums in self._running:
            taken = np.take_along_axis(sums, ends, axis=1)
            parts.append(np.diff(taken, axis=1))
        return parts


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
