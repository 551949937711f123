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
    is_zero = steps == 0
    has_zero = is_zero.any(axis=1)
    start = _start(histogram, count)
    values = histogram.improved(start, has_zero)
    error = histogram.error(values)
    return values.astype(np.int8), error


def _start(histogram: _Histogram, count: int) -> NDArray[np.float64]:
    """Values to improve, of the best division where they are few: (palettes, count)."""
    if count <= MOST_DIVIDED:
        return histogram.divided(count)
    return histogram.by_density(count)


class _Histogram:
    """Weights counted in bins, as running sums from the lowest: (palettes, BINS + 1) each."""

    def __init__(self, steps: Rows, weights: Rows) -> None:
        palettes = len(steps)
        exact = (steps + HIGHEST) * FINER
        nearest = np.rint(exact)
        places = np.clip(nearest, 0, BINS - 1).astype(np.intp)
        first_bins = BINS * np.arange(palettes)
        places += first_bins[:, None]
        flat = places.reshape(-1)
        bins = BINS * palettes
        powers = [
            weights,
            weights * steps,
            weights * steps**2,
        ]
        sums: list[NDArray[np.float64]] = []
        for power in powers:
            exact_power = np.asarray(power, np.float64)
            flat_power = exact_power.reshape(-1)
            counted = np.bincount(flat, flat_power, bins)
            by_palette = counted.reshape(palettes, BINS)
            sums.append(by_palette.astype(np.float64))
        self.density = sums[0]
        self._running = [_running(each) for each in sums]

    def by_density(self, count: int) -> NDArray[np.float64]:
        """Values as dense as the cube root of the weights: the best ones, where they are many.

        Source: Panter and Dite, Quantization distortion in pulse-count modulation, Proceedings of
        the IRE 39 (1951).
        """
        middles = np.arange(count) + 0.5
        shares = middles / count
        places = self._places(shares)
        return places / FINER - HIGHEST

    def divided(self, count: int) -> NDArray[np.float64]:
        """Values of the best division of CELLS cells, as dense as above, into so many runs.

        Source: Wang and Song, Ckmeans.1d.dp, The R Journal 3 (2011).
        """
        shares = np.arange(CELLS + 1) / CELLS
        places = self._places(shares)
        ends = np.rint(places).astype(np.intp)
        ends[:, 0] = 0
        ends[:, -1] = BINS
        values = []
        # the errors of all runs are held for some palettes at a time
        for start in range(0, len(ends), DIVIDED_AT_ONCE):
            part = slice(start, start + DIVIDED_AT_ONCE)
            ends_of_part = ends[part]
            sums = []
            for running in self._running:
                running_of_part = running[part]
                taken = np.take_along_axis(running_of_part, ends_of_part, axis=1)
                sums.append(taken)
            divided = _divided(sums, count)
            values.append(divided)
        return np.concatenate(values)

    def _places(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bins below which a share of the cube roots of the density lies: (palettes, shares)."""
        farthest = 3 * SPREAD
        reach = np.arange(-farthest, farthest + 1)
        deviations = reach / SPREAD
        exponents = -0.5 * deviations**2
        kernel = np.exp(exponents)
        numbers = np.arange(BINS)
        places = []
        for own in self.density:
            smooth = np.convolve(own, kernel, "same")
            roots = np.cbrt(smooth)
            running = roots.cumsum()
            total = max(running[-1], 1e-300)
            reached = running / total
            found = np.interp(shares, reached, numbers)
            places.append(found)
        return np.array(places)

    def improved(
        self, values: NDArray[np.float64], has_zero: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Whole values, each at the mean of the weights that are nearest to it."""
        for _ in range(ROUNDS):
            before = values
            weight, first, _ = self._parts(values)
            divisors = np.maximum(weight, 1e-300)
            means = first / divisors
            has_weights = weight > 0
            values = np.where(has_weights, means, values)
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
        lower = values[:, :-1]
        upper = values[:, 1:]
        bounds = (upper + lower) / 2
        exact = (bounds + HIGHEST) * FINER
        whole = np.ceil(exact)
        inner = np.clip(whole, 0, BINS).astype(np.intp)
        ends = np.pad(inner, ((0, 0), (1, 0)))
        ends = np.pad(ends, ((0, 0), (0, 1)), constant_values=BINS)
        parts = []
        for sums in self._running:
            taken = np.take_along_axis(sums, ends, axis=1)
            differences = np.diff(taken, axis=1)
            parts.append(differences)
        return parts


def _running(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of all bins before each: (palettes, BINS) -> (palettes, BINS + 1)."""
    running = sums.cumsum(axis=1)
    return np.pad(running, ((0, 0), (1, 0)))


def _divided(sums: list[NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    """Means of the runs of cells with the least squared error: (palettes, count).

    Shapes: running sums of weights, values and squares, (palettes, cells + 1).
    """
    palettes, borders = sums[0].shape
    means, errors = _runs(sums)
    least = errors[:, 0]
    cuts = []
    for _ in range(count - 1):
        # the last run begins where the others end best
        totals = least[:, :, None] + errors
        best = totals.argmin(axis=1)
        cuts.append(best)
        least = totals.min(axis=1)
    # the first run begins where the cells do
    cuts.insert(0, np.zeros((palettes, borders), np.intp))
    # the runs from the last to the first, of every palette at once
    each = np.arange(palettes)
    end = np.full(palettes, borders - 1)
    values = np.zeros((palettes, count))
    for index in reversed(range(count)):
        begin = cuts[index][each, end]
        values[:, index] = means[each, begin, end]
        end = begin
    return np.sort(values, axis=1)


def _runs(
    sums: list[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and squared error of each run of cells: (palettes, cells + 1, cells + 1) both.

    A run lasts from the end of one cell, on axis 1, to that of another, on axis 2; where it would
    last backwards, its error is infinite.
    """
    weight, first, second = (_differences(each) for each in sums)
    has_weights = weight > 0
    divisors = np.where(has_weights, weight, np.inf)
    means = first / divisors
    spread = second - means * first
    borders = spread.shape[1]
    every = np.ones((borders, borders), bool)
    is_run = np.triu(every)
    errors = np.where(is_run, spread, np.inf)
    return means, errors


def _differences(running: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of all runs: (palettes, cells + 1) -> (palettes, cells + 1, cells + 1)."""
    ends = running[:, None, :]
    starts = running[:, :, None]
    return ends - starts


def _with_zero(
    values: NDArray[np.float64], has_zero: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Values with the nearest to 0 at 0, where there are zeros to keep."""
    kept = values.copy()
    palettes = np.flatnonzero(has_zero)
    distances = np.abs(kept[palettes])
    nearest = distances.argmin(axis=1)
    kept[palettes, nearest] = 0.0
    return kept
