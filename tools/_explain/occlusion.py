"""Occlusion: how much the number falls where a window of the input is taken away."""

from __future__ import annotations

import numpy as np

from .perturbed import Perturbed, Weights


def occlusion(case: Perturbed) -> Weights:
    """Mean fall of the number without each part, over the windows that cover it, (P,).

    Source: Zeiler and Fergus 2014 (arXiv:1311.2901).
    """
    windows = case.windows
    all_parts = np.ones((1, case.parts), bool)
    kept = np.concatenate([all_parts, ~windows])
    scores = case.scores(kept)
    whole = scores[0]
    without = scores[1:]
    falls = whole - without
    sums = falls @ windows
    covered = windows.sum(0)
    times = np.maximum(covered, 1)
    means = sums / times
    return np.asarray(means)
