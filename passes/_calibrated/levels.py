"""How far the channels of a value reach: on the samples that were seen, and on those that were not.

Shapes: `seen` (folds, 3, C), how many values each fold of the samples had, the lowest and the highest x.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layers import Rows

ACTIVE = 1e-6
"""Share of a channel's largest |x| beyond which it moves away from where it mostly is: less is float noise."""

ESTABLISHED = 0.25
"""Share of the folds in which a channel has to move before its largest value says anything of the next one's."""

FEWEST_FOLDS = 4
"""Folds below which nothing is said of channels: neither a largest nor a second largest value is established."""

LEFT_OUT = 8
"""Parts of the folds that are left out in turn, to see what happens on samples that factors were not made from."""


def largest(seen: Rows) -> Rows:
    """max|x| of each channel: (C,)."""
    return np.asarray(np.maximum(seen[:, 2].max(axis=0), -seen[:, 1].min(axis=0)))


def expected_levels(seen: Rows) -> Rows:
    """The |x| that each channel may reach on other samples; infinite where too few tell: (C,).

    A channel that hardly ever moved (silent, constant, woken once) may do anything. For the others
    the ratio of the two largest folds tells how heavy their tails are, squared to reach beyond as many samples again;
    no channel is believed to be steadier than the typical one, whose ratio is less of a coincidence.
    """
    highest = largest(seen)
    if len(seen) < FEWEST_FOLDS:
        return np.full(highest.shape, np.inf)
    middle = np.median(seen[:, 1:].mean(axis=1), axis=0)
    moved = np.sort(np.maximum(seen[:, 2] - middle, middle - seen[:, 1]), axis=0)[::-1]
    known = (moved > ACTIVE * highest).sum(axis=0) >= max(2, ESTABLISHED * len(seen))
    if not known.any():
        return np.full(highest.shape, np.inf)
    ratio = np.where(known, moved[0] / np.where(known, moved[1], 1.0), 1.0)
    ratio = np.maximum(ratio, np.median(ratio[known]))
    reach = np.maximum(np.abs(middle) + moved[0] * ratio**2, highest)
    return np.asarray(np.where(known, reach, np.inf))


def left_out(seen: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(the other folds, the folds left out), part after part."""
    part = np.arange(len(seen)) % LEFT_OUT
    for index in range(min(LEFT_OUT, len(seen))):
        yield seen[part != index], seen[part == index]


def noise(seen: Rows, other: Rows, factors: Rows, energy: Rows) -> float:
    """Mean squared noise in what layers give, on `other` samples, of 8-bit steps over the range of those seen.

    Rounding, a twelfth of a step squared, and what lies beyond the range: of each fold and channel the extremes, once.
    Shapes: factors (C,), what channels are divided by; energy (C,), of the weights that multiply them.
    """
    scaled, divided = seen[:, 1:] / factors, other[:, 1:] / factors
    low, high = min(scaled[:, 0].min(), 0.0), max(scaled[:, 1].max(), 0.0)
    power = energy * factors**2
    rounding = ((high - low) / 255) ** 2 / 12 * power.sum()
    beyond = np.maximum(divided[:, 1] - high, 0.0) ** 2 + np.maximum(low - divided[:, 0], 0.0) ** 2
    return float(rounding + (beyond * power / np.maximum(other[:, 0], 1.0)).sum(axis=1).mean())
