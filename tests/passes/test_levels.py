import math

import numpy as np
import pytest
from onnx_opt.passes._calibrated.levels import (
    HEAVIEST,
    LEFT_OUT,
    expected_levels,
    largest,
    left_out,
    noise,
    tail_index,
)

LADDER = np.arange(1.0, 9.0)  # uniform: the lightest of tails, index 0


def extremes(highest, lowest=None, values=1):
    """Moment `extremes` of folds (rows) that reach so far up, and as far down where `lowest` is not
    given.
    """
    high = np.asarray(highest, float).reshape(len(highest), -1)
    low = -high if lowest is None else np.asarray(lowest, float).reshape(high.shape)
    return np.stack([np.full_like(high, values), low, high], axis=1)


def many(*channels):
    """Folds of the given channels, beside five that climb LADDER."""
    return np.stack([*channels, *[LADDER] * 5], axis=1)


def test_largest_of_either_sign():
    np.testing.assert_array_equal(
        largest(extremes([[1, 2], [3, 1]], [[-5, 0], [0, 0]])), [5, 2]
    )


@pytest.mark.parametrize(
    "channel",
    [
        pytest.param(np.zeros(8), id="silent"),
        pytest.param(np.eye(8)[3] * 20, id="woken once"),
    ],
)
def test_nothing_is_known_of_channels_that_hardly_move(channel):
    levels = expected_levels(extremes(many(channel)))
    assert levels[0] == math.inf
    assert np.isfinite(levels[1:]).all()


def test_nothing_is_known_of_constant_channels_wherever_they_are():
    high, low = many(np.full(8, -0.06)), -many(np.full(8, 0.06))
    assert expected_levels(extremes(high, low))[0] == math.inf
    high[5, 0] = 20.0
    assert expected_levels(extremes(high, low))[0] == math.inf


def test_two_folds_establish_nothing():
    assert (expected_levels(extremes(many(LADDER)[:2])) == math.inf).all()


def test_light_tails_go_on_exponentially():
    # the tail is 2 of 8 folds: above 6, by 1.5 on average; 2 of 8 values are 25,000 times as many
    # as one in 100,000
    expected = 6 + 1.5 * math.log(2 / (1e-5 * 8))
    np.testing.assert_allclose(
        expected_levels(extremes(many(LADDER))), expected, rtol=1e-12
    )


def test_a_rarely_active_channel_has_the_tail_of_its_active_folds():
    rare = np.zeros(32)
    rare[[3, 11]] = 4.0
    ladders = np.stack([rare, *[np.tile(LADDER, 4)] * 5], axis=1)
    # mean excess over 0 in the two folds that are the tail
    assert expected_levels(extremes(ladders))[0] == pytest.approx(
        4 * math.log(2 / (1e-5 * 32))
    )


def test_no_channel_reaches_less_far_beyond_its_largest_value_than_the_median_one():
    flat = np.array([5.0, 5.1, 5.2, 5.2, 5.3, 5.3, 5.3, 5.3])
    levels = expected_levels(extremes(many(flat)))
    assert levels[0] / 5.3 == pytest.approx(levels[1] / 8.0)


def test_what_was_seen_often_is_no_longer_extrapolated():
    levels = expected_levels(extremes(many(LADDER), values=1_000_000))
    np.testing.assert_array_equal(levels, np.full(6, 8.0))


def test_levels_follow_a_scale_of_each_channel():
    folds, scales = (
        np.abs(np.random.default_rng(0).standard_normal((16, 12))),
        10.0 ** np.arange(12),
    )
    np.testing.assert_allclose(
        expected_levels(extremes(folds * scales)),
        expected_levels(extremes(folds)) * scales,
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("quantiles", "low", "high"),
    [
        pytest.param(lambda p: p, 0, 0, id="uniform"),
        pytest.param(lambda p: -np.log(1 - p), 0, 0.05, id="exponential"),
        pytest.param(lambda p: (1 - p) ** -0.25, 0.15, 0.3, id="Pareto, index 1/4"),
        pytest.param(lambda p: (1 - p) ** -1.0, 0.4, 0.5, id="Pareto, index 1"),
    ],
)
def test_index_of_known_tails(quantiles, low, high):
    steps = (np.arange(64 * 64) + 0.5) / (64 * 64)
    folds = np.random.default_rng(0).permutation(quantiles(steps)).reshape(64, 64)
    assert low <= tail_index(folds) <= high


def test_too_few_values_count_as_the_heaviest_tail():
    assert tail_index(np.ones((4, 7)) + np.eye(4, 7)) == HEAVIEST


def test_each_fold_is_left_out_once():
    seen = extremes(np.arange(LEFT_OUT + 2.0))
    parts = [
        (others[:, 2, 0].tolist(), held[:, 2, 0].tolist())
        for others, held in left_out(seen)
    ]
    assert [held for _, held in parts] == [[0, 8], [1, 9], [2], [3], [4], [5], [6], [7]]
    assert all(
        sorted(others + held) == list(range(LEFT_OUT + 2)) for others, held in parts
    )


def test_few_folds_are_left_out_one_by_one():
    assert [
        held[:, 2, 0].tolist() for _, held in left_out(extremes(np.arange(4.0)))
    ] == [[0], [1], [2], [3]]


def test_noise_is_that_of_rounding_where_nothing_leaves_the_range():
    seen, other = (
        extremes([[255.0, 1.0]], [[0.0, 0.0]]),
        extremes([[200.0, 0.5]], [[0.0, 0.0]]),
    )
    # steps of 1 (of a half with the first channel divided by 2): a twelfth of their squares, times
    # the weights' energy
    assert noise(seen, other, np.ones(2), np.array([3.0, 9.0])) == pytest.approx(
        12 / 12
    )
    assert noise(
        seen, other, np.array([2.0, 1.0]), np.array([3.0, 9.0])
    ) == pytest.approx(0.25 * (3 * 4 + 9) / 12)


def test_noise_counts_what_lies_beyond_the_range_once_a_fold():
    seen = extremes([[255.0], [1.0]], [[0.0], [0.0]])
    other = extremes([[257.0], [1.0]], [[-3.0], [0.0]], values=10)
    # of two folds with 10 values each, one is 2 too high and 3 too low
    assert noise(seen, other, np.ones(1), np.array([5.0])) == pytest.approx(
        5 / 12 + 5 * (4 + 9) / 10 / 2
    )
