"""Levels that the channels of a value reach, on the samples that were seen and on others.

Shapes: `seen` (folds, 3, C), the count of values, the lowest and the highest x of each fold of the
samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layers import PerChannel, Rows

ACTIVE = 1e-6
"""Fraction of a channel's largest |x| beyond which it moves away from where it mostly is: less is
float noise.
"""

RARE = 1e-5
"""Fraction of a channel's values that may lie beyond its level: clipping them costs about what
rounding to 8 bits does.
"""

TAIL = 4
"""One fold of so many belongs to the tail, by its largest value: chosen by hand; not measured."""

ESTABLISHED = 2
"""Folds of the samples in which a channel has to move before its largest value says anything of the
next one's.
"""

POOLED = 32
"""Values of all channels below which they do not tell how heavy tails are: chosen by hand; not
measured.
"""

HEAVIEST = 0.5
"""Tail index where nothing tells a lighter one: heavier tails have no variance to measure them
by.
"""

EXPONENTIAL = 1e-6
"""Tail index below which a tail counts as exponential: the formula divides by the index."""

FEWEST_FOLDS = 4
"""Folds below which no factors are chosen: each of so many has to be left out once."""

LEAST_KEPT = FEWEST_FOLDS - 1
"""Folds below which no level is established."""

LEFT_OUT = 8
"""Parts of the folds that are left out in turn, to see what happens on samples that factors were
not made from: chosen by hand; not measured.
"""

STEPS = 255
"""Steps of an 8-bit range."""


def largest(seen: Rows) -> PerChannel:
    """max|x| of each channel: (C,)."""
    highs = seen[:, 2]
    lows = seen[:, 1]
    highest = highs.max(axis=0)
    lowest = lows.min(axis=0)
    either = np.maximum(highest, -lowest)
    return np.asarray(either)


def expected_levels(seen: Rows) -> PerChannel:
    """Levels |x| beyond which a fraction RARE of a channel's values lies, on other samples: (C,).

    Infinite where too few samples tell: a channel that moved in fewer than two folds (silent,
    constant, woken once) may do anything. The others have a generalized Pareto tail with their own
    mean excess and one index for all; none is believed to reach less far beyond its largest value
    than the median channel does: few samples flatter some of many channels.

    Source: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, sections 4.2 and
    4.3; moments of the Pareto distribution after Hosking and Wallis, Technometrics 29 (1987),
    section 3.2.
    """
    highest = largest(seen)
    folds = len(seen)
    levels = np.full(highest.shape, np.inf)
    middle, moved = _movements(seen)
    float_noise = ACTIVE * highest
    moves = moved > float_noise
    active = moves.sum(axis=0)
    known = active >= ESTABLISHED
    if folds < LEAST_KEPT or not known.any():
        return levels
    # peaks over a threshold: the threshold is the largest movement that is not in the tail
    longest = max(folds // TAIL, 1)
    tail = np.clip(active, 1, longest)
    tail = np.minimum(tail, folds - 1)
    positions = tail[None]
    thresholds = np.take_along_axis(moved, positions, axis=0)
    threshold = thresholds[0]
    ranks = np.arange(folds)
    in_tail = ranks[:, None] < tail
    distance = moved - threshold
    beyond = np.where(in_tail, distance, 0)
    excess = beyond.sum(axis=0) / tail
    counts = seen[:, 0]
    values = counts.sum(axis=0)
    wanted = RARE * values
    # the levels lie in the tail, never before it
    rarer = np.maximum(tail / wanted, 1.0)
    index = tail_index(moved[:, known])
    growth = _growth(index, rarer)
    past_threshold = excess * growth
    extrapolated = threshold + past_threshold
    # no level lies below what was seen, whatever the tail says
    reached = np.maximum(extrapolated, moved[0])
    own = np.abs(middle) + reached
    own = own[known]
    seen_highest = highest[known]
    stretch = np.median(own / seen_highest)
    usual = seen_highest * stretch
    levels[known] = np.maximum(own, usual)
    return levels


def _movements(seen: Rows) -> tuple[PerChannel, Rows]:
    """The place where each channel mostly is, and how far each fold moves it, the farthest first.

    Shapes: seen (folds, 3, C) -> (C,), (folds, C), every column sorted by itself.
    """
    extremes = seen[:, 1:]
    centres = extremes.mean(axis=1)
    middle = np.median(centres, axis=0)
    highs = seen[:, 2]
    lows = seen[:, 1]
    above = highs - middle
    below = middle - lows
    farthest = np.maximum(above, below)
    ascending = np.sort(farthest, axis=0)
    return middle, ascending[::-1]


def tail_index(moved: Rows) -> float:
    """Index of the generalized Pareto tail of all channels together: (folds, C) -> one number.

    From 0 (exponential) to HEAVIEST. Channels are made alike by their median fold; the tail is what
    lies beyond the upper quartile.
    """
    median = np.median(moved, axis=0)
    usable = median > 0
    # one index for all channels: alone each has too few folds in its tail
    alike = moved[:, usable] / median[usable]
    if alike.size < POOLED:
        return HEAVIEST
    below_tail = 1 - 1 / TAIL
    quartile = np.quantile(alike, below_tail)
    distance = (alike - quartile).ravel()
    excess = distance[distance > 0]
    variance = 0.0
    if excess.size > 1:
        variance = float(excess.var(ddof=1))
    if not variance > 0:
        return 0.0
    # the method of moments: mean^2 / variance of the excesses is 1 - 2 * index
    mean = excess.mean()
    ratio = mean**2 / variance
    index = (1 - ratio) / 2
    return float(np.clip(index, 0, HEAVIEST))


def _growth(index: float, rarer: PerChannel) -> PerChannel:
    """Distance beyond the threshold, in mean excesses, where a Pareto tail is so much rarer."""
    steps = np.log(rarer)
    if index < EXPONENTIAL:
        return np.asarray(steps)
    # the quantile of the distribution, in units of its mean excess
    raised = np.expm1(index * steps)
    growth = (1 - index) * raised / index
    return np.asarray(growth)


def left_out(seen: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(the other folds, the folds left out), part after part."""
    # every eighth fold, not neighbours: data may be in some order
    folds = len(seen)
    numbers = np.arange(folds)
    part = numbers % LEFT_OUT
    parts = min(LEFT_OUT, folds)
    for index in range(parts):
        held = part == index
        yield seen[~held], seen[held]


def noise(
    seen: Rows,
    other: Rows,
    factors: PerChannel,
    energy: PerChannel,
) -> float:
    """Mean squared noise in what layers give on `other` samples, of 8-bit steps over those `seen`.

    Rounding, a twelfth of a step squared, and what lies beyond the range: of each fold and channel
    the extremes, once. Shapes: factors (C,), what channels are divided by; energy (C,), of the
    weights that multiply them.
    """
    scaled = seen[:, 1:] / factors
    divided = other[:, 1:] / factors
    lows = scaled[:, 0]
    highs = scaled[:, 1]
    # quantized ranges always hold zero
    low = min(lows.min(), 0.0)
    high = max(highs.max(), 0.0)
    # dividing channels by the factors multiplies their weights by them
    power = energy * factors**2
    width = high - low
    step = width / STEPS
    variance = step**2 / 12
    rounding = variance * power.sum()
    other_lowest = divided[:, 0]
    other_highest = divided[:, 1]
    above = np.maximum(other_highest - high, 0.0)
    below = np.maximum(low - other_lowest, 0.0)
    beyond = above**2 + below**2
    counts = other[:, 0]
    values = np.maximum(counts, 1.0)
    # one value of each fold and channel lies there: its share of all is 1 / count
    by_channel = beyond * power / values
    by_fold = by_channel.sum(axis=1)
    clipping = by_fold.mean()
    return float(rounding + clipping)
