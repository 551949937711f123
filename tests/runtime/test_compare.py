import json
import math

import numpy as np
import pytest
from onnx_opt import CheckError
from onnx_opt.runtime.compare import Drift, DriftMeter


def drift(reference, got, name="y") -> Drift:
    meter = DriftMeter()
    meter.update({name: np.asarray(reference)}, {name: np.asarray(got)})
    return meter.per_output()[name]


def test_identical_outputs():
    y = np.array([[1.0, 2.0], [4.0, 3.0]], np.float32)
    assert drift(y, y) == Drift(math.inf, 1.0, 0.0, 0.0, 1.0, 0)
    assert drift(np.zeros(3), np.zeros(3)) == Drift(math.inf, 1.0, 0.0, 0.0, None, 0)


def test_figures_follow_their_definitions():
    d = drift(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]))
    assert d.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert d.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert (d.max_abs, d.max_rel, d.top1_agreement) == (0.5, 0.125, 1.0)


def test_top1_counts_rows():
    assert drift(
        [[1.0, 2], [3, 4], [6, 5]], [[1.0, 2], [4, 3], [6, 5]]
    ).top1_agreement == pytest.approx(2 / 3)
    assert drift([[1.0], [2.0]], [[1.0], [2.0]]).top1_agreement is None
    assert drift([[1, 2]], [[1, 2]]).top1_agreement is None


def test_streaming_equals_one_batch():
    random = np.random.default_rng(0)
    y, z = random.normal(size=(40, 5)), random.normal(size=(40, 5))
    meter = DriftMeter()
    for start in range(0, 40, 7):
        meter.update({"y": y[start : start + 7]}, {"y": z[start : start + 7]})
    once, parts = drift(y, z), meter.overall()
    assert parts.sqnr_db == pytest.approx(once.sqnr_db, abs=1e-9)
    assert parts.cosine == pytest.approx(once.cosine, abs=1e-12)
    assert (parts.max_abs, parts.top1_agreement) == (once.max_abs, once.top1_agreement)


def test_positions_lost_to_nan_are_counted():
    d = drift([1.0, 2.0, np.nan, np.inf], [1.0, np.nan, np.nan, np.inf])
    assert d.nonfinite == 1
    assert d.sqnr_db == -math.inf
    assert not d.identical


def test_infinities_must_agree():
    assert drift([np.inf, 1.0], [np.inf, 1.0]).identical
    for other in (-np.inf, 5.0, np.nan):
        assert drift([np.inf, 1.0], [other, 1.0]).max_abs == math.inf


def test_wrong_from_zero_has_no_positive_sqnr():
    d = drift([0.0, 0.0], [0.0, 1.0])
    assert (d.sqnr_db, d.cosine, d.max_abs, d.max_rel) == (-math.inf, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("reference", "got", "max_abs"),
    [
        (np.array([True, False]), np.array([True, True]), 1),
        (np.array([3, 9], np.int64), np.array([3, 5], np.int64), 4),
        (np.array([200], np.uint8), np.array([10], np.uint8), 190),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 1),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 0),
    ],
)
def test_other_types(reference, got, max_abs):
    assert drift(reference, got).max_abs == max_abs


def test_overall_takes_the_worst_and_adds_the_sums():
    meter = DriftMeter()
    meter.update(
        {"a": np.array([3.0]), "b": np.array([4.0])},
        {"a": np.array([3.0]), "b": np.array([4.5])},
    )
    assert list(meter.per_output()) == ["a", "b"]
    assert meter.overall().sqnr_db == pytest.approx(20.0)
    assert meter.overall().max_abs == 0.5


def test_shapes_are_not_broadcast():
    with pytest.raises(
        CheckError, match=r"output 'y': shape \[1, 2\] instead of \[2, 2\]"
    ):
        drift(np.zeros((2, 2)), np.zeros((1, 2)))


def test_outputs_must_be_the_same():
    with pytest.raises(CheckError, match="'b' instead of 'a'"):
        DriftMeter().update({"a": np.zeros(1)}, {"b": np.zeros(1)})


def test_json_has_no_infinity():
    text = json.dumps(drift([1.0], [1.0]).to_json(), allow_nan=False)
    assert json.loads(text)["sqnr_db"] is None
    assert json.loads(text)["identical"] is True
    assert (
        json.loads(json.dumps(drift([np.inf], [0.0]).to_json(), allow_nan=False))[
            "max_abs"
        ]
        is None
    )


def test_labels_are_judged_by_their_agreement_and_not_by_their_numbers():
    meter = DriftMeter()
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labels = np.array([1001, 1002, 1001, 1001])
    got = {"label": np.array([1001, 1001, 1001, 1001]), "scores": scores * 0.5}
    meter.update({"label": labels, "scores": scores}, got)
    overall = meter.overall()
    assert overall.sqnr_db == pytest.approx(10 * np.log10(4))
    # three of four labels, and four of four rows of scores
    assert overall.top1_agreement == 7 / 8
    assert overall.max_abs == 1.0
    assert meter.per_output()["label"].top1_agreement == 0.75


def test_labels_alone_that_differ_are_a_drift():
    meter = DriftMeter()
    scores = np.ones((2, 2))
    got = {"label": np.array([1, 2]), "scores": scores}
    meter.update({"label": np.array([1, 1]), "scores": scores}, got)
    assert not meter.overall().identical
    assert np.isfinite(meter.overall().sqnr_db)
