"""`explain` from end to end: figures, exit codes, bad input."""

import json

import numpy as np
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from explain_models import (
    byte_sum,
    colour_bytes,
    embedding,
    linear,
    maps,
    maps_and_scores,
    pixels,
)
from onnx_opt import CheckError, RefusedError, UsageError
from onnx_opt.tools.cli import main

WEIGHTS = np.array([[5, 0], [-3, 0], [1, 0], [0, 0], [2, 0]])
ROWS = np.array([[1, 0, 1, 1, 1], [2, 1, 0, 0, 3], [3, 2, 2, 1, 0]], np.float32)


def explain(a, b, data, **options):
    return onnx_opt.explain(
        a.SerializeToString(), b.SerializeToString(), data, **options
    )


def saved(folder, name, model):
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("method", ["occlusion", "lime", "shap"])
def test_a_model_agrees_with_itself(method):
    model = linear(WEIGHTS)
    facts = explain(model, model, {"x": ROWS}, method=method, runs=64)
    assert facts.agreement == {"spearman": 1.0, "topk": 1.0}
    assert facts.samples == 3
    assert facts.same_class == 1
    assert [each["class"] for each in facts.by_sample] == [0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "options", "warned"),
    [
        (ROWS, {}, True),
        # told to be classes
        (ROWS, {"form": "class"}, False),
        (ROWS[:1], {}, False),
        (ROWS * [[1], [-1], [1]], {}, False),
    ],
)
def test_one_class_alone_may_be_none(rows, options, warned):
    model = linear(WEIGHTS)
    data = {"x": rows.astype(np.float32)}
    facts = explain(model, model, data, **options)
    told = [words for words in facts.warnings if "taken for scores" in words]
    assert len(told) == warned
    assert facts.output["form"] == "class"


def heat_of(facts, sample):
    (found,) = [each for each in facts["shown"] if each["sample"] == sample]
    return found["heat"]


@pytest.mark.parametrize("method", ["occlusion", "shap", "ig"])
def test_heat_is_the_weight_times_the_distance_from_the_mean(method):
    model = linear(WEIGHTS)
    facts = explain(model, model, {"x": ROWS}, method=method, runs=64)
    means = ROWS.mean(0)
    for index, row in enumerate(ROWS):
        wanted = WEIGHTS[:, 0] * (row - means)
        scaled = wanted / np.abs(wanted).max()
        found = np.array(heat_of(facts, index)["a"])
        assert found == pytest.approx(scaled, abs=2e-3)


@pytest.mark.parametrize("method", ["occlusion", "lime", "shap", "ig"])
def test_another_model_of_the_same_answers_agrees_less(method):
    """Both say class 0, one by the left half of a picture, one by the right."""
    left = np.zeros((16, 16))
    left[:, :8] = 1
    images = np.random.default_rng(0).random((2, 1, 16, 16)).astype(np.float32) + 1
    images[:, :, ::2] += 3
    facts = explain(
        pixels(left), pixels(left[:, ::-1]), {"x": images}, method=method, runs=128
    )
    assert facts.same_class == 1
    assert facts.agreement["spearman"] < 0.5
    assert facts.agreement["spearman"] < facts.noise_floor["spearman"]
    assert facts.share["spearman"] < 0.9


@pytest.mark.parametrize("method", ["occlusion", "lime", "shap", "ig"])
def test_bytes_with_their_colours_last_are_explained_as_pixels(method):
    """Heat is that of the same grey picture as floats, which has its colours first."""
    weights = np.random.default_rng(1).random((12, 12))
    grey = np.random.default_rng(2).integers(0, 256, (2, 12, 12)).astype(np.uint8)
    floats = grey[:, None].astype(np.float32)
    colours = np.repeat(grey[..., None], 3, axis=3)
    options = {"method": method, "runs": 64, "form": "class"}
    plain = pixels(weights)
    first = explain(plain, plain, {"x": floats}, **options)
    last = colour_bytes(weights)
    found = explain(last, last, {"x": colours}, **options)
    for index in range(2):
        wanted = np.array(heat_of(first, index)["a"])
        # the mean colour is rounded to bytes
        assert heat_of(found, index)["a"] == pytest.approx(wanted, abs=0.03)


def test_the_noise_floor_is_of_a_second_explanation():
    """It is below 1 by other patches, and depends on the seed."""
    weights = np.random.default_rng(1).random((24, 24))
    images = np.random.default_rng(2).random((2, 1, 24, 24)).astype(np.float32)
    floors = [
        explain(pixels(weights), pixels(weights), {"x": images}, seed=seed).noise_floor
        for seed in (0, 0, 3)
    ]
    assert floors[0] == floors[1] != floors[2]
    assert 0 < floors[0]["spearman"] < 1


def test_a_fixed_batch_gives_the_same_figures():
    weights = np.random.default_rng(1).random((8, 8))
    images = np.random.default_rng(2).random((4, 1, 8, 8)).astype(np.float32)
    found = [
        explain(pixels(weights, batch), pixels(weights, batch), {"x": images})
        for batch in ("n", 1, 2)
    ]
    assert found[0].by_sample == found[1].by_sample == found[2].by_sample


@pytest.mark.parametrize("method", ["occlusion", "shap", "ig"])
def test_tokens_under_a_mask(method):
    """Only the third token says anything; markers and padding have no part."""
    table = np.zeros((10, 3))
    table[5] = [9, 0, 0]
    ids = np.array([[1, 4, 5, 4, 2, 0], [1, 4, 4, 5, 4, 2]])
    mask = np.array([[1, 1, 1, 1, 1, 0], [1] * 6])
    model = embedding(table)
    data = {"input_ids": ids, "attention_mask": mask}
    facts = explain(model, model, data, method=method, form="class")
    assert heat_of(facts, 0)["a"] == [0, 0, 1, 0, 0]
    assert heat_of(facts, 1)["b"] == [0, 0, 0, 1, 0, 0]
    (shown,) = [each for each in facts["shown"] if each["sample"] == 0]
    assert shown["texts"] == [" 1", " 4", " 5", " 4", " 2"]


@pytest.mark.parametrize("method", ["occlusion", "lime", "shap"])
def test_a_sample_of_padding_alone_has_no_parts(method):
    """Bytes without a mask, padded with 0: the second row has nothing to take away."""
    table = np.zeros((10, 3))
    table[5] = [9, 0, 0]
    bytes_model = byte_sum(table)
    rows = np.array([[4, 5, 0, 0], [0, 0, 0, 0]])
    facts = explain(
        bytes_model, bytes_model, {"x": rows}, method=method, form="class", runs=16
    )
    assert facts.by_sample[1]["agreement"] == {"spearman": 1.0, "topk": 1.0}
    assert np.argmax(heat_of(facts, 0)["a"]) == 1


def test_embeddings_are_explained_by_the_cosine():
    model = linear(np.random.default_rng(0).standard_normal((6, 12)))
    rows = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    facts = explain(model, model, {"x": rows})
    assert facts.output == {"name": "y", "form": "embedding"}
    assert facts.by_sample[0]["score_a"] == pytest.approx(1)
    assert facts.by_sample[0]["class"] is None


def test_captum_agrees():
    pytest.importorskip("captum", reason="captum is not installed")
    weights = np.random.default_rng(1).random((8, 8))
    images = np.random.default_rng(2).random((2, 1, 8, 8)).astype(np.float32)
    both = [
        explain(
            pixels(weights), pixels(weights), {"x": images}, method="ig", engine=engine
        )
        for engine in ("own", "library")
    ]
    for index in range(2):
        own, theirs = (heat_of(facts, index)["a"] for facts in both)
        assert own == pytest.approx(theirs, abs=2e-3)


def test_captums_occlusion_agrees():
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    import torch

    weights = np.random.default_rng(1).random((16, 16)).astype(np.float32)
    images = np.random.default_rng(2).random((1, 1, 16, 16)).astype(np.float32)
    facts = explain(pixels(weights), pixels(weights), {"x": images})
    table = torch.as_tensor(weights)
    sums = captum.Occlusion(lambda x: (x * table).sum((1, 2, 3)))
    theirs = sums.attribute(
        torch.as_tensor(images),
        sliding_window_shapes=(1, 4, 4),
        strides=(1, 2, 2),
        baselines=float(images.mean()),
    )
    heat = theirs.numpy().ravel()
    found = np.array(heat_of(facts, 0)["a"])
    assert found == pytest.approx(heat / np.abs(heat).max(), abs=2e-3)


# the command


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, x=ROWS)
    a = saved(tmp_path, "a", linear(WEIGHTS))
    b = saved(tmp_path, "b", linear(-WEIGHTS))
    return a, b, data


def test_json_and_the_page(files, tmp_path):
    a, _, data = files
    page = tmp_path / "page.html"
    done = invoke("explain", a, a, "--data", data, "--json", "--report", page)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["agreement"] == {"spearman": 1.0, "topk": 1.0}
    assert set(facts["by_sample"][0]["noise_floor"]) == {"spearman", "topk"}
    assert page.read_text().startswith("<!doctype html>")
    account = tmp_path / "account.json"
    account.write_text(done.stdout)
    again = invoke("report", account, "--json")
    assert json.loads(again.stdout)["kind"] == "explain"


def test_too_little_agreement_is_exit_4_with_the_figures(files):
    a, b, data = files
    options = ("--data", data, "--min-agreement", "0.9")
    done = invoke("explain", a, b, *options, "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == facts["error"]["exit_code"] == CheckError.exit_code == 4
    assert facts["within"] is False
    assert "of the noise floor, below 0.9" in facts["error"]["problem"]
    assert invoke("explain", a, a, *options).exit_code == 0


def test_words_for_people(files):
    a, b, data = files
    done = invoke("explain", a, b, "--data", data)
    assert done.exit_code == 0
    assert "Spearman of all parts" in done.stdout
    assert (
        "3 samples by occlusion: input 'x' (columns), output 'y' (class)" in done.stdout
    )
    assert "the data has 3 samples; 16 were asked for" in done.stderr


def test_other_interfaces_are_refused(files, tmp_path):
    a, _, data = files
    other = saved(tmp_path, "other", pixels(np.ones((4, 4))))
    done = invoke("explain", a, other, "--data", data)
    assert done.exit_code == 3
    assert "error: other.onnx: its input 'x' is float32 of rank 4" in done.stderr


def test_an_output_without_classes_is_refused(tmp_path):
    model = saved(tmp_path, "maps", maps())
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((2, 1, 8, 8), np.float32))
    done = invoke("explain", model, model, "--data", data)
    assert done.exit_code == 3
    assert "error: output 'heat': has no classes" in done.stderr
    # there is no other one to choose
    assert "fix: explain a model that has scores of classes" in done.stderr


def test_outputs_that_may_be_chosen_instead_are_named():
    model = maps_and_scores()
    images = np.ones((2, 3, 8, 8), np.float32)
    with pytest.raises(RefusedError) as told:
        explain(model, model, {"x": images}, output="heat")
    assert told.value.fix == "choose another one by --output: scores float32 [1, 3]"


def test_data_without_samples_is_refused(files, tmp_path):
    a, b, _ = files
    empty = tmp_path / "empty.npz"
    np.savez(empty, x=ROWS[:0])
    done = invoke("explain", a, b, "--data", empty)
    assert done.exit_code == 3
    assert "Traceback" not in done.stderr


def test_a_folder_is_no_page(files, tmp_path):
    a, b, data = files
    done = invoke("explain", a, b, "--data", data, "--report", tmp_path)
    assert done.exit_code == 2
    assert "is a folder" in done.stderr


def test_occlusion_has_no_library(files):
    a, b, data = files
    with pytest.raises(UsageError, match="no library is used for occlusion"):
        onnx_opt.explain(a, b, data, engine="library")


def test_a_gradient_that_does_not_reach_the_input_is_refused():
    from explain_models import model
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    rounded = model(
        nodes,
        [("x", TensorProto.FLOAT, ["n", 5])],
        [("y", TensorProto.FLOAT, ["n", 2])],
        [("w", WEIGHTS.astype(np.float32))],
    )
    with pytest.raises(RefusedError, match="no gradient of output 'y' reaches it"):
        explain(rounded, rounded, {"x": ROWS}, method="ig")
    assert explain(rounded, rounded, {"x": ROWS}).agreement["spearman"] == 1
