"""Ratios of times with their intervals: scripted clocks, so that verdicts are exact."""

import math

import numpy as np
import pytest
from onnx_opt.passes._core.latency import LatencyRatio
from onnx_opt.runtime._statistics.median_interval import median_interval
from onnx_opt.runtime.paired import (
    BLOCK_MS,
    LOOKS,
    MAX_SECONDS,
    SAMPLES,
    ratio_of,
    timed_until_decided,
)

# the interval of the median


@pytest.mark.parametrize(
    ("count", "confidence", "rank"),
    [
        # tables of the sign test: David and Nagaraja, 7.1; Conover, Table A3
        (5, 0.95, None),
        (6, 0.95, 1),
        (8, 0.95, 1),
        (9, 0.95, 2),
        (10, 0.95, 2),
        (15, 0.95, 4),
        (20, 0.95, 6),
        (10, 0.99, 1),
        (20, 0.99, 4),
        (2, 0.4, 1),
    ],
)
def test_the_interval_is_of_order_statistics(count, confidence, rank):
    samples = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    expected = (-math.inf, math.inf)
    if rank is not None:
        expected = (float(rank), float(count + 1 - rank))
    assert median_interval(samples, confidence) == expected


def test_the_interval_covers_the_median_as_often_as_it_says():
    random = np.random.default_rng(1)
    # skewed and heavy-tailed, as times are; the median of exp(normal) is 1
    draws = np.exp(random.normal(size=(4000, 15)) * 2)
    covered = [
        low <= 1 <= high for low, high in (median_interval(d, 0.95) for d in draws)
    ]
    # exactly 1 - 2 * P(Bin(15, 1/2) <= 3) = 0.9648; five standard errors of 4000 draws are 0.0146
    assert abs(np.mean(covered) - 0.9648) < 0.0146


# the ratio


def test_the_ratio_is_of_pairs_and_rounds_of_one_block_are_one_sample():
    # rounds of 40 ms: three begin within each 100 ms, but for one
    first = np.full(12, 10.0)
    other = first * [2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6]
    ratio = ratio_of(first, other, np.full(12, 40.0), confidence=0.9)
    # blocks begin at 0, 120, 200, 320, 400 ms
    assert ratio == (2.0, 4.0, 6.0)


def test_a_slow_round_is_a_sample_of_its_own():
    first, other = np.ones(6), np.arange(1.0, 7)
    assert ratio_of(first, other, np.full(6, 3 * BLOCK_MS)) == (1.0, 3.5, 6.0)


def test_too_few_samples_tell_nothing():
    ratio = ratio_of(np.ones(3), np.full(3, 9.0), np.full(3, BLOCK_MS))
    assert ratio == (0.0, 9.0, math.inf)
    assert ratio.verdict() == "undecided"


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.04, 1.05, 1.06), "slower"),
        ((1.01, 1.02, 1.03), "not slower"),
        ((0.5, 0.6, 0.7), "not slower"),
        ((1.03, 1.05, 1.2), "undecided"),
        ((0.5, 2.0, 9.0), "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(ratio, verdict):
    assert LatencyRatio(*ratio).verdict() == verdict


# when it is enough


class Clock:
    """Rounds of two models by script: `ratios` in turn, one a round of `round_ms`."""

    def __init__(self, ratios, round_ms=BLOCK_MS):
        self.ratios, self.round_ms = ratios, round_ms
        self.asked, self.given = [], 0

    def __call__(self, seconds, least):
        self.asked.append(seconds)
        count = max(least, round(seconds * 1e3 / self.round_ms))
        turns = range(self.given, self.given + count)
        self.given += count
        ratios = np.array([self.ratios[turn % len(self.ratios)] for turn in turns])
        first = self.round_ms / (1 + ratios)
        return np.array([first, self.round_ms - first])


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([1.1], "slower"), ([0.7, 0.8, 0.9], "not slower"), ([1.0, 1.02], "not slower")],
)
def test_a_clear_answer_takes_one_look(ratios, verdict):
    clock = Clock(ratios)
    _, ratio = timed_until_decided(clock, limit=1.03)
    assert (ratio.verdict(1.03), clock.asked) == (verdict, [0.8])


def test_an_outlier_takes_another_look_and_is_outvoted():
    clock = Clock([1.1] * 7 + [0.2] + [1.1] * 8)
    rounds, ratio = timed_until_decided(clock, limit=1.03)
    assert (ratio.verdict(1.03), clock.asked) == ("slower", [0.8, 0.8])
    assert rounds.shape == (2, 2 * SAMPLES)


def test_a_busy_machine_stays_undecided_after_bounded_looks():
    clock = Clock([0.6, 1.7])
    _, ratio = timed_until_decided(clock, limit=1.03)
    assert ratio.verdict(1.03) == "undecided"
    assert ratio == pytest.approx((0.6, 1.15, 1.7))
    assert clock.asked == [0.8, 0.8, 1.6]
    assert len(clock.asked) == LOOKS


@pytest.mark.parametrize(
    ("ratios", "looks"),
    [
        # slower by the median: no better by a second look
        ([1.02, 1.05], 1),
        # a narrow interval about the limit
        ([1.02, 1.02, 1.04], 1),
        # wide, but it looks good so far
        ([0.9, 1.1], 3),
    ],
)
def test_where_a_doubt_counts_against_a_model_it_ends_early(ratios, looks):
    clock = Clock(ratios)
    _, ratio = timed_until_decided(clock, limit=1.03, doubt_is_slower=True)
    assert ratio.verdict(1.03) == "undecided"
    assert len(clock.asked) == looks
    clock = Clock(ratios)
    timed_until_decided(clock, limit=1.03)
    assert len(clock.asked) == LOOKS


def test_slow_models_get_one_look():
    clock = Clock([0.6, 1.7], round_ms=MAX_SECONDS * 1e3)
    rounds, _ = timed_until_decided(clock, limit=1.03)
    assert rounds.shape == (2, SAMPLES)


def test_equal_models_are_rarely_called_slower():
    """At most the 2.5 % that three looks at 1 - 0.05 / 3 leave for one side."""
    random = np.random.default_rng(2)
    wrong, count = 0, 300
    for _ in range(count):
        clock = Clock(np.exp(random.normal(0, 0.5, 32)) * 1.03)
        _, ratio = timed_until_decided(clock, limit=1.03)
        wrong += ratio.verdict(1.03) == "slower"
    # five standard errors above 2.5 %
    assert wrong / count < 0.025 + 5 * math.sqrt(0.025 * 0.975 / count)
