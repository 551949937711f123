"""One word for a drift, and what is worthless: by choices, by SQNR, with data and without."""

import dataclasses
import math

import pytest
from onnx_opt.runtime.choices import Choices
from onnx_opt.runtime.compare import Drift
from onnx_opt.runtime.drift_words import (
    ALL_WORDS,
    ON_DATA,
    ON_SYNTHETIC,
    Bounds,
    weak_output,
    word_of,
    worst,
)

NONE = Choices()


def drift(sqnr_db, max_abs=1.0, nonfinite=0):
    return Drift(
        sqnr_db=sqnr_db,
        cosine=0.9,
        max_abs=max_abs,
        max_rel=1.0,
        top1_agreement=None,
        nonfinite=nonfinite,
    )


def choices(agreeing, commonest=10, rows=100, is_label=False):
    return Choices(rows, agreeing, commonest, kinds=10, is_label=is_label)


@pytest.mark.parametrize(
    ("sqnr_db", "made", "word"),
    [
        (60.0, NONE, "near-identical"),
        (40.0, NONE, "near-identical"),
        (39.9, NONE, "close"),
        (19.9, NONE, "usable"),
        (9.6, NONE, "poor"),  # a text detector that still finds its lines
        (3.0, NONE, "poor"),
        (2.9, NONE, "worthless"),
        (-3.0, NONE, "worthless"),
        # choices decide where there are some
        (2.0, choices(60), "poor"),
        (13.0, choices(49), "worthless"),
        (13.0, choices(51), "usable"),
        # where one answer for everything would agree as often, they prove nothing
        (2.0, choices(90, commonest=80), "worthless"),
        # labels have no SQNR: the share of other ones counts as noise
        (-20.0, choices(100, is_label=True), "near-identical"),
        (-20.0, choices(99, is_label=True), "close"),
        (-20.0, choices(94, is_label=True), "usable"),
        (-20.0, choices(60, is_label=True), "poor"),
        (50.0, choices(49, is_label=True), "worthless"),
        # an original that gives only zeros says nothing of the result
        (-math.inf, NONE, "poor"),
    ],
)
def test_words(sqnr_db, made, word):
    assert word_of(drift(sqnr_db), made, ON_DATA) == word


def of_price(sqnr_db, variation_db, **facts):
    return dataclasses.replace(drift(sqnr_db, **facts), variation_db=variation_db)


@pytest.mark.parametrize(
    ("variation_db", "made", "bounds", "word"),
    [
        (math.nan, NONE, ON_DATA, "close"),
        (21.0, NONE, ON_DATA, "close"),
        (12.5, NONE, ON_DATA, "usable"),
        (8.0, NONE, ON_DATA, "poor"),
        # nothing is refused for what varies alone
        (0.5, NONE, ON_DATA, "poor"),
        # that a blank is nearly always chosen is what a text recognizer says
        (8.0, choices(95), ON_DATA, "close"),
        # one answer for everything is no choice
        (8.0, Choices(100, 100, 100, kinds=1), ON_DATA, "poor"),
        # made-up inputs vary in other ways
        (8.0, NONE, ON_SYNTHETIC, "close"),
    ],
)
def test_what_varies_between_samples_decides(variation_db, made, bounds, word):
    assert word_of(of_price(21.0, variation_db), made, bounds) == word


def test_the_weakest_output_is_named():
    drifts = {"a": drift(14.0), "b": of_price(21.0, 8.0), "c": of_price(15.0, 11.0)}
    none = dict.fromkeys(drifts, NONE)
    assert weak_output(drifts, none, ON_DATA) == (
        "output 'b' keeps 21.0 dB of SQNR, and 8.0 dB of what varies between samples"
    )
    assert weak_output({"a": drift(11.0)}, none, ON_DATA) == (
        "output 'a' keeps 11.0 dB of SQNR"
    )
    assert weak_output({"a": drift(14.0)}, none, ON_DATA) is None
    assert weak_output({}, {}, ON_DATA) is None
    labels = {"a": choices(60, is_label=True)}
    assert weak_output({"a": drift(-20.0)}, labels, ON_DATA) == (
        "output 'a' is the same for 60% of samples"
    )


def test_identical_is_without_any_difference():
    assert word_of(drift(math.inf, max_abs=0.0), NONE, ON_DATA) == "identical"


def test_values_that_are_lost_are_worthless():
    assert word_of(drift(-math.inf, nonfinite=3), NONE, ON_DATA) == "worthless"


def test_made_up_inputs_are_trusted_less():
    assert word_of(drift(1.4), NONE, ON_SYNTHETIC) == "poor"
    assert word_of(drift(0.9), NONE, ON_SYNTHETIC) == "worthless"
    # of a detector that finds nothing in them, errors too small to matter
    assert word_of(drift(-40.0, max_abs=1e-5), NONE, ON_SYNTHETIC) == "poor"
    assert word_of(drift(-40.0, max_abs=1e-5), NONE, ON_DATA) == "worthless"


def test_the_worst_output_decides():
    assert worst(ALL_WORDS) == "worthless"
    assert worst(["close", "identical"]) == "close"
    assert worst([]) is None


def test_a_missed_bound_names_the_output_and_both_figures():
    drifts = {"a": drift(30.0), "b": drift(1.25)}
    made = {"a": choices(20), "b": NONE}
    assert ON_DATA.problem(drifts, made) == (
        "output 'a' chooses the same for 20% of 100 rows, less than 50%"
    )
    only_sqnr = Bounds(agreement=0.0)
    assert only_sqnr.problem(drifts, made) == (
        "output 'b' keeps 1.2 dB of SQNR, less than 3"
    )
    assert Bounds(-math.inf, 0.0).problem(drifts, made) is None
