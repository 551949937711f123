"""Clear choices of outputs: which rows make one, and when their agreement says something."""

import numpy as np
import pytest
from onnx_opt.runtime.choices import FEWEST, ChoiceMeter

RNG = np.random.default_rng(5)


def choices(reference, got, batches=1):
    meter = ChoiceMeter()
    for y, z in zip(
        np.array_split(reference, batches), np.array_split(got, batches), strict=True
    ):
        meter.update({"y": y}, {"y": z})
    return meter.per_output()["y"]


def scores(classes, lead=4.0):
    """Rows whose largest value leads at the given place."""
    rows = RNG.uniform(0, 0.1, (len(classes), 10)).astype(np.float32)
    rows[np.arange(len(classes)), classes] = lead
    return rows


CLASSES = np.arange(40) % 10


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (RNG.standard_normal((64, 384)).astype(np.float32), "embeddings hardly lead"),
        (scores(CLASSES)[: FEWEST - 1], "too few rows"),
        (
            scores(CLASSES).reshape(1, 4, 10, 10),
            "a map has no classes on its last axis",
        ),
        (np.zeros((40, 10), np.float32), "nothing leads"),
        (np.arange(40), "numbers that do not recur are no labels"),
        (np.zeros((40, 4), np.int64), "positions, no label a row"),
        (RNG.standard_normal((40, 1)).astype(np.float32), "one value a row"),
    ],
)
def test_what_makes_no_choices_has_no_agreement(reference, why):
    assert choices(reference, reference).agreement is None, why


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_agreement_is_of_the_places_of_the_largest_values(batches, dtype):
    other = CLASSES.copy()
    other[:10] = (other[:10] + 1) % 10
    made = choices(scores(CLASSES).astype(dtype), scores(other).astype(dtype), batches)
    assert (made.rows, made.agreement, made.constant) == (40, 0.75, 0.1)
    assert not made.is_label


def test_tokens_of_a_sequence_are_rows():
    y = scores(CLASSES).reshape(4, 10, 10)
    assert choices(y, y).rows == 40


@pytest.mark.parametrize(
    "labels", [CLASSES, CLASSES[:, None], CLASSES.astype(str).astype(object)]
)
def test_labels_are_choices(labels):
    other = labels.copy()
    other[:4] = labels[5]
    made = choices(labels, other)
    assert (made.agreement, made.is_label) == (0.9, True)


def test_rows_without_a_clear_choice_do_not_count():
    y = scores(CLASSES)
    y[:4] = 1.0
    made = choices(y, y[::-1])
    assert (made.rows, made.others) == (36, 4)
