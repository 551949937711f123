import numpy as np
import pytest
from onnx_opt import RefusedError
from onnx_opt.runtime.feeds import Batch, Feeds
from onnx_opt.runtime.held_out import EVERY, FEWEST, SPAN, cut, halves, held_out
from onnx_opt.runtime.session import TensorInfo

OPEN = [TensorInfo("x", "float32", ("n", 2))]
FIXED = [TensorInfo("x", "float32", (2, 2))]


def numbered(first, rows):
    return np.repeat(
        np.arange(first, first + rows, dtype=np.float32)[:, None], 2, axis=1
    )


def feeds(rows, each=10, inputs=OPEN, labels=True):
    """Rows 0, 1, 2 … in batches of so many; a label is its row's number."""

    def batches():
        for first in range(0, rows, each):
            count = min(each, rows - first)
            yield (
                {"x": numbered(first, count)},
                np.arange(first, first + count) if labels else None,
            )

    return Feeds(batches, inputs, "data")


def numbers(batches):
    return [int(n) for batch in batches for n in batch.feeds["x"][:, 0]]


def test_too_few_samples_are_left_whole():
    assert held_out(feeds(FEWEST - 1)) is None


def test_every_eighth_row_judges_and_no_pass_sees_it():
    parts = held_out(feeds(FEWEST))
    assert numbers(parts.batches) == [7, 15, 23, 31]
    assert parts.samples == 4
    assert numbers(parts.others) == [n for n in range(FEWEST) if n % EVERY != EVERY - 1]
    assert numbers(parts.others) == numbers(
        parts.others
    )  # as often as they are iterated


def test_labels_stay_with_their_rows():
    for batch in held_out(feeds(50)).others:
        np.testing.assert_array_equal(batch.labels, batch.feeds["x"][:, 0])


def test_rows_of_one_shape_judge_together():
    assert [len(batch.feeds["x"]) for batch in held_out(feeds(80)).batches] == [10]


def test_batches_that_must_stay_whole_are_held_out_whole():
    parts = held_out(feeds(2 * FEWEST, each=2, inputs=FIXED))
    assert numbers(parts.batches) == [14, 15, 30, 31, 46, 47, 62, 63]
    assert parts.samples == 4
    assert [len(batch.feeds["x"]) for batch in parts.others] == [2] * (
        FEWEST - FEWEST // EVERY
    )


def test_batches_of_a_single_row_leave_none_behind():
    parts = held_out(feeds(FEWEST, each=1))
    assert len(list(parts.others)) == FEWEST - FEWEST // EVERY


def test_what_lies_behind_the_span_is_for_passes_alone():
    rows = SPAN + 100
    parts = held_out(feeds(rows))
    assert numbers(parts.batches) == list(range(EVERY - 1, SPAN, EVERY))
    assert numbers(parts.others)[-100:] == list(range(SPAN, rows))


def test_data_is_read_up_to_the_span_only():
    read = []

    def batches():
        for first in range(0, 100 * SPAN, 64):
            read.append(first)
            yield Batch({"x": numbered(first, 64)})

    held_out(Feeds(batches, OPEN, "data"))
    assert read == list(range(0, SPAN, 64))


def test_what_is_noted_of_the_data_is_noted_once():
    given = feeds(50)
    parts = held_out(given)
    parts.others.note("adapted")
    assert given.warnings == ["adapted"]


@pytest.mark.parametrize("rows", [1, 5, 31])
def test_a_few_samples_are_not_lost(rows):
    given = feeds(rows)
    assert held_out(given) is None
    assert numbers(given) == list(range(rows))


@pytest.mark.parametrize("each", [1, 3, 10])
def test_halves_share_out_neighbours_however_data_is_cut(each):
    first, second = (numbers(half) for half in halves(feeds(40, each), seed=3))
    assert sorted(first + second) == list(range(40))
    assert len(first) == len(second) == 20
    # of every two neighbours one is in either half, drawn anew for each pair
    assert {number // 2 for number in first} == set(range(20))
    assert first == numbers(halves(feeds(40), seed=3)[0])
    assert first != numbers(halves(feeds(40), seed=4)[0])
    assert len({number % 2 for number in first}) == 2


@pytest.mark.parametrize(("batches", "front"), [(2, 1), (3, 1), (4, 2), (7, 2), (8, 4)])
def test_a_cut_keeps_batches_whole_and_in_order(batches, front):
    data = feeds(10 * batches)
    first, second = cut(data, seed=0)
    assert numbers(first) == list(range(10 * front))
    assert numbers(second) == list(range(10 * front, 10 * batches))
    assert numbers(cut(data, seed=1)[0]) == numbers(second)


def test_one_batch_cannot_be_cut():
    with pytest.raises(RefusedError, match="is one batch"):
        cut(feeds(10), seed=0)
