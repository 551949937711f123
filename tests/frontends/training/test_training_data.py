"""Rows collected, spilled, split and drawn; batches that do not come apart; changes to images;
scores.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_opt import RefusedError
from onnx_opt.frontends.training import data as data_module
from onnx_opt.frontends.training.augment import Augment
from onnx_opt.frontends.training.data import Example, Order, Samples, split, spread
from onnx_opt.frontends.training.heads import Head
from onnx_opt.frontends.training.score import Score, Scorer


def example(start, count, width=2, labels=True):
    x = np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(
        (1, width), np.float32
    )
    return Example(
        {"x": x}, np.arange(start, start + count) if labels else None, {"t": 10 * x}
    )


@pytest.mark.parametrize(
    ("whole", "rows", "expected"),
    [
        (False, 3, [0, 6, 11]),
        (False, 100, list(range(12))),
        (True, 8, [0, 2]),
        (True, 1, [0]),
    ],
)
def test_a_few_rows_are_of_all_the_data(tmp_path, whole, rows, expected):
    samples = Samples(whole, tmp_path)
    for start in (0, 4, 8):
        samples.add(example(start, 4))
    assert spread(np.arange(samples.units), rows, samples).tolist() == expected


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_rows_in_any_order_from_memory_and_from_files(limit, monkeypatch, tmp_path):
    monkeypatch.setattr(data_module, "MEMORY_BYTES", limit)
    samples = Samples(False, tmp_path)
    for start in (0, 4, 8):
        samples.add(example(start, 4))
    (taken,) = samples.take(np.array([9, 0, 5]), 8)
    assert taken.feeds["x"][:, 0].tolist() == [9, 0, 5]
    assert taken.targets["t"][:, 0].tolist() == [90, 0, 50]
    assert taken.labels.tolist() == [9, 0, 5]
    assert (samples.units, samples.rows, samples.ragged) == (12, 12, False)
    samples.close()


def test_rows_in_pieces():
    samples = Samples(False, None)
    samples.add(example(0, 9))
    for count, most, wanted in (
        (5, 2, [2, 2, 1]),
        (9, 8, [5, 4]),
        (8, 8, [8]),
        (0, 8, []),
    ):
        assert [piece.rows for piece in samples.take(np.arange(count), most)] == wanted


def test_a_batch_of_another_width_keeps_all_whole():
    samples = Samples(False, None)
    samples.add(example(0, 4))
    samples.add(example(4, 2))
    samples.add(example(6, 3, width=5))
    assert (samples.ragged, samples.units, samples.rows) == (True, 3, 9)
    first, last = samples.take(np.array([1, 2]), 1)
    assert first.feeds["x"][:, 0].tolist() == [4, 5]
    assert last.targets["t"].shape == (3, 5)


def test_one_batch_without_labels_takes_them_from_all():
    samples = Samples(False, None)
    samples.add(example(0, 4))
    samples.add(example(4, 4, labels=False))
    assert not samples.labelled
    assert samples.take(np.array([0]), 1)[0].labels is None


@given(
    rows=st.integers(16, 300), fraction=st.floats(0.01, 0.5), seed=st.integers(0, 99)
)
def test_rows_held_out_are_never_trained_on(rows, fraction, seed):
    samples = Samples(False, None)
    samples.add(example(0, rows))
    parts = split(samples, fraction, seed)
    assert sorted([*parts.train, *parts.held]) == list(range(rows))
    assert len(parts.held) >= 8


@pytest.mark.parametrize("rows", [1, 15])
def test_too_few_rows(rows):
    samples = Samples(False, None)
    samples.add(example(0, rows))
    with pytest.raises(RefusedError, match=f"holds {rows} samples: too few"):
        split(samples, 0.1, 0)


def test_one_batch_that_does_not_come_apart(tmp_path):
    samples = Samples(True, tmp_path)
    samples.add(example(0, 64))
    with pytest.raises(RefusedError, match="64 samples in 1 batch"):
        split(samples, 0.1, 0)


@given(units=st.integers(1, 60), each=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_epoch_sees_units_once(units, each, seed):
    order = Order(np.arange(units), each, seed)
    for epoch in range(2):
        seen = np.concatenate(
            [order.units(epoch * order.steps + step) for step in range(order.steps)]
        )
        assert len(set(seen.tolist())) == len(seen) > units - each


def test_the_order_is_a_function_of_seed_and_step():
    one, other = Order(np.arange(50), 8, 3), Order(np.arange(50), 8, 3)
    other.units(0)
    assert one.units(17).tolist() == other.units(17).tolist()
    assert one.units(17).tolist() != Order(np.arange(50), 8, 4).units(17).tolist()


IMAGES = Example(
    {"x": np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)}, np.array([0, 1])
)


def test_no_change_is_no_change():
    assert not Augment()


def test_flips_are_mirrors_or_nothing():
    images = IMAGES.feeds["x"]
    for seed in range(5):
        changed, _ = Augment(flip=True)(IMAGES, np.random.default_rng(seed))
        for new, old in zip(changed.feeds["x"], images, strict=True):
            assert (new == old).all() or (new == old[..., ::-1]).all()


def test_shifts_move_and_repeat_edges():
    image = IMAGES.feeds["x"][0, 0]
    seen = set()
    for seed in range(20):
        changed, _ = Augment(shift=1)(IMAGES, np.random.default_rng(seed))
        moved = changed.feeds["x"][0, 0]
        padded = np.pad(image, 1, mode="edge")
        found = [
            (r, c)
            for r in range(3)
            for c in range(3)
            if (padded[r : r + 4, c : c + 4] == moved).all()
        ]
        assert found
        seen.update(found)
    assert len(seen) > 4


def test_mixtures_know_their_partners():
    changed, partner = Augment(mixup=0.5)(IMAGES, np.random.default_rng(1))
    other, share = partner
    images = IMAGES.feeds["x"]
    np.testing.assert_allclose(
        changed.feeds["x"], share * images + (1 - share) * images[other], rtol=1e-6
    )


def test_pasted_rectangles_know_their_partners():
    images = np.stack([np.full((3, 6, 6), number, np.float32) for number in range(5)])
    example = Example({"x": images}, None, {})
    for seed in range(20):
        changed, partner = Augment(cutmix=1.0)(example, np.random.default_rng(seed))
        other, share = partner
        for number, image in enumerate(changed.feeds["x"]):
            own = image == number
            assert (own | (image == other[number])).all()
            if other[number] != number:
                assert own.mean() == pytest.approx(share)


HEAD = Head("y", "y", "y", "classes")
TEACHER = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]])


def score(own, watch="agreement", labels=None, head=HEAD):
    scorer = Scorer([head], watch)
    scorer.add({"y": own}, {"y": TEACHER}, labels)
    return scorer.score()


def test_agreement_counts_first_choices():
    own = TEACHER.copy()
    own[0] = [0, 0, 1]
    assert score(own).value == 0.75
    assert score(TEACHER) == Score(1.0, 0.0)


def test_right_labels_count_instead():
    assert score(TEACHER, "labels", np.array([0, 1, 0, -100])).value == pytest.approx(
        2 / 3
    )


VALUES = Head("y", "y", "y", "values")


def test_values_by_what_is_lost_of_what_varies():
    # errors 0.25 T^2 of columns whose variances are 1, 0.75 and 0.75
    assert score(0.5 * TEACHER, head=VALUES).value == pytest.approx(0.6)
    # a mean that is off counts, one that all samples have does not hide a loss
    assert score(TEACHER.mean(0) + 0 * TEACHER, head=VALUES).value == 0.0


def test_columns_of_other_units_count_alike():
    scales = np.array([1e-3, 1.0, 1e4])
    scorer = Scorer([VALUES], "agreement")
    own = TEACHER * scales
    own[:, 0] = own[:, 0].mean()
    scorer.add({"y": own}, {"y": TEACHER * scales}, None)
    # one of three columns says nothing any more
    assert scorer.score().value == pytest.approx(2 / 3)


def test_values_that_are_not_finite_are_worst():
    own = TEACHER.copy()
    own[0, 0] = np.nan
    assert not score(own, head=VALUES).finite


def test_what_is_not_finite_is_worst():
    own = TEACHER.copy()
    own[0, 0] = np.nan
    assert not score(own).finite
    assert score(own) < score(-TEACHER)


def test_equal_agreement_is_settled_by_the_distance():
    assert score(0.9 * TEACHER) > score(0.5 * TEACHER)
    assert score(0.9 * TEACHER).value == score(0.5 * TEACHER).value
