"""LIME: a linear model of the number around a sample, in which parts are there or not."""

from __future__ import annotations

import numpy as np

from .perturbed import Kept, Perturbed, Weights

WIDTH = 0.25
"""Width of the kernel of nearness, in cosine distance: that of the paper's code for images."""

RIDGE = 1.0
"""Weight of the squares of coefficients: that of the paper's code."""


def lime(case: Perturbed) -> Weights:
    """Coefficients of a ridge regression over drawn variants, near ones counting most, (P,).

    Source: Ribeiro et al. 2016 (arXiv:1602.04938).
    """
    kept = drawn_variants(case)
    return ridge(kept, case.scores(kept), nearness(kept))


def drawn_variants(case: Perturbed) -> Kept:
    """Variants that keep each part by a coin, the first of them all parts, (V, P)."""
    count = max(case.runs, 2)
    shape = (count, case.parts)
    coins = case.random.integers(0, 2, shape)
    kept = coins.astype(bool)
    kept[0] = True
    return kept


def nearness(kept: Kept) -> Weights:
    """Weight of each variant by its cosine distance from the whole sample, (V,)."""
    shares = kept.mean(1)
    distances = 1 - np.sqrt(shares)
    return kernel(distances)


def kernel(distances: Weights) -> Weights:
    """Weights that fall with the square of a distance."""
    squares = (distances / WIDTH) ** 2
    return np.asarray(np.exp(-squares / 2))


def ridge(kept: Kept, scores: Weights, weights: Weights) -> Weights:
    """Coefficients of a weighted ridge regression with a free constant, (P,)."""
    table = kept.astype(np.float64)
    mean = np.average(table, axis=0, weights=weights)
    level = np.average(scores, weights=weights)
    centred = table - mean
    column = weights[:, None]
    weighted = centred * column
    squares = weighted.T @ centred
    parts = table.shape[1]
    penalty = RIDGE * np.eye(parts)
    gains = scores - level
    products = weighted.T @ gains
    system = squares + penalty
    found = np.linalg.solve(system, products)
    return np.asarray(found)
