"""Outputs whose number of rows the data decides: counted alike, compared as far as both go."""

import math

import numpy as np
import pytest
from onnx_opt import CheckError
from onnx_opt.runtime.choices import ChoiceMeter
from onnx_opt.runtime.compare import DriftMeter
from onnx_opt.runtime.difference import largest_error, unlike
from onnx_opt.runtime.drift_words import ON_DATA, weak_output, word_of
from onnx_opt.runtime.rows import RowMatches, differ_in_rows

BOXES = np.array([[0, 0, 5], [0, 1, 7], [1, 0, 2], [1, 0, 2]])
SELECTED = np.stack([np.arange(100) // 25, np.zeros(100, int), np.arange(100)], axis=1)


def matched(*batches):
    matches = RowMatches()
    for reference, got in batches:
        matches.update(np.asarray(reference), np.asarray(got))
    return matches


def judged(*batches):
    """Drift of an output over all batches, its choices, and its word."""
    drifts = DriftMeter(by_rows=True)
    choices = ChoiceMeter()
    for reference, got in batches:
        drifts.update({"y": reference}, {"y": got})
        choices.update({"y": reference}, {"y": got})
    drift = drifts.per_output()["y"]
    made = choices.per_output()["y"]
    return drift, made, word_of(drift, made, ON_DATA)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ((2, 3), (2, 3), False),
        ((2, 3), (1, 3), True),
        ((2, 3), (2, 4), False),
        ((2,), (0,), True),
        ((), (), False),
        ((2,), (2, 1), False),
    ],
)
def test_only_the_first_axis_may_differ(first, second, differ):
    assert differ_in_rows(np.zeros(first), np.zeros(second)) is differ


@pytest.mark.parametrize(
    ("reference", "got", "rows", "common"),
    [
        (BOXES, BOXES, 4, 4),
        (BOXES, BOXES[::-1], 4, 4),
        (BOXES, BOXES[:3], 4, 3),
        # a row that is there twice counts twice
        (BOXES[2:3], BOXES[2:], 2, 1),
        (BOXES, BOXES + 1, 4, 0),
        (BOXES[:0], BOXES, 4, 0),
        (BOXES[:0], BOXES[:0], 0, 0),
        ([3, 4, 5], [4, 5], 3, 2),
        ([True, True, False], [True, False], 3, 2),
        (np.array(["a", "bc"], object), np.array(["bc"], object), 2, 1),
        (np.array([], object), np.array(["bc"], object), 1, 0),
        (7, 7, 1, 1),
    ],
)
def test_rows_in_common(reference, got, rows, common):
    matches = matched((reference, got))
    assert (matches.rows, matches.common) == (rows, common)


@pytest.mark.parametrize(
    ("batches", "is_unordered"),
    [
        # one batch with another number of rows tells of all
        ([(BOXES, BOXES), (BOXES, BOXES[:3])], True),
        ([(BOXES, BOXES[::-1])], True),
        # tokens and the like: some other values at their places
        ([([[1, 2], [3, 4]], [[1, 2], [3, 5]])], False),
        # labels of samples are no set
        ([([1, 2, 3], [3, 2, 1])], False),
        ([(BOXES, BOXES)], False),
    ],
)
def test_where_places_tell_nothing(batches, is_unordered):
    assert matched(*batches).is_unordered is is_unordered


@pytest.mark.parametrize("first_batch", [SELECTED[::-1], SELECTED])
def test_selections_are_judged_by_rows_in_common(first_batch):
    drift, made, word = judged((SELECTED, first_batch), (SELECTED, SELECTED[:98]))
    assert (made.rows, made.agreeing, made.agreement) == (200, 198, 0.99)
    assert drift.top1_agreement == 0.99
    assert drift.sqnr_db == pytest.approx(20)
    assert word == "close"


def test_a_selection_of_other_rows_is_worthless():
    _, made, word = judged((SELECTED, SELECTED[60:]))
    assert (made.agreement, word) == (0.4, "worthless")


def test_rows_that_moved_are_neither_lost_nor_identical():
    drift, _, word = judged((SELECTED, SELECTED[::-1]))
    assert word == "near-identical"
    assert math.isfinite(drift.sqnr_db)


def test_tables_of_values_are_judged_place_by_place_and_have_no_floor():
    tokens = np.arange(400).reshape(40, 10)
    got = tokens.copy()
    # none of the rows stays whole
    got[:, 0] += 1
    _, made, word = judged((tokens, got))
    assert (made.rows, made.agreeing, made.agreement) == (400, 360, None)
    assert word == "poor"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_are_compared_as_far_as_both_go_and_the_rest_is_lost(dtype):
    y = np.array([[3.0, 4.0], [0.0, 1.0]], dtype)
    fewer, _, _ = judged((y, y[:1]))
    assert fewer.sqnr_db == pytest.approx(10 * math.log10(26 / 1))
    more, _, _ = judged((y[:1], y))
    assert more.sqnr_db == pytest.approx(10 * math.log10(25 / 1))
    assert (fewer.top1_agreement, more.top1_agreement) == (0.5, 0.5)
    assert (fewer.nonfinite, fewer.max_abs) == (0, 1.0)


def test_a_row_that_is_gone_chooses_nothing_alike():
    scores = np.eye(20, dtype=np.float32)[np.arange(40) % 2]
    _, made, _ = judged((scores, scores[:30]))
    assert (made.rows, made.agreeing) == (40, 30)
    _, made, _ = judged((scores[:30], scores))
    assert (made.rows, made.agreeing) == (30, 30)


def test_other_axes_are_refused_and_the_fix_says_how_to_mend_it():
    with pytest.raises(
        CheckError, match=r"shape \[3, 5\] instead of \[3, 4\]"
    ) as error:
        judged((np.zeros((3, 4)), np.zeros((3, 5))))
    assert "transpose the output" in error.value.fix


def test_differences_of_models_count_rows_that_only_one_has():
    def error(reference, got):
        batches = [{"y": np.asarray(reference)}], [{"y": np.asarray(got)}]
        assert unlike(*batches) == ""
        return largest_error(*batches)

    assert error(SELECTED, SELECTED[1:]) == pytest.approx(0.01)
    assert error([3.0, 4.0], [3.0]) == pytest.approx(0.8)


def test_a_poor_output_of_integers_without_rows_is_named_by_its_sqnr():
    maps = np.ones((2, 3, 4), np.int64)
    drift, made, _ = judged((maps, maps * 2))
    assert weak_output({"y": drift}, {"y": made}, ON_DATA) == (
        "output 'y' keeps 0.0 dB of SQNR"
    )
