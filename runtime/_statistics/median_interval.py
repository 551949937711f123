"""Confidence interval of a median, whatever the distribution: no variance is estimated."""

from __future__ import annotations

from math import comb, inf

import numpy as np
from numpy.typing import NDArray


def median_interval(
    samples: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Interval that covers the median of what independent samples are of with that probability.

    `confidence`: 0-1. It reaches from the k-th smallest sample to the k-th largest, with the
    largest k that allows that; to infinity where the samples are too few for any.

    Source: the sign test turned round; David and Nagaraja, Order Statistics, 3rd ed. 2003, 7.1.
    """
    count = len(samples)
    ordered = np.sort(samples)
    # of (1 - confidence) / 2, the chance that fewer than k samples lie on one side
    outside = 0.0
    rank = 0
    while rank < count // 2:
        outside += comb(count, rank) / 2**count
        if outside > (1 - confidence) / 2:
            break
        rank += 1
    if not rank:
        return -inf, inf
    return float(ordered[rank - 1]), float(ordered[-rank])
