"""Where to cut a histogram's tails: the calibration methods, from bins to (low, high)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bins = NDArray[np.int64]
Edges = NDArray[np.float64]
Cut = Callable[[Bins, Edges, float, float, float, int], tuple[float, float]]
"""(bins, edges, lowest, highest, percentile, levels) -> (low, high). `levels`: steps of the grid,
255 of 8 bits.
"""

_CANDIDATES = 96
_FLOOR = 1e-12  # of Q where P is not zero
_CLIP_WEIGHT = 4.0  # measured: docs/decisions/2026-11-22-calibration-auto.md


def minmax(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """Everything that was seen."""
    return lowest, highest


def by_percentile(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """The central `percentile` percent of the values, exact to a bin."""
    below = np.concatenate([[0], np.cumsum(bins)])
    tail = (1 - percentile / 100) / 2 * below[-1]
    occupied = np.flatnonzero(np.diff(below) > 0)
    points = np.concatenate(
        [[occupied[0]], occupied + 1]
    )  # where the cumulative count really rises
    low, high = np.interp([tail, below[-1] - tail], below[points], edges[points])
    return max(float(low), lowest), min(float(high), highest)


def by_entropy(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """The cut whose quantized version diverges least from the distribution (Kullback-Leibler).

    One-sided data is cut at one end with all levels; two-sided data at equal magnitudes with half
    of them a side. Source: Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    half = len(bins) // 2
    right, left = bins[half:], bins[:half][::-1]
    if lowest >= 0:
        return 0.0, _least_divergent(right, edges[half:], levels, highest)
    if highest <= 0:
        return -_least_divergent(left, edges[half:], levels, -lowest), 0.0
    cut = _least_divergent(
        right + left, edges[half:], (levels + 1) // 2, max(-lowest, highest)
    )
    return max(lowest, -cut), min(highest, cut)


def _least_divergent(bins: Bins, edges: Edges, levels: int, highest: float) -> float:
    """Edge at which to cut one-sided bins; a histogram with fewer occupied bins than levels is not
    cut.

    The bin at zero is left out: zero is on every grid, and a Relu's many zeros would decide alone.
    """
    bins = bins.copy()
    bins[0] = 0
    last = int(np.flatnonzero(bins)[-1]) + 1 if bins.any() else 0
    if last <= levels:
        return highest
    ends = np.unique(np.linspace(levels, last, _CANDIDATES).astype(int))
    best = int(ends[int(np.argmin(_divergences(bins, ends, levels)))])
    return highest if best == last else float(edges[best])


def _divergences(
    bins: Bins, ends: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """KL(P || Q) of each end: P is the first `end` bins, the tail added to the last; Q is the same
    through the levels.

    Within a level Q is constant over its occupied bins, so prefix sums of b, b log b and b > 0 are
    enough.
    """
    counts = bins.astype(np.float64)
    below, occupied, self_information = (
        np.append(0.0, np.cumsum(c)) for c in (counts, counts > 0, _times_log(counts))
    )
    borders = np.arange(levels + 1) * ends[:, None] // levels
    totals, members = np.diff(below[borders]), np.diff(occupied[borders])
    everything, inside, last = below[-1], below[ends], counts[ends - 1]
    tail = everything - inside
    level = totals / (np.maximum(members, 1) * np.maximum(inside, 1)[:, None])
    of_last = np.where(last > 0, level[:, -1], _FLOOR)
    p_log_p = (
        self_information[ends - 1] + _times_log(last + tail)
    ) / everything - np.log(everything)
    p_log_q = (
        np.sum(totals * np.log(np.maximum(level, _FLOOR)), axis=1)
        + tail * np.log(of_last)
    ) / everything
    return np.asarray(p_log_p - p_log_q)


def _times_log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """X log x, 0 at 0."""
    return np.asarray(x * np.log(np.maximum(x, 1.0)))  # counts: 0 or at least 1


def by_squared_error(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """The range whose asymmetric grid gives the least squared error: clipping outside, rounding
    inside.
    """
    return _least_costly(bins, edges, lowest, highest, levels, 1.0)


def by_output_error(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    percentile: float,
    levels: int,
) -> tuple[float, float]:
    """The range with the least expected error of a layer's outputs; covers every cut that the other
    methods make.

    An output sums many values. Their rounding errors are independent and of either sign, so they
    partly cancel; the errors of clipping have one sign and come together, so they add up and weigh
    more. The largest values are also those that a few calibration samples show too few of.
    """
    return _least_costly(bins, edges, lowest, highest, levels, _CLIP_WEIGHT)


def _least_costly(
    bins: Bins,
    edges: Edges,
    lowest: float,
    highest: float,
    levels: int,
    clip_weight: float,
) -> tuple[float, float]:
    """A grid search over both ends of the range, then a finer one around its best point.

    Rounding costs step^2 / 12 a value; the bins beside zero cost nothing, as zero is on the grid.
    """
    half = len(bins) // 2
    mids = (edges[:-1] + edges[1:]) / 2
    lows = np.array([0.0]) if lowest >= 0 else np.linspace(lowest, 0.0, _CANDIDATES)
    highs = np.array([0.0]) if highest <= 0 else np.linspace(highest, 0.0, _CANDIDATES)
    rounded = bins.copy()
    rounded[half - 1 : half + 1] = 0
    low, high = 0.0, 0.0
    for _ in range(2):
        low, high = _best_pair(bins, rounded, mids, lows, highs, levels, clip_weight)
        lows = _around(low, lows, lowest, 0.0)
        highs = _around(high, highs, 0.0, highest)
    return low, high


def _best_pair(
    bins: Bins,
    rounded: Bins,
    mids: Edges,
    lows: Edges,
    highs: Edges,
    levels: int,
    clip_weight: float,
) -> tuple[float, float]:
    clipped = (
        _clip_cost(bins, mids, highs)[None, :]
        + _clip_cost(bins[::-1], -mids[::-1], -lows)[:, None]
    )
    below = np.concatenate([[0.0], np.cumsum(rounded)])
    inside = (
        below[np.searchsorted(mids, highs, "right")][None, :]
        - below[np.searchsorted(mids, lows)][:, None]
    )
    step = (highs[None, :] - lows[:, None]) / levels
    cost = clip_weight * clipped + inside * step**2 / 12
    row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return float(lows[row]), float(highs[column])


def _clip_cost(bins: Bins, mids: Edges, cuts: Edges) -> Any:
    """Sum of (x - cut)^2 over the values above each cut, from suffix sums of the moments."""
    moments = [
        np.append(np.cumsum((bins * mids**power)[::-1])[::-1], 0.0)
        for power in range(3)
    ]
    s0, s1, s2 = (moment[np.searchsorted(mids, cuts, "right")] for moment in moments)
    return np.maximum(s2 - 2 * cuts * s1 + cuts**2 * s0, 0.0)


def _around(best: float, grid: Edges, bottom: float, top: float) -> Edges:
    if len(grid) == 1:
        return grid
    step = abs(float(grid[1] - grid[0]))
    return np.unique(
        np.clip(np.linspace(best - step, best + step, _CANDIDATES), bottom, top)
    )


METHODS: dict[str, Cut] = {
    "minmax": minmax,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "mse": by_squared_error,
    "auto": by_output_error,
}
