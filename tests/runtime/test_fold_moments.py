import numpy as np
import pytest
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.runtime._statistics.fold_moments import FOLDS, samples_of
from onnx_opt.runtime.moments import MomentObserver


def observer(axis=-1):
    return MomentObserver(MomentRequest("x", "profile", axis))


def test_each_sample_is_a_fold_of_its_own_while_there_are_few():
    seen = observer(axis=1)
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    for part in (x[:2], x[2:]):
        seen.update(part)
    want = np.stack(
        [x.mean(2), np.abs(x).mean(2), np.square(x.astype(float)).mean(2)], axis=1
    )
    assert seen.value().shape == (5, 3, 3)
    np.testing.assert_allclose(
        seen.value(), want, rtol=1e-6, atol=1e-7
    )  # of sums of numbers around 1


def test_many_samples_share_folds_in_turn():
    seen = observer()
    x = np.arange(2 * FOLDS + 1, dtype=np.float32)[:, None]
    seen.update(x)
    got = seen.value()
    assert got.shape == (FOLDS, 3, 1)
    assert got[0, 0, 0] == pytest.approx((0 + FOLDS + 2 * FOLDS) / 3)
    assert got[1, 0, 0] == pytest.approx((1 + FOLDS + 1) / 2)


def test_constant_channels_have_no_variance_to_the_last_bit():
    seen = observer()
    seen.update(np.full((7, 2), 0.1, np.float32))
    means = seen.value().mean(0)
    np.testing.assert_allclose(means[2] - means[0] ** 2, 0, atol=1e-17)


def test_windows_of_one_sample_stay_in_its_fold():
    seen = observer()
    seen.update(np.array([[1], [3], [10], [20]], np.float32), samples=2)
    np.testing.assert_array_equal(seen.value()[:, 0, 0], [2, 15])


@pytest.mark.parametrize(
    ("shape", "axis", "fed", "count"),
    [
        ((4, 3), 1, None, 4),
        ((8, 3), 1, 4, 4),
        ((5, 3), 1, 4, 1),
        ((4, 3), 0, 4, 1),
        ((4, 3), -2, 4, 1),
    ],
)
def test_samples_lie_on_axis_0_or_are_not_told_apart(shape, axis, fed, count):
    assert samples_of(np.zeros(shape), axis, fed) == count


def test_shards_merge():
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    whole, first, second = observer(), observer(), observer()
    whole.update(x)
    first.update(x[:2])
    second.update(x[2:])
    first.merge(second)
    assert first.samples == whole.samples == 6
    total = (first.total.sum(0), whole.total.sum(0))
    np.testing.assert_allclose(total[0], total[1], rtol=1e-6)


def extremes_of(*parts, samples=None):
    seen = MomentObserver(MomentRequest("x", "extremes"))
    for part in parts:
        seen.update(np.asarray(part, np.float32), samples=samples)
    return seen


def test_extremes_of_each_sample_while_there_are_few():
    x = np.random.default_rng(2).normal(size=(5, 3, 4)).astype(np.float32)
    got = extremes_of(x[:2], x[2:]).value()
    np.testing.assert_array_equal(
        got, np.stack([np.full((5, 4), 3), x.min(axis=1), x.max(axis=1)], axis=1)
    )


def test_extremes_of_many_samples_share_folds_in_turn():
    got = extremes_of(np.arange(2 * FOLDS + 1)[:, None]).value()
    assert got.shape == (FOLDS, 3, 1)
    assert got[0, :, 0].tolist() == [3, 0, 2 * FOLDS]
    assert got[5, :, 0].tolist() == [2, 5, FOLDS + 5]


def test_extremes_of_shards_merge():
    x = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
    first, second = extremes_of(x[:4]), extremes_of(x[4:])
    first.merge(second)
    assert first.samples == 6
    got = first.value()  # shards count their samples from 0
    np.testing.assert_array_equal(got[:, 0], [[2] * 3] * 2 + [[1] * 3] * 2)
    np.testing.assert_array_equal(
        got[0, 1:], [x[[0, 4]].min(axis=0), x[[0, 4]].max(axis=0)]
    )
