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
    count = len(array) if samples is None else samples
    if count and len(array) % count == 0:
        return count
    return 1


def fold_sums(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Sums of 1, x, |x| and x^2 by fold: (R, C) -> (FOLDS, 4, C).

    `rows` lie sample by sample; the first is sample `first` of all that were seen. Sample i counts
    to fold i mod FOLDS.
    """
    channels = rows.shape[-1]
    parts = rows.reshape(samples, -1, channels)
    counts = np.full((samples, channels), float(parts.shape[1]))
    # in float64 throughout: means of equal values must leave a variance of zero
    values = parts.sum(axis=1, dtype=np.float64)
    magnitudes = np.abs(parts).sum(axis=1, dtype=np.float64)
    squares = np.square(parts, dtype=np.float64).sum(axis=1)
    sums = np.stack([counts, values, magnitudes, squares], axis=1)
    total = np.zeros((FOLDS, *sums.shape[1:]))
    # ufunc.at, as += with an index counts only the last of several samples in one fold
    np.add.at(total, _folds_of(samples, first), sums)
    return total


def _folds_of(samples: int, first: int) -> NDArray[np.int64]:
    """Fold of each of so many samples, from number `first` on."""
    numbers = first + np.arange(samples)
    return numbers % FOLDS


def fold_means(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of x, |x| and x^2 from `fold_sums`: (FOLDS, 4, C) -> (folds, 3, C).

    Folds without a sample are left out.
    """
    filled = seen_folds(total)
    return filled[:, 1:] / filled[:, :1]


def fold_extremes(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Count, lowest and highest x by fold: (R, C) -> (FOLDS, 3, C).

    Arguments as of `fold_sums`. Infinities where a fold has no sample.
    """
    channels = rows.shape[-1]
    parts = rows.reshape(samples, -1, channels)
    lowest = parts.min(axis=1)
    highest = parts.max(axis=1)
    total = np.zeros((FOLDS, 3, channels))
    total[:, 1] = np.inf
    total[:, 2] = -np.inf
    folds = _folds_of(samples, first)
    np.add.at(total[:, 0], folds, float(parts.shape[1]))
    np.minimum.at(total[:, 1], folds, lowest.astype(np.float64))
    np.maximum.at(total[:, 2], folds, highest.astype(np.float64))
    return total


def take_extremes(total: NDArray[np.float64], part: NDArray[np.float64]) -> None:
    """Make `total` what it and `part` saw together."""
    total[:, 0] += part[:, 0]
    np.minimum(total[:, 1], part[:, 1], out=total[:, 1])
    np.maximum(total[:, 2], part[:, 2], out=total[:, 2])


def seen_folds(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Folds that have a sample; `total`: sums by fold, the first of which counts values."""
    counts = total[:, 0]
    return total[counts.any(axis=1)]
