"""Ratio of two models' times, with its confidence interval, and when it has been timed enough.

Rounds that follow each other are alike: what slows a machine does so for a while. So the rounds of
a tenth of a second count as one sample, their median; the interval is that of those samples.

Source: non-overlapping batches, Schmeiser, Batch Size Effects in the Analysis of Simulation Output,
1982; order statistics, see `median_interval`; several looks share the error, after Bonferroni.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..passes._core.latency import LatencyRatio
from ._statistics.median_interval import median_interval

CONFIDENCE = 0.95
"""Probability with which an interval covers the ratio."""

BLOCK_MS = 100.0
"""Time of the rounds that make one sample (ms).

Under load, rounds within 20 ms agreed on ratios of 3 to 5 for one model timed against itself.
"""

SAMPLES = 8
"""Samples of the first look (count): fewer have no interval at the confidence of a look."""

LOOKS = 3
"""Looks at the most (count); each takes as long as all before it."""

NARROW = 0.03
"""Width of an interval that is near the limit where it lies on both sides of it: what is gained or
lost there is less than the limit itself allows. Chosen by hand: with it the 17 timings of a BERT of
two blocks take 28 to 34 s instead of 52.
"""

MAX_SECONDS = 4.0
"""Time after which no further look is taken. Chosen by hand; not measured."""

Rounds = NDArray[np.float64]
"""Times in ms, (models, rounds)."""


def ratio_of(
    first: NDArray[np.float64],
    other: NDArray[np.float64],
    round_ms: NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> LatencyRatio:
    """Median of other / first over paired runs, with its interval.

    `first`, `other`: times (rounds,). `round_ms`: time of each round with all its models (rounds,),
    in ms.
    """
    ratios = other / first
    samples = _samples(ratios, round_ms)
    low, high = median_interval(samples, confidence)
    # too few samples have an interval without bounds; no ratio lies below zero
    low = max(low, 0.0)
    median = float(np.median(samples))
    return LatencyRatio(low, median, high)


def _samples(
    ratios: NDArray[np.float64], round_ms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Medians of the rounds that began in the same block of time."""
    ends = np.cumsum(round_ms)
    begins = ends - round_ms
    blocks = begins // BLOCK_MS
    blocks = blocks.astype(np.int64)
    # the block before the first is -1, so that the first round starts one too
    steps = np.diff(blocks, prepend=-1)
    starts = np.flatnonzero(steps)
    # np.split takes the places between parts
    between = starts[1:]
    parts = np.split(ratios, between)
    medians = [np.median(part) for part in parts]
    return np.array(medians)


def timed_until_decided(
    time_rounds: Callable[[float, int], Rounds],
    limit: float,
    doubt_is_slower: bool = False,
) -> tuple[Rounds, LatencyRatio]:
    """Time two models until it is decided on which side of `limit` their ratio lies.

    It ends undecided after a few looks; with `doubt_is_slower`, where undecided counts as slower,
    as soon as it does not look any better.

    `time_rounds(seconds, least)`: times in turns, (2, rounds), of at least so many rounds.
    """
    seconds = SAMPLES * BLOCK_MS / 1e3
    rounds = time_rounds(seconds, SAMPLES)
    # each look may err: they share what one would be allowed
    error_of_look = (1 - CONFIDENCE) / LOOKS
    confidence = 1 - error_of_look
    most_ms = MAX_SECONDS * 1e3
    for look in range(LOOKS):
        round_ms = rounds.sum(axis=0)
        ratio = ratio_of(
            rounds[0],
            rounds[1],
            round_ms,
            confidence,
        )
        if ratio.verdict(limit) != "undecided":
            break
        is_narrow = ratio.high - ratio.low < NARROW
        if doubt_is_slower and (is_narrow or ratio.median > limit):
            break
        is_last = look == LOOKS - 1
        if is_last or round_ms.sum() > most_ms:
            break
        more = time_rounds(seconds, SAMPLES)
        seconds *= 2
        rounds = np.concatenate([rounds, more], axis=1)
    return rounds, ratio
