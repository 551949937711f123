"""Moments of channels fold by fold: what they would have been on some of the samples, without
running again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 64
"""Parts of the data that are kept apart: enough to draw halves from, however many samples there
are.
"""


def samples_of(array: NDArray[Any], axis: int, samples: int | None) -> int:
    """How many equal runs of axis 0 are samples: as many as were fed, or 1 where the axis does not
    divide so.
    """
    count = len(array) if samples is None else samples
    return count if axis % array.ndim != 0 and count and len(array) % count == 0 else 1


def fold_sums(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Sums of 1, x, |x| and x^2 by fold, (FOLDS, 4, C); sample i counts to fold i mod FOLDS.

    rows: (R, C), sample by sample, the first of them being sample `first` of all.
    """
    parts = rows.reshape(samples, -1, rows.shape[-1])
    sums = np.stack(
        [
            np.full((samples, rows.shape[-1]), float(parts.shape[1])),
            parts.sum(axis=1, dtype=np.float64),
            np.abs(parts).sum(axis=1, dtype=np.float64),
            np.square(parts, dtype=np.float64).sum(axis=1),
        ],
        axis=1,
    )
    total = np.zeros((FOLDS, *sums.shape[1:]))
    np.add.at(total, (first + np.arange(samples)) % FOLDS, sums)
    return total


def fold_means(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of x, |x| and x^2 from summed sums, (folds, 3, C); folds without a sample are left
    out.
    """
    filled = total[total[:, 0, :].any(axis=1)]
    return filled[:, 1:] / filled[:, :1]


def fold_extremes(rows: NDArray[Any], samples: int, first: int) -> NDArray[np.float64]:
    """Count, lowest and highest x by fold, (FOLDS, 3, C), infinities where a fold has no sample.

    Arguments as of `fold_sums`.
    """
    parts = rows.reshape(samples, -1, rows.shape[-1])
    total = np.zeros((FOLDS, 3, rows.shape[-1]))
    total[:, 1], total[:, 2] = np.inf, -np.inf
    folds = (first + np.arange(samples)) % FOLDS
    np.add.at(total[:, 0], folds, float(parts.shape[1]))
    np.minimum.at(total[:, 1], folds, parts.min(axis=1).astype(np.float64))
    np.maximum.at(total[:, 2], folds, parts.max(axis=1).astype(np.float64))
    return total


def take_extremes(total: NDArray[np.float64], part: NDArray[np.float64]) -> None:
    """Make `total` what it and `part` saw together."""
    total[:, 0] += part[:, 0]
    np.minimum(total[:, 1], part[:, 1], out=total[:, 1])
    np.maximum(total[:, 2], part[:, 2], out=total[:, 2])


def seen_folds(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """The folds of `fold_extremes` that have a sample."""
    return total[total[:, 0].any(axis=1)]
