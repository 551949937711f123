"""Scores that are computed once: found by content, and only where nothing else differs."""

import json
import os

import numpy as np
import onnx
import onnx.parser
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt.runtime.metrics import MetricScore
from onnx_opt.tools._evaluate import evaluated
from onnx_opt.tools._run import scoring
from onnx_opt.tools._run.cache import Cache, cache_folder
from onnx_opt.tools.cli import main

CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 21]>
classify (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
    y = MatMul (x, w)
}
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNX_OPT_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(CLASSIFIER), path)
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    write_data(path, wrong=4)
    return path


def write_data(path, wrong):
    feeds = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    labels = feeds.argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    np.savez(path, x=feeds, labels=labels)


@pytest.fixture
def scored(monkeypatch):
    """The values of the evaluations that were run."""
    values = []
    evaluate = scoring.evaluate

    def counting(*arguments, **options):
        found = evaluate(*arguments, **options)
        values.append(found.value)
        return found

    monkeypatch.setattr(scoring, "evaluate", counting)
    return values


def run(model, data, **options):
    return onnx_opt.optimize(
        model, "quant(fp16)", data=data, metric="top1", bench=False, **options
    )


def test_the_original_is_scored_once_over_two_runs(model, data, scored):
    first = run(model, data)
    # the original and the result
    assert len(scored) == 2
    assert "cached" not in first.metric
    second = run(model, data, seed=1)
    # the result is another file: its seed is written in it
    assert len(scored) == 3
    assert second.metric == {**first.metric, "cached": ["before"]}
    assert second.metric["before"] == 0.9


def test_the_same_run_again_scores_nothing(model, data, scored):
    first = run(model, data)
    again = run(model, data)
    assert len(scored) == 2
    assert again.metric == {**first.metric, "cached": ["before", "after"]}


def test_what_was_written_is_known_when_it_is_the_original(
    model, data, scored, tmp_path
):
    out = tmp_path / "out.onnx"
    first = run(model, data, out=out)
    following = run(out, data)
    assert len(scored) <= 3
    assert following.metric["before"] == first.metric["after"]
    assert "before" in following.metric["cached"]


def test_other_labels_are_scored_anew(model, data, scored):
    assert onnx_opt.evaluate(model, data, "top1") == 0.9
    write_data(data, wrong=2)
    assert onnx_opt.evaluate(model, data, "top1") == 0.95
    assert len(scored) == 2


def test_another_model_is_scored_anew(model, data, scored):
    assert onnx_opt.evaluate(model, data, "top1") == 0.9
    proto = onnx.load(model)
    # the classes in another order
    weights = np.eye(4, dtype=np.float32)[::-1]
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, model)
    assert onnx_opt.evaluate(model, data, "top1") < 0.9
    assert len(scored) == 2


def test_other_weights_beside_the_model_are_another_model(tmp_path, data, scored):
    path = tmp_path / "external.onnx"
    proto = onnx.parser.parse_model(CLASSIFIER)
    # only raw values go beside the model
    weights = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    proto.graph.initializer[0].CopyFrom(weights)
    onnx.save(
        proto, path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    assert onnx_opt.evaluate(path, data, "top1") == 0.9
    other = np.eye(4, dtype=np.float32)[::-1]
    (tmp_path / "w.data").write_bytes(other.tobytes())
    assert onnx_opt.evaluate(path, data, "top1") < 0.9
    assert len(scored) == 2


def test_models_between_passes_are_scored_each_time(model, data, scored):
    """Their weights are in no file that a key could name."""
    for _ in range(2):
        onnx_opt.optimize(
            model,
            "quant(fp16)",
            data=data,
            metric="top1",
            metric_each=True,
            bench=False,
        )
    # the original, the model after the pass, the result; then only the one after the pass
    assert len(scored) == 4


@pytest.mark.parametrize(
    "options", [{"metric": "top5"}, {"threads": 1}, {"metric_output": "y"}]
)
def test_another_way_of_scoring_is_another_score(model, data, scored, options):
    plain = {"metric": "top1"}
    onnx_opt.evaluate(model, data, **plain)
    onnx_opt.evaluate(model, data, **{**plain, **options})
    assert len(scored) == 2


def test_a_model_by_another_name_is_the_same(model, data, scored):
    onnx_opt.evaluate(model, data, "top1")
    renamed = model.rename(model.with_name("renamed.onnx"))
    assert onnx_opt.evaluate(renamed, data, "top1") == 0.9
    assert len(scored) == 1


@pytest.mark.parametrize("use", ["metric", "data"])
def test_code_of_the_user_is_never_cached(model, data, scored, empty_cache, use):
    def accuracy(outputs, labels):
        hits = [
            out[0].argmax(1) == truth
            for out, truth in zip(outputs, labels, strict=True)
        ]
        return np.concatenate(hits).mean()

    def batches():
        with np.load(data) as arrays:
            yield {"x": arrays["x"]}, arrays["labels"]

    for _ in range(2):
        if use == "metric":
            assert onnx_opt.evaluate(model, data, accuracy) == 0.9
        else:
            assert onnx_opt.evaluate(model, batches, "top1") == 0.9
    assert not empty_cache.exists()


def test_no_cache_computes_again(model, data, scored, empty_cache):
    for _ in range(2):
        assert onnx_opt.evaluate(model, data, "top1", cache=False) == 0.9
    assert len(scored) == 2
    assert not empty_cache.exists()


def test_the_command_line_says_that_it_is_from_the_cache(model, data, scored):
    command = ["eval", str(model), "--data", str(data), "--metric", "top1"]
    words = "from an earlier evaluation; --no-cache computes it again"
    first = CliRunner().invoke(main, command)
    again = CliRunner().invoke(main, command)
    anew = CliRunner().invoke(main, [*command, "--no-cache"])
    assert [words in each.stderr for each in (first, again, anew)] == [
        False,
        True,
        False,
    ]
    assert [each.stdout for each in (first, again, anew)] == ["top1 0.9\n"] * 3
    as_json = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert as_json["cached"] is True


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"value": "x"}', "[" * 100_000, "\ud800"],
)
def test_a_damaged_entry_is_replaced(model, data, scored, empty_cache, content):
    onnx_opt.evaluate(model, data, "top1")
    (entry,) = empty_cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(content.encode(errors="surrogatepass"))
    assert onnx_opt.evaluate(model, data, "top1") == 0.9
    assert len(scored) == 2
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    model, data, scored, empty_cache
):
    empty_cache.write_text("a file, where the folder should be")
    for _ in range(2):
        assert onnx_opt.evaluate(model, data, "top1") == 0.9
    assert len(scored) == 2


def test_the_entries_used_last_are_kept(tmp_path):
    cache = Cache(tmp_path, most=3)
    for index in range(3):
        cache.write(f"key{index}", {"index": index})
        # file systems may count in seconds
        os.utime(tmp_path / f"key{index}.json", (index, index))
    assert cache.read("key0") == {"index": 0}
    cache.write("key3", {"index": 3})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["key0.json", "key2.json", "key3.json"]


def test_the_environment_moves_the_cache(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ONNX_OPT_CACHE")
    assert cache_folder().name == "onnx-opt"


def test_a_score_comes_back_as_it_was(tmp_path, model, data):
    found = [
        evaluated(
            model,
            data,
            "top1",
            output=None,
            provider="cpu",
            threads=0,
            use_cache=True,
        ).score
        for _ in range(2)
    ]
    assert [score.is_cached for score in found] == [False, True]
    assert found[0].hits.tolist() == found[1].hits.tolist()
    parts = [(score.value, score.classes, score.strangers) for score in found]
    assert parts == [(0.9, 4, "")] * 2
    assert isinstance(found[1], MetricScore)


SIGNED = """
<ir_version: 10, opset_import: ["" : 21]>
classify (float[N, 4] x) => (float[N, 4] y)
{
    more = MatMul (x, w)
    less = MatMul (x, v)
    y = Sub (more, less)
}
"""


def test_weights_files_that_change_places_are_another_model(tmp_path, data, scored):
    # of one size: each file may stand in the place of the other
    one, nothing = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    for name, weights in (("a", (one, nothing)), ("b", (nothing, one))):
        proto = onnx.parser.parse_model(SIGNED)
        for value, array in zip("wv", weights, strict=True):
            tensor = onnx.numpy_helper.from_array(array, value)
            proto.graph.initializer.append(tensor)
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(
            proto,
            folder / "m.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=False,
            size_threshold=0,
        )
        onnx_opt.evaluate(folder / "m.onnx", data, "top1")
    assert len(scored) == 2
    assert scored[0] == 0.9 > scored[1]
