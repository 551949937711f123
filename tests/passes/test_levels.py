import math

import numpy as np
import pytest
from onnx_opt.passes._calibrated.levels import LEFT_OUT, expected_levels, largest, left_out, noise

LADDER = np.arange(1.0, 9.0)


def extremes(highest, lowest=None, values=1):
    """Moment `extremes` of folds (rows) that reach so far up, and as far down where `lowest` is not given."""
    high = np.asarray(highest, float).reshape(len(highest), -1)
    low = -high if lowest is None else np.asarray(lowest, float).reshape(high.shape)
    return np.stack([np.full_like(high, values), low, high], axis=1)


def many(*channels):
    """Folds of the given channels, beside five that climb LADDER."""
    return np.stack([*channels, *[LADDER] * 5], axis=1)


def test_largest_of_either_sign():
    np.testing.assert_array_equal(largest(extremes([[1, 2], [3, 1]], [[-5, 0], [0, 0]])), [5, 2])


@pytest.mark.parametrize("channel", [
    pytest.param(np.zeros(8), id="silent"),
    pytest.param(np.eye(8)[3] * 20, id="woken once"),
])
def test_nothing_is_known_of_channels_that_hardly_move(channel):
    levels = expected_levels(extremes(many(channel)))
    assert levels[0] == math.inf
    assert np.isfinite(levels[1:]).all()


def test_nothing_is_known_of_constant_channels_wherever_they_are():
    high, low = many(np.full(8, -0.06)), -many(np.full(8, 0.06))
    assert expected_levels(extremes(high, low))[0] == math.inf
    high[5, 0] = 20.0
    assert expected_levels(extremes(high, low))[0] == math.inf


def test_three_folds_establish_nothing():
    assert (expected_levels(extremes(many(LADDER)[:3])) == math.inf).all()


def test_a_level_is_the_largest_by_the_square_of_its_ratio_to_the_next():
    np.testing.assert_allclose(expected_levels(extremes(many(LADDER))), 8 * (8 / 7) ** 2)


def test_no_channel_is_steadier_than_the_median_one():
    flat = np.array([5.0, 5.1, 5.2, 5.2, 5.3, 5.3, 5.3, 5.3])
    assert expected_levels(extremes(many(flat)))[0] == pytest.approx(5.3 * (8 / 7) ** 2)


def test_a_channel_that_moves_in_fewer_than_a_quarter_of_the_folds_may_do_anything():
    rare = np.zeros(16)
    rare[:3] = 1, 2, 3
    ladders = np.stack([rare, *[np.tile(LADDER, 2)] * 5], axis=1)
    assert expected_levels(extremes(ladders))[0] == math.inf
    ladders[3, 0] = 1
    assert expected_levels(extremes(ladders))[0] == pytest.approx(3 * 1.5**2)


def test_levels_follow_a_scale_of_each_channel():
    folds, scales = np.abs(np.random.default_rng(0).standard_normal((16, 12))), 10.0 ** np.arange(12)
    np.testing.assert_allclose(expected_levels(extremes(folds * scales)), expected_levels(extremes(folds)) * scales,
                               rtol=1e-9)


def test_each_fold_is_left_out_once():
    seen = extremes(np.arange(LEFT_OUT + 2.0))
    parts = [(others[:, 2, 0].tolist(), held[:, 2, 0].tolist()) for others, held in left_out(seen)]
    assert [held for _, held in parts] == [[0, 8], [1, 9], [2], [3], [4], [5], [6], [7]]
    assert all(sorted(others + held) == list(range(LEFT_OUT + 2)) for others, held in parts)


def test_few_folds_are_left_out_one_by_one():
    assert [held[:, 2, 0].tolist() for _, held in left_out(extremes(np.arange(4.0)))] == [[0], [1], [2], [3]]


def test_noise_is_that_of_rounding_where_nothing_leaves_the_range():
    seen, other = extremes([[255.0, 1.0]], [[0.0, 0.0]]), extremes([[200.0, 0.5]], [[0.0, 0.0]])
    # steps of 1 (of a half with the first channel divided by 2): a twelfth of their squares, times the weights' energy
    assert noise(seen, other, np.ones(2), np.array([3.0, 9.0])) == pytest.approx(12 / 12)
    assert noise(seen, other, np.array([2.0, 1.0]), np.array([3.0, 9.0])) == pytest.approx(0.25 * (3 * 4 + 9) / 12)


def test_noise_counts_what_lies_beyond_the_range_once_a_fold():
    seen = extremes([[255.0], [1.0]], [[0.0], [0.0]])
    other = extremes([[257.0], [1.0]], [[-3.0], [0.0]], values=10)
    # of two folds with 10 values each, one is 2 too high and 3 too low
    assert noise(seen, other, np.ones(1), np.array([5.0])) == pytest.approx(5 / 12 + 5 * (4 + 9) / 10 / 2)
