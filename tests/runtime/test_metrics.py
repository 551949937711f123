import numpy as np
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.runtime.feeds import Feeds, open_feeds
from onnx_opt.runtime.metrics import METRIC_NAMES, evaluate, metric_named
from onnx_opt.runtime.session import open_session

SCORES = np.array(
    [[3, 1, 2, 0, 0, 0, 0], [1, 5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 9]], np.float32
)


def score(name, outputs, labels):
    return metric_named(name)([[o] for o in outputs], labels)


def test_top1_and_top5():
    labels = np.array([0, 0, 5])
    assert score("top1", [SCORES], [labels]) == pytest.approx(1 / 3)
    assert score("top5", [SCORES], [labels]) == pytest.approx(
        2 / 3
    )  # ties go by index: class 5 is sixth
    assert score(
        "top1", [SCORES[:1], SCORES[1:]], [labels[:1], labels[1:]]
    ) == pytest.approx(1 / 3)


def test_top1_of_token_scores():
    assert score("top1", [SCORES[None]], [np.array([[0, 1, 6]])]) == 1.0


def test_spearman_shares_ranks_between_ties():
    assert score(
        "spearman", [np.array([1.0, 2, 3]), np.array([4.0])], [[1, 2, 3], [9]]
    ) == pytest.approx(1)
    assert score(
        "spearman", [np.array([[3.0], [2], [1]])], [[1, 2, 3]]
    ) == pytest.approx(-1)
    # ranks 1 2.5 2.5 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5
    assert score(
        "spearman", [np.array([1.0, 2, 2, 3])], [[1, 2, 3, 4]]
    ) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_perplexity_of_a_uniform_guess_is_the_number_of_classes():
    labels = np.array([[3, -100, 1]])
    assert score(
        "perplexity", [np.zeros((1, 3, 8), np.float32)], [labels]
    ) == pytest.approx(8)
    assert score(
        "perplexity", [np.full((1, 3, 8), 3e4, np.float32)], [labels]
    ) == pytest.approx(8)
    assert not metric_named("perplexity").higher_is_better


CODE = """
import numpy as np
def mean_gap(outputs, labels):
    assert isinstance(outputs, list) and isinstance(labels, list)
    return np.mean([abs(o[0] - l).mean() for o, l in zip(outputs, labels)])
def fails(outputs, labels):
    return outputs[0][7]
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mymetric.py"
    path.write_text(CODE)
    return path


def test_user_functions_get_two_lists(code):
    metric = metric_named(f"{code}:mean_gap")
    assert metric.name == f"{code}:mean_gap"
    assert (
        metric(iter([[np.ones(2)], [np.zeros(2)]]), iter([np.zeros(2), np.zeros(2)]))
        == 0.5
    )


def test_an_error_of_a_user_function_names_file_and_line(code):
    with pytest.raises(
        RefusedError, match=r"IndexError: list index out of range at .*mymetric\.py:7"
    ):
        metric_named(f"{code}:fails")([[np.ones(2)]], [np.zeros(2)])


def test_unknown_metrics_get_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'spearman'"):
        metric_named("speerman")
    with pytest.raises(UsageError, match="module:callable"):
        metric_named("accuracy")
    assert METRIC_NAMES == ("top1", "top5", "spearman", "perplexity", "generation")


@pytest.mark.parametrize(
    ("name", "output", "labels", "problem"),
    [
        ("top1", np.zeros(3, np.float32), [0, 1, 2], "class scores are (B, C)"),
        ("top1", np.zeros((3, 1), np.float32), [0, 0, 0], "class scores are (B, C)"),
        ("top1", SCORES, [0, 1], "the output needs integers [3]"),
        ("top1", SCORES, [0.5, 1, 2], "labels are float64"),
        ("top1", SCORES, [0, 1, 7], "label 7 is outside 0 … 6"),
        ("top1", SCORES, [0, 1, -100], "label -100 is outside"),
        ("perplexity", SCORES, [0, 1, 9], "label 9 is outside"),
        ("perplexity", SCORES, [-100] * 3, "nothing to score"),
        ("spearman", SCORES, [0, 1, 2], "shape [3, 7] for 3 labels"),
        ("spearman", SCORES, np.arange(21).reshape(3, 7), "shape [3, 7] for 21 labels"),
        ("spearman", np.ones(3), [0, 1, 2], "is undefined"),
    ],
)
def test_what_does_not_fit_a_metric(name, output, labels, problem):
    with pytest.raises(RefusedError) as error:
        score(name, [output], [labels])
    assert problem in error.value.problem


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_nothing_to_score(name):
    with pytest.raises(RefusedError, match="nothing to score"):
        score(name, [], [])


IDENTITY = """
<ir_version: 10, opset_import: ["" : 21]>
scores (float[N, 3] x) => (float[N, 3] y)
{ y = Identity (x) }
"""


def test_evaluate_runs_the_model_batch_by_batch(worker, write):
    session = open_session(worker, write(IDENTITY))
    data = {"x": np.eye(3, dtype=np.float32), "labels": np.array([0, 1, 0])}
    feeds, steps = open_feeds(data, session.inputs), []
    found = evaluate(session, feeds, metric_named("top1"), steps.append)
    assert found.value == pytest.approx(2 / 3)
    assert found.hits.tolist() == [True, True, False]
    assert found.classes == 3
    assert steps == [1]


TWO_OUTPUTS = """
<ir_version: 10, opset_import: ["" : 21]>
two (float[N, 3] x) => (int64[N] label, float[N, 3] scores)
{
    label = ArgMax <axis = 1, keepdims = 0> (x)
    scores = Identity (x)
}
"""


def test_an_output_is_chosen_by_name(worker, write):
    session = open_session(worker, write(TWO_OUTPUTS))
    data = {"x": np.eye(3, dtype=np.float32), "labels": np.array([0, 1, 0])}
    feeds = open_feeds(data, session.inputs)
    metric = metric_named("top1")
    # predicted labels are compared as they are
    assert evaluate(session, feeds, metric).hits.tolist() == [True, True, False]
    assert evaluate(session, feeds, metric).classes == 0
    by_scores = evaluate(session, feeds, metric, output="scores")
    assert by_scores.hits.tolist() == [True, True, False]
    assert by_scores.classes == 3
    with pytest.raises(UsageError, match="no output 'score'"):
        evaluate(session, feeds, metric, output="score")


def test_texts_as_predicted_labels():
    predicted = np.array(["cat", "dog"], object)
    assert score("top1", [predicted], [np.array(["cat", "cat"])]) == 0.5


def test_class_folders_in_an_order_of_their_own_are_refused(worker, write):
    session = open_session(worker, write(IDENTITY))
    batch = ({"x": np.eye(3, dtype=np.float32)}, np.array([0, 1, 1]))
    feeds = Feeds(lambda: [batch], session.inputs, "images", numbered=2)
    with pytest.raises(RefusedError, match="has 2 class folders, the model 3 classes"):
        evaluate(session, feeds, metric_named("top1"))


def test_a_function_is_a_metric():
    def share(outputs, labels):
        return sum(len(o[0]) for o in outputs) / len(labels)

    assert metric_named(share)([[SCORES]], [[0]]) == 3.0
    assert metric_named(share).name.endswith("share")


def test_labels_are_needed(worker, write):
    session = open_session(worker, write(IDENTITY))
    feeds = open_feeds({"x": np.eye(3, dtype=np.float32)}, session.inputs)
    with pytest.raises(RefusedError, match="batch 0: has no labels; top1 needs them"):
        evaluate(session, feeds, metric_named("top1"))
