"""Calibration methods: where to cut a histogram's tails, from bins to (low, high).

Every method takes the same arguments. `bins`: (B,) counts, half of them below zero. `edges`: (B +
1,) of the bins. `lowest`, `highest`: of everything seen. `percentile`: percent of the values to
keep. `levels`: steps of the grid to quantize to, 255 of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bins = NDArray[np.int64]
Edges = NDArray[np.float64]
Floats = NDArray[np.float64]
Method = Callable[[Bins, Edges, float, float, float, int], tuple[float, float]]
"""(bins, edges, lowest, highest, percentile, levels) -> (low, high)."""

_CANDIDATES = 96
"""Cuts that are tried on a side. A second grid around the best one makes it finer. Chosen by hand;
tests hold the result within 5 % of the least error of 60 cuts a side.
"""

_FLOOR = 1e-12
"""Probability that the quantized distribution is given where it is zero and the real one is not,
since the logarithm of zero would decide alone. Chosen by hand; not measured.
"""

_CLIP_WEIGHT = 4.0
"""Weight of a squared clipping error beside a squared rounding error.

Measured on four models: docs/decisions/2026-11-22-calibration-auto.md.
"""


def minmax(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Keep everything that was seen."""
    return lowest, highest


def by_percentile(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Keep the central `percentile` percent of the values, exact to a bin."""
    below = np.concatenate([[0], np.cumsum(bins)])
    total = below[-1]
    outside = 1 - percentile / 100
    tail = outside / 2 * total
    # only where the cumulative count really rises: it cannot be inverted where it is flat
    (occupied,) = np.nonzero(bins)
    first = occupied[0]
    points = np.concatenate([[first], occupied + 1])
    low, high = np.interp(
        [tail, total - tail],
        below[points],
        edges[points],
    )
    cut_low = float(low)
    cut_high = float(high)
    return max(cut_low, lowest), min(cut_high, highest)


def by_entropy(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Make the cut whose quantized version diverges least from the distribution.

    One-sided data is cut at one end with all levels; two-sided data at equal magnitudes with half
    of them a side. Source: Migacz, 8-bit inference with TensorRT, GTC 2017 (Kullback-Leibler).
    """
    half = len(bins) // 2
    positive = edges[half:]
    right = bins[half:]
    left = bins[:half][::-1]
    if lowest >= 0:
        cut = _least_divergent(right, positive, levels, highest)
        return 0.0, cut
    if highest <= 0:
        cut = _least_divergent(left, positive, levels, -lowest)
        return -cut, 0.0
    cut = _least_divergent(
        bins=right + left,
        edges=positive,
        levels=(levels + 1) // 2,
        highest=max(-lowest, highest),
    )
    # the shorter side is not cut beyond its end
    low = max(lowest, -cut)
    high = min(highest, cut)
    return low, high


def _least_divergent(bins: Bins, edges: Edges, levels: int, highest: float) -> float:
    """Edge at which to cut one-sided bins.

    A histogram with fewer occupied bins than levels is not cut.
    """
    bins = bins.copy()
    # zero is on every grid, and a Relu's many zeros would decide alone
    bins[0] = 0
    (occupied,) = np.nonzero(bins)
    if not len(occupied):
        return highest
    last = occupied[-1] + 1
    if last <= levels:
        return highest
    candidates = np.linspace(levels, last, _CANDIDATES)
    ends = np.unique(candidates.astype(int))
    divergences = _divergences(bins, ends, levels)
    best = ends[np.argmin(divergences)]
    if best == last:
        return highest
    return float(edges[best])


def _divergences(bins: Bins, ends: NDArray[np.int64], levels: int) -> Floats:
    """KL(P || Q) of each end.

    P is the first `end` bins, the tail added to the last; Q is the same through the levels.
    """
    # within a level Q is constant over its occupied bins, so that prefix sums of b, b log b and
    # b > 0 are enough
    counts = bins.astype(np.float64)
    is_occupied = counts > 0
    below = _prefix_sums(counts)
    occupied = _prefix_sums(is_occupied)
    self_information = _prefix_sums(_times_log(counts))
    numbers = np.arange(levels + 1)
    scaled = numbers * ends[:, None]
    borders = scaled // levels
    below_borders = below[borders]
    occupied_below = occupied[borders]
    totals = np.diff(below_borders)
    members = np.diff(occupied_below)
    everything = below[-1]
    inside = below[ends]
    tail = everything - inside
    before = ends - 1
    last = counts[before]
    # empty levels have no members, an empty histogram no values: neither may divide by zero
    members = np.maximum(members, 1)
    some = np.maximum(inside, 1)
    divisor = members * some[:, None]
    level = totals / divisor
    # the last bin's own Q is zero where only the tail fills it
    has_own = last > 0
    of_last = np.where(has_own, level[:, -1], _FLOOR)
    last_information = _times_log(last + tail)
    information = self_information[before] + last_information
    p_log_p = information / everything - np.log(everything)
    positive = np.maximum(level, _FLOOR)
    weighted = totals * np.log(positive)
    of_levels = np.sum(weighted, axis=1)
    of_tail = tail * np.log(of_last)
    p_log_q = (of_levels + of_tail) / everything
    divergence = p_log_p - p_log_q
    return np.asarray(divergence)


def _prefix_sums(values: NDArray[Any]) -> Floats:
    """Sums of the first 0, 1, 2, … values."""
    return np.append(0.0, np.cumsum(values))


def _times_log(counts: Floats) -> Floats:
    """Compute c log c of counts, 0 at 0."""
    # counts are 0 or at least 1
    at_least_one = np.maximum(counts, 1.0)
    products = counts * np.log(at_least_one)
    return np.asarray(products)


def by_squared_error(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Take the range whose asymmetric grid gives the least squared error.

    Values outside are clipped, values inside rounded.
    """
    return _least_costly(
        bins,
        edges,
        lowest,
        highest,
        levels,
        clip_weight=1.0,
    )


def by_output_error(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Take the range with the least expected error of a layer's outputs.

    It covers every cut that the other methods make. An output sums many values. Their rounding
    errors are independent and of either sign, so they partly cancel; the errors of clipping have
    one sign and come together, so they add up and weigh more. The largest values are also those
    that a few calibration samples show too few of.
    """
    return _least_costly(
        bins,
        edges,
        lowest,
        highest,
        levels,
        clip_weight=_CLIP_WEIGHT,
    )


def _least_costly(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    levels: int,
    clip_weight: float,
) -> tuple[float, float]:
    """Search a grid over both ends of the range, then a finer one around its best point."""
    half = len(bins) // 2
    starts = edges[:-1]
    ends = edges[1:]
    mids = (starts + ends) / 2
    # the bins beside zero are not rounded: zero is on the grid
    rounded = bins.copy()
    rounded[half - 1] = 0
    rounded[half] = 0
    lows = np.zeros(1)
    if lowest < 0:
        lows = _candidates(lowest)
    highs = np.zeros(1)
    if highest > 0:
        highs = _candidates(highest)
    low = 0.0
    high = 0.0
    for _ in range(2):
        low, high = _best_pair(
            bins,
            rounded,
            mids,
            lows,
            highs,
            levels,
            clip_weight,
        )
        lows = _around(low, lows, lowest, 0.0)
        highs = _around(high, highs, 0.0, highest)
    return low, high


def _candidates(farthest: float) -> Floats:
    return np.linspace(farthest, 0.0, _CANDIDATES)


def _best_pair(
    bins: Bins,
    rounded: Bins,
    mids: Floats,
    lows: Floats,
    highs: Floats,
    levels: int,
    clip_weight: float,
) -> tuple[float, float]:
    """Pair of ends with the least cost; `rounded`: the bins whose values rounding moves."""
    above = _clip_cost(bins, mids, highs)
    below = _clip_cost(
        bins=bins[::-1],
        mids=-mids[::-1],
        cuts=-lows,
    )
    first = np.searchsorted(mids, lows)
    last = np.searchsorted(mids, highs, "right")
    counted = _prefix_sums(rounded)
    # (lows, highs): every low end with every high end
    clipped = above + below[:, None]
    up_to_low = counted[first]
    up_to_high = counted[last]
    inside = up_to_high - up_to_low[:, None]
    width = highs - lows[:, None]
    step = width / levels
    # a rounding error is uniform over a step: its variance is step^2 / 12
    rounding = inside * step**2 / 12
    cost = clip_weight * clipped + rounding
    best = np.argmin(cost)
    row, column = np.unravel_index(best, cost.shape)
    low = float(lows[row])
    high = float(highs[column])
    return low, high


def _clip_cost(bins: Bins, mids: Floats, cuts: Floats) -> Floats:
    """Sum of (x - cut)^2 over the values above each cut, from suffix sums of the moments."""
    above = np.searchsorted(mids, cuts, "right")
    moments = []
    for power in range(3):
        values = bins * mids**power
        sums = _suffix_sums(values)
        moments.append(sums[above])
    count, first, second = moments
    of_first = 2 * cuts * first
    of_count = cuts**2 * count
    cost: Floats = second - of_first + of_count
    # differences of large sums can come out below zero
    return np.maximum(cost, 0.0)


def _suffix_sums(values: Floats) -> Floats:
    """Sums of all values, of all but the first, and so on, down to 0."""
    last_first = values[::-1]
    backwards = np.cumsum(last_first)
    return np.append(backwards[::-1], 0.0)


def _around(best: float, grid: Floats, bottom: float, top: float) -> Floats:
    """Make a finer grid around a point of a grid, one old step each way, within [bottom, top]."""
    if len(grid) == 1:
        return grid
    step = abs(float(grid[1] - grid[0]))
    finer = np.linspace(
        best - step,
        best + step,
        _CANDIDATES,
    )
    clipped = np.clip(finer, bottom, top)
    return np.unique(clipped)


METHODS: dict[str, Method] = {
    "minmax": minmax,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "mse": by_squared_error,
    "auto": by_output_error,
}
