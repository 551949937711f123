"""Intervals and chance levels of metrics on few labels."""

import numpy as np
import onnx
import onnx.parser
import onnx_opt
import pytest
from onnx_opt import CheckError, RefusedError, UsageError
from onnx_opt.runtime.metrics import MetricScore
from onnx_opt.tools._run.scoring import drop_interval, is_chance


def hits(right, rows):
    return np.arange(rows) < right


@pytest.mark.parametrize(
    ("right", "rows", "classes", "expected"),
    [
        # 0.016 among a thousand classes: labels that are numbered otherwise
        (1, 63, 1000, True),
        (3, 63, 1000, False),
        (0, 5, 10, True),
        (10, 20, 2, True),
        # a weak model on few labels is no guess
        (14, 20, 2, False),
        (5, 5, 2, False),
        (0, 0, 10, False),
        (0, 10, 0, False),
    ],
)
def test_a_guess_is_told_from_a_model(right, rows, classes, expected):
    value = right / rows if rows else 0.0
    assert is_chance(MetricScore(value, hits(right, rows), classes)) is expected


def test_scores_without_rows_are_no_guess():
    assert not is_chance(MetricScore(0.0))


@pytest.mark.parametrize(
    ("value", "expected"), [(7.9, False), (8.0, True), (2e6, True)]
)
def test_a_perplexity_of_the_number_of_tokens_is_a_guess(value, expected):
    assert is_chance(MetricScore(value, classes=8)) is expected


def test_the_interval_of_no_flips_says_what_few_labels_cannot_see():
    rows = hits(60, 63)
    low, high = drop_interval(rows, rows)
    # one flip in 65, and its standard error
    assert (low, high) == pytest.approx((-1.96 / 65, 1.96 / 65))


def test_the_interval_of_flips():
    before = hits(90, 100)
    after = hits(80, 100)
    low, high = drop_interval(before, after)
    # 10.5 lost and 0.5 won of 102 rows
    assert (low + high) / 2 == pytest.approx(10 / 102)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(11 - 100 / 102) / 102)


CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 21]>
classify (float[N, 8] x) => (float[N, 8] y)
<float[8, 8] w = {WEIGHTS}>
{
    y = MatMul (x, w)
}
"""


@pytest.fixture
def model(tmp_path):
    weights = ", ".join(str(float(value)) for value in np.eye(8).ravel())
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(CLASSIFIER.replace("WEIGHTS", weights)), path)
    return path


def labelled(rows, wrong=()):
    random = np.random.default_rng(0)
    feeds = random.standard_normal((rows, 8)).astype(np.float32)
    labels = feeds.argmax(axis=1)
    labels[list(wrong)] = (labels[list(wrong)] + 1) % 8
    return {"x": feeds, "labels": labels}


def run(model, data, **options):
    return onnx_opt.optimize(
        model, "prune(sparsity=0.1)", data=data, metric="top1", bench=False, **options
    )


def test_the_account_has_the_labels_and_the_interval(model):
    metric = run(model, labelled(40)).metric
    assert metric["name"] == "top1"
    assert metric["before"] == metric["after"] == 1.0
    assert metric["samples"] == 40
    assert metric["drop_95"] == pytest.approx([-1.96 / 42, 1.96 / 42])


def test_a_budget_that_labels_cannot_show_is_warned_of(model):
    warnings = run(model, labelled(40), max_drop=0.01).warnings
    [warning] = [text for text in warnings if text.startswith("--max-drop: ")]
    assert "40 labels cannot show a drop of 0.01" in warning


def test_a_model_that_guesses_is_refused_before_any_pass(model):
    data = labelled(40, wrong=range(40))
    with pytest.raises(
        RefusedError, match="is right for 0 of 40 labels, as a guess among 8"
    ):
        run(model, data)


def test_a_drop_beyond_the_budget_tells_its_interval(model):
    with pytest.raises(CheckError, match="95 % interval"):
        onnx_opt.optimize(
            model,
            "prune(sparsity=0.99)",
            data=labelled(64),
            metric="top1",
            max_drop=0.01,
            bench=False,
        )


def test_an_output_needs_a_metric(model):
    with pytest.raises(UsageError, match="--metric-output: needs a metric"):
        onnx_opt.optimize(model, "simplify", metric_output="y")


LABELLER = """
<ir_version: 10, opset_import: ["" : 21]>
label (float[N, 8] x) => (int64[N] y)
{
    y = ArgMax <axis = 1, keepdims = 0> (x)
}
"""


def test_labels_of_another_numbering_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(LABELLER), path)
    data = labelled(16)
    onnx_opt.optimize(path, "simplify", data=data, metric="top1", bench=False)
    others = {**data, "labels": data["labels"] + 100}
    with pytest.raises(RefusedError, match=r"labels are 10\d.*, predictions 0, 1"):
        onnx_opt.optimize(path, "simplify", data=others, metric="top1", bench=False)


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({"max_drop": 5}, "5 allows everything: top1 lies between 0 and 1"),
        ({"max_drop": "1%"}, "'1%' is no number"),
        ({"min_sqnr": "30"}, "'30' is no number"),
    ],
)
def test_budgets_that_nothing_can_miss(model, budget, problem):
    with pytest.raises(UsageError, match=problem):
        run(model, labelled(16), **budget)
