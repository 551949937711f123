"""Kernel SHAP: Shapley values of the parts, by a weighted regression over coalitions."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import comb

from .perturbed import Kept, Perturbed, Weights


def shap(case: Perturbed) -> Weights:
    """Shapley values of the parts, (P,): they sum to the number less that of the baseline.

    All coalitions are run where there are no more than `runs`, which is exact; else they are drawn
    by the kernel's weights, each with its complement. Source: Lundberg and Lee 2017
    (arXiv:1705.07874); drawing in pairs: Covert and Lee 2021 (arXiv:2012.01536).
    """
    nothing = np.zeros(case.parts, bool)
    ends = np.array([nothing, ~nothing])
    baseline, whole = case.scores(ends)
    total = whole - baseline
    if case.parts == 1:
        return np.array([total])
    coalitions, weights = _coalitions(case)
    scores = case.scores(coalitions)
    gains = scores - baseline
    return constrained(coalitions, gains, weights, total)


def _coalitions(case: Perturbed) -> tuple[Kept, Weights]:
    """Coalitions, neither empty nor whole, and the weight of each."""
    if case.parts < 31 and 2**case.parts - 2 <= case.runs:
        return _all_coalitions(case.parts)
    return _drawn_coalitions(case)


def _all_coalitions(parts: int) -> tuple[Kept, Weights]:
    coins = (False, True)
    rows = list(itertools.product(coins, repeat=parts))
    # without the empty one and the whole
    kept = np.array(rows[1:-1])
    sizes = kept.sum(1)
    of_a_size = comb(parts, sizes)
    products = sizes * (parts - sizes)
    counted = of_a_size * products
    weights = (parts - 1) / counted
    return kept, np.asarray(weights)


def _drawn_coalitions(case: Perturbed) -> tuple[Kept, Weights]:
    """Coalitions by the kernel's probability of their sizes, each with its complement."""
    parts = case.parts
    sizes = np.arange(1, parts)
    others = parts - sizes
    weights = 1 / (sizes * others)
    chances = weights / weights.sum()
    half = case.runs // 2
    count = max(half, parts)
    random = case.random
    drawn = random.choice(sizes, count, p=chances)
    shape = (count, parts)
    places = random.random(shape)
    # so many of a coalition as was drawn, in a random order
    order = places.argsort(1)
    limits = drawn[:, None]
    kept = order < limits
    pairs = np.concatenate([kept, ~kept])
    equal = np.ones(len(pairs))
    return pairs, equal


def constrained(
    coalitions: Kept, gains: Weights, weights: Weights, total: float
) -> Weights:
    """Values of least weighted squares whose sum is `total`, (P,)."""
    table = coalitions.astype(np.float64)
    # the last value is what the others leave of the total
    last = table[:, -1]
    others = table[:, :-1]
    differences = others - last[:, None]
    wanted = gains - last * total
    scale = np.sqrt(weights)
    found, *_ = np.linalg.lstsq(
        differences * scale[:, None],
        wanted * scale,
        rcond=None,
    )
    rest = total - found.sum()
    return np.append(found, rest)
