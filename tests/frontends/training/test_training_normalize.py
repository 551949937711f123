"""Normalizations put behind folded convolutions: they undo themselves, learn, and leave no trace in
the file.
"""

import numpy as np
import pytest
import torch
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.training.learner import Learner
from onnx_opt.frontends.training.normalize import normalized
from onnx_opt.frontends.training.statistics import with_batch_statistics
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from training_models import (
    Local,
    batches,
    model_of,
    outputs,
    pruned,
    relative_error,
    rows,
    serialized,
    trained,
    weights,
)

FOLDED = """
<ir_version: 10, opset_import: ["" : 21]>
cnn (float[n, 1, 6, 6] x) => (float[n, 4] y)
<float[8, 1, 3, 3] k, float[8] kb, float[8, 8, 3, 3] m, float[8] mb, float[8, 4] w, float[4] b>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, kb)
    r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, m, mb)
    s = Add (d, r)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    y = Gemm (f, w, b)
}
"""
ALL = ["k", "kb", "m", "mb", "w", "b"]
X = rows(64, (1, 6, 6))


def feeds(count):
    return ({"x": X[start : start + count]} for start in range(0, len(X), count))


def test_the_copy_computes_the_same_under_the_same_names():
    model = model_of(FOLDED)
    before = serialized(model)
    copy = normalized(model, ALL, feeds)
    assert serialized(model) == before
    assert (
        [n.op_type for n in copy.model.graph].count("BatchNormalization")
        == len(copy.layers)
        == 2
    )
    with (
        Local().runner(model, ["c", "d"]) as plain,
        Local().runner(copy.model, ["c", "d"]) as other,
    ):
        for name, value in plain({"x": X}).items():
            np.testing.assert_allclose(other({"x": X})[name], value, atol=1e-5)


def test_the_statistics_are_those_of_the_data():
    model = model_of(FOLDED)
    copy = normalized(model, ALL, feeds)
    with Local().runner(copy.model, ["c_plain"]) as run:
        value = run({"x": X})["c_plain"]
    for name, wanted in (
        ("k_mean", value.mean((0, 2, 3))),
        ("k_variance", value.var((0, 2, 3))),
    ):
        np.testing.assert_allclose(weights(copy.model)[name], wanted, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_channels_of_a_pruned_net_go_back_to_the_size_that_they_had(seed):
    original, student = model_of(FOLDED, seed), pruned(model_of(FOLDED, seed), 0.5)
    learner = Learner(
        student,
        ["y", "c", "d"],
        TrainingRecipe(preset="recover", statistics="batch"),
        data=feeds,
        teacher=original,
    )
    learner.recalibrate_batchnorm()
    with (
        Local().runner(original, ["c", "d"]) as run,
        Local().runner(student, ["c", "d"]) as lost,
    ):
        wanted, before = run({"x": X}), lost({"x": X})
    for name in ("c", "d"):
        own = learner.values({"x": X})[name]
        for moment in (np.mean, np.std):
            got, expected = (moment(value, (0, 2, 3)) for value in (own, wanted[name]))
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
        assert (np.abs(np.std(before[name], (0, 2, 3)) / expected - 1) > 0.01).any()


def test_an_original_of_other_widths_tells_nothing():
    wide = FOLDED.replace("[8", "[12").replace("8, 3, 3] m", "12, 3, 3] m")
    own = normalized(model_of(FOLDED), ALL, feeds)
    other = normalized(model_of(FOLDED), ALL, feeds, model_of(wide))
    for name, array in weights(own.model).items():
        np.testing.assert_array_equal(weights(other.model)[name], array)


def test_what_was_learned_folds_away():
    model = model_of(FOLDED)
    student = pruned(model, 0.5)
    learner = Learner(
        student, ["y"], TrainingRecipe(preset="recover", statistics="batch"), data=feeds
    )
    with torch.no_grad():
        for parameter in learner.runs.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter) * (parameter != 0))
    learned = learner.values({"x": X})["y"]
    zeros = {
        name: array == 0 for name, array in weights(student).items() if array.ndim == 4
    }
    kept = [node.op_type for node in student.graph]
    learner.put(learner.state(), student)
    np.testing.assert_allclose(outputs(student, X), learned, atol=2e-5)
    assert np.abs(learned - outputs(pruned(model, 0.5), X)).max() > 0.01
    assert [node.op_type for node in student.graph] == kept
    assert set(weights(student)) == set(ALL)
    for name, zero in zeros.items():
        np.testing.assert_array_equal(weights(student)[name] == 0, zero)


def test_a_folded_net_recovers_with_them():
    teacher = model_of(FOLDED)
    student = pruned(teacher, 0.6)
    zeros = {
        name: array == 0 for name, array in weights(student).items() if array.ndim > 1
    }
    fresh = rows(512, (1, 6, 6), seed=9)
    before = relative_error(student, teacher, fresh)
    result = trained(student, teacher, batches(rows(512, (1, 6, 6))), steps=150)
    assert result.weights == 6
    assert relative_error(student, teacher, fresh) < 0.5 * before
    for name, zero in zeros.items():
        np.testing.assert_array_equal(weights(student)[name] == 0, zero)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('opset_import: ["" : 21]', 'opset_import: ["" : 13]', None),
        ("(x, k, kb)", "(x, k)", ["m"]),
        ("(r, m, mb)", "(r, m, kb)", None),
        ("float[n, 1, 6, 6] x", "float[n, 1, 1, 1] x", None),
        ("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 8, 6, 6] d)", ["k"]),
        (
            "r = Relu (c)",
            "v = BatchNormalization (c, kb, kb, kb, kb)\n    r = Relu (v)",
            ["m"],
        ),
    ],
)
def test_which_convolutions_get_none(old, new, expected):
    model = model_of(FOLDED.replace(old, new))
    small = "1, 1, 1] x" in new
    copy = normalized(
        model, ALL, lambda count: [{"x": X[:, :, :1, :1]}] if small else feeds(count)
    )
    assert (
        None if copy is None else [layer.weight for layer in copy.layers]
    ) == expected


def test_weights_that_were_not_chosen_stay():
    student = model_of(FOLDED)
    before = weights(student)
    learner = Learner(
        student,
        ["y"],
        TrainingRecipe(preset="recover", statistics="batch", exclude=("m",)),
        data=feeds,
    )
    assert [layer.weight for layer in learner.normalized.layers] == ["k"]
    assert learner.weights == 5
    learner.put(learner.state(), student)
    np.testing.assert_array_equal(weights(student)["m"], before["m"])


def test_names_that_are_taken():
    text = FOLDED.replace("float[8] kb", "float[8] kb, float[4] k_gain").replace(
        "(f, w, b)", "(f, w, k_gain)"
    )
    copy = normalized(model_of(text), [*ALL, "k_gain"], feeds)
    assert copy.layers[0].gain == "k_gain_"


def test_settling_takes_the_mean_over_the_data():
    learner = Learner(
        model_of(FOLDED),
        ["y"],
        TrainingRecipe(preset="recover", statistics="batch"),
        data=feeds,
    )
    before = learner.state()
    with torch.no_grad():
        for parameter in learner.runs.parameters():
            if not parameter.requires_grad:
                parameter.fill_(3.0)
    learner.recalibrate_batchnorm()
    for name, tensor in learner.state().items():
        np.testing.assert_allclose(tensor, before[name], atol=1e-5)


def test_a_batch_gives_its_own_statistics():
    model = normalized(model_of(FOLDED), ALL, feeds).model
    by_batch = with_batch_statistics(model)
    names = [running.batch for running in by_batch.running[:2]]
    values = to_torch(by_batch.model, taps=[*names, "c_plain"]).run({"x": X[:16]})
    plain = values["c_plain"].detach().numpy()
    for name, wanted in zip(
        names, (plain.mean((0, 2, 3)), plain.var((0, 2, 3))), strict=True
    ):
        np.testing.assert_allclose(values[name].detach(), wanted, rtol=1e-4, atol=1e-6)
