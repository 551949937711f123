"""Moments of channels fold by fold.

They tell what a moment would have been on some of the samples, without running the model again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 64
"""Parts of the data that are kept apart.

Enough to draw halves from, however many samples there are. Chosen by hand; not measured.
"""


def samples_of(array: NDArray[Any], axis: int, samples: int | None) -> int:
    """Count the equal runs of axis 0 that are samples.

    As many as were fed (None: as axis 0 has), or 1 where the axis does not divide so.
    """
    if axis % array.ndim == 0:
        # channels lie there: a sample has no rows of its own
        return 1
    rows = len(array)
    count = rows if samples is None else samples
    if count and rows % count == 0:
        return count
    return 1


def fold_sums(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Sums of 1, x, |x| and x^2 by fold: (R, C) -> (FOLDS, 4, C).

    `rows` lie sample by sample; the first is sample `first` of all that were seen. Sample i counts
    to fold i mod FOLDS.
    """
    parts = _by_sample(rows, samples)
    _, each, channels = parts.shape
    # in float64 throughout: means of equal values must leave a variance of zero
    magnitudes = np.abs(parts)
    squares = np.square(parts, dtype=np.float64)
    sums = [
        np.full((samples, channels), float(each)),
        parts.sum(axis=1, dtype=np.float64),
        magnitudes.sum(axis=1, dtype=np.float64),
        squares.sum(axis=1),
    ]
    of_samples = np.stack(sums, axis=1)
    folds = _folds_of(samples, first)
    total = np.zeros((FOLDS, len(sums), channels))
    # ufunc.at, as += with an index counts only the last of several samples in one fold
    np.add.at(total, folds, of_samples)
    return total


def _by_sample(rows: NDArray[Any], samples: int) -> NDArray[Any]:
    """Split rows that lie sample by sample: (R, C) -> (samples, R / samples, C)."""
    channels = rows.shape[-1]
    return rows.reshape(samples, -1, channels)


def _folds_of(samples: int, first: int) -> NDArray[np.int64]:
    """Fold of each of so many samples, from number `first` on."""
    numbers = first + np.arange(samples)
    return numbers % FOLDS


def fold_means(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of x, |x| and x^2 from `fold_sums`: (FOLDS, 4, C) -> (folds, 3, C).

    Folds without a sample are left out.
    """
    seen = seen_folds(total)
    counts = seen[:, :1]
    sums = seen[:, 1:]
    return sums / counts


def fold_extremes(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Count, lowest and highest x by fold: (R, C) -> (FOLDS, 3, C).

    Arguments as of `fold_sums`. Infinities where a fold has no sample.
    """
    parts = _by_sample(rows, samples)
    _, each, channels = parts.shape
    lowest = parts.min(axis=1)
    highest = parts.max(axis=1)
    folds = _folds_of(samples, first)
    total = np.zeros((FOLDS, 3, channels))
    counts, lows, highs = _by_statistic(total)
    lows[:] = np.inf
    highs[:] = -np.inf
    np.add.at(counts, folds, float(each))
    lowest = lowest.astype(np.float64)
    np.minimum.at(lows, folds, lowest)
    highest = highest.astype(np.float64)
    np.maximum.at(highs, folds, highest)
    return total


def _by_statistic(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """View of the counts, lows and highs of all folds: (FOLDS, 3, C) -> (3, FOLDS, C)."""
    return total.swapaxes(0, 1)


def take_extremes(total: NDArray[np.float64], part: NDArray[np.float64]) -> None:
    """Make `total` what it and `part` saw together."""
    counts, lows, highs = _by_statistic(total)
    more, lower, higher = _by_statistic(part)
    counts += more
    np.minimum(lows, lower, out=lows)
    np.maximum(highs, higher, out=highs)


def seen_folds(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Folds that have a sample; `total`: sums by fold, the first of which counts values."""
    counts = total[:, 0]
    return total[counts.any(axis=1)]
