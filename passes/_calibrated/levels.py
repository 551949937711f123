"""How far the channels of a value reach: on the samples that were seen, and on those that were not.

Shapes: `seen` (folds, 3, C), how many values each fold of the samples had, the lowest and the
highest x.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layers import Rows

ACTIVE = 1e-6
"""Share of a channel's largest |x| beyond which it moves away from where it mostly is: less is
float noise.
"""

RARE = 1e-5
"""Share of a channel's values that may lie beyond its level: clipping them costs about what
rounding to 8 bits does.
"""

TAIL = 4
"""One fold of so many belongs to the tail, by its largest value."""

ESTABLISHED = 2
"""Folds of the samples in which a channel has to move before its largest value says anything of the
next one's.
"""

POOLED = 32
"""Values of all channels below which they do not tell how heavy tails are."""

HEAVIEST = 0.5
"""Tail index where nothing tells a lighter one: heavier tails have no variance to measure them
by.
"""

FEWEST_FOLDS = 4
"""Folds below which no factors are chosen: each of so many has to be left out once."""

LEAST_KEPT = FEWEST_FOLDS - 1
"""Folds below which no level is established."""

LEFT_OUT = 8
"""Parts of the folds that are left out in turn, to see what happens on samples that factors were
not made from.
"""


def largest(seen: Rows) -> Rows:
    """max|x| of each channel: (C,)."""
    return np.asarray(np.maximum(seen[:, 2].max(axis=0), -seen[:, 1].min(axis=0)))


def expected_levels(seen: Rows) -> Rows:
    """|x| beyond which a share RARE of each channel's values lies, on other samples; infinite where
    too few tell: (C,).

    A channel that moved in fewer than two folds (silent, constant, woken once) may do anything. The
    others have a generalized Pareto tail with their own mean excess and one index for all; none is
    believed to reach less far beyond its largest value than the median channel does: few samples
    flatter some of many channels.

    Source: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, sections 4.2 and
    4.3; moments of the Pareto distribution after Hosking and Wallis, Technometrics 29 (1987),
    section 3.2.
    """
    highest, folds = largest(seen), len(seen)
    levels = np.full(highest.shape, np.inf)
    middle = np.median(seen[:, 1:].mean(axis=1), axis=0)
    moved = np.sort(np.maximum(seen[:, 2] - middle, middle - seen[:, 1]), axis=0)[::-1]
    active = (moved > ACTIVE * highest).sum(axis=0)
    known = active >= ESTABLISHED
    if folds < LEAST_KEPT or not known.any():
        return levels
    tail = np.minimum(np.clip(active, 1, max(folds // TAIL, 1)), folds - 1)
    threshold = np.take_along_axis(moved, tail[None], axis=0)[0]
    excess = (
        np.where(np.arange(folds)[:, None] < tail, moved - threshold, 0).sum(axis=0)
        / tail
    )
    rarer = np.maximum(tail / (RARE * seen[:, 0].sum(axis=0)), 1.0)
    reached = np.maximum(
        threshold + excess * _growth(tail_index(moved[:, known]), rarer), moved[0]
    )
    levels[known] = (np.abs(middle) + reached)[known]
    levels[known] = np.maximum(
        levels[known], highest[known] * np.median(levels[known] / highest[known])
    )
    return levels


def tail_index(moved: Rows) -> float:
    """Index of the generalized Pareto tail of all channels together, 0 (exponential) to HEAVIEST:
    (folds, C) -> one.

    Channels are made alike by their median fold; the tail is what lies beyond the upper quartile.
    """
    median = np.median(moved, axis=0)
    alike = moved[:, median > 0] / median[median > 0]
    if alike.size < POOLED:
        return HEAVIEST
    excess = (alike - np.quantile(alike, 1 - 1 / TAIL)).ravel()
    excess = excess[excess > 0]
    variance = float(excess.var(ddof=1)) if excess.size > 1 else 0.0
    return (
        float(np.clip((1 - excess.mean() ** 2 / variance) / 2, 0, HEAVIEST))
        if variance > 0
        else 0.0
    )


def _growth(index: float, rarer: Rows) -> Rows:
    """Mean excesses beyond its threshold where a Pareto tail is so many times rarer than at the
    threshold.
    """
    steps = np.log(rarer)
    return (
        steps
        if index < 1e-6
        else np.asarray((1 - index) * np.expm1(index * steps) / index)
    )


def left_out(seen: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(the other folds, the folds left out), part after part."""
    part = np.arange(len(seen)) % LEFT_OUT
    for index in range(min(LEFT_OUT, len(seen))):
        yield seen[part != index], seen[part == index]


def noise(seen: Rows, other: Rows, factors: Rows, energy: Rows) -> float:
    """Mean squared noise in what layers give, on `other` samples, of 8-bit steps over the range of
    those seen.

    Rounding, a twelfth of a step squared, and what lies beyond the range: of each fold and channel
    the extremes, once. Shapes: factors (C,), what channels are divided by; energy (C,), of the
    weights that multiply them.
    """
    scaled, divided = seen[:, 1:] / factors, other[:, 1:] / factors
    low, high = min(scaled[:, 0].min(), 0.0), max(scaled[:, 1].max(), 0.0)
    power = energy * factors**2
    rounding = ((high - low) / 255) ** 2 / 12 * power.sum()
    beyond = (
        np.maximum(divided[:, 1] - high, 0.0) ** 2
        + np.maximum(low - divided[:, 0], 0.0) ** 2
    )
    return float(
        rounding + (beyond * power / np.maximum(other[:, 0], 1.0)).sum(axis=1).mean()
    )
