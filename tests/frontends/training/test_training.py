"""Training from end to end on small nets: it recovers, holds what it must, refuses what it
should.
"""

import contextlib
import sys
import textwrap
import types

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_opt import CheckError, RefusedError, UsageError
from onnx_opt.frontends.training import loop as loop_module
from onnx_opt.frontends.training.initialize import initialize
from onnx_opt.frontends.training.synthesize import synthesize
from training_models import (
    CNN,
    MLP,
    NARROW,
    NOTHING,
    ROUNDED,
    SOFTMAX,
    VALUES,
    Local,
    agreement,
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

FRESH = rows(512, seed=9)


@pytest.mark.parametrize("text", [MLP, SOFTMAX])
def test_a_pruned_net_agrees_again_without_labels(text):
    teacher = model_of(text)
    student = pruned(teacher, 0.6)
    before, zeros = (
        agreement(student, teacher, FRESH),
        {n: w == 0 for n, w in weights(student).items()},
    )
    result = trained(student, teacher, batches(rows()), steps=150)
    assert result.weights == 4
    assert agreement(student, teacher, FRESH) > before + 0.05
    assert result.stats["after"] > result.stats["before"]
    for name, now in weights(student).items():
        if now.ndim > 1:
            np.testing.assert_array_equal(now == 0, zeros[name])


def test_values_that_are_no_classes():
    teacher = model_of(VALUES)
    student = pruned(teacher, 0.5)
    before = relative_error(student, teacher, FRESH)
    trained(student, teacher, batches(rows()), steps=150)
    assert relative_error(student, teacher, FRESH) < 0.5 * before


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "dist"},
        {"loss": "dkd"},
        {"loss": "mse"},
        {"loss": "cosine"},
        {"optimizer": "sgd", "rate": 0.05},
        {"features": ("r",)},
        {"features": ("h=h",), "feature_loss": "relation"},
        {"accumulate": 2, "batch": 16},
        {"scales": "all"},
        {"temperature": 4.0, "logit_mse": 0.0},
        {"epochs": 20.0, "steps": 0},
    ],
)
def test_every_way_to_train_gets_nearer(options):
    teacher = model_of(MLP)
    student = pruned(teacher, 0.6)
    before = agreement(student, teacher, FRESH)
    assert (
        trained(student, teacher, batches(rows()), **{"steps": 150, **options}).weights
        == 4
    )
    assert agreement(student, teacher, FRESH) > before


def test_a_student_that_is_its_teacher_stays_as_it_is():
    teacher = model_of(MLP)
    student = teacher.clone()
    before = serialized(student)
    result = trained(student, teacher, batches(rows()), rate=1e-6, steps=5)
    assert (result.weights, serialized(student)) == (0, before)
    assert "no" in result.reason
    assert (
        "better" in result.reason
    )  # said by the loop or, where rounding looks like a gain, by ONNX Runtime


def test_a_rate_that_ruins_it_leaves_it_as_it_was():
    teacher = model_of(MLP)
    student = pruned(teacher, 0.2)
    before = serialized(student)
    result = trained(
        student, teacher, batches(rows()), rate=30.0, clip=0.0, steps=20, warmup=0.0
    )
    assert (result.weights, serialized(student)) == (0, before)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    teacher = model_of(MLP)
    made = []
    for seed in (3, 3, 4):
        student = pruned(teacher, 0.6)
        trained(student, teacher, batches(rows()), seed=seed)
        made.append(serialized(student))
    assert made[0] == made[1] != made[2]


def test_training_leaves_the_random_state_of_the_caller():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    teacher = model_of(MLP)
    trained(pruned(teacher, 0.5), teacher, batches(rows()), steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_labels_teach_what_the_teacher_does_not():
    teacher, student = model_of(MLP, seed=1), model_of(MLP, seed=2)
    truth = (rows()[:, 0] > 0).astype(np.int64)
    trained(
        student,
        teacher,
        batches(rows(), labels=truth),
        labels=1.0,
        watch="labels",
        steps=200,
        distill=False,
    )
    right = np.mean(outputs(student, FRESH).argmax(1) == (FRESH[:, 0] > 0))
    assert right > 0.9


def test_wanted_values_as_labels():
    teacher, student = model_of(VALUES, seed=1), model_of(VALUES, seed=2)
    truth = outputs(model_of(VALUES, seed=3), rows())
    result = trained(
        student,
        teacher,
        batches(rows(), labels=truth),
        labels=1.0,
        watch="loss",
        steps=100,
    )
    assert result.stats["loss_last"] < 0.5 * result.stats["loss_first"]


def test_a_narrower_student_learns_features_through_a_projection():
    teacher, student = model_of(MLP), model_of(NARROW, seed=5)
    before = agreement(student, teacher, FRESH)
    result = trained(
        student, teacher, batches(rows()), preset="student", features=("r",), steps=200
    )
    assert result.weights == 4
    assert agreement(student, teacher, FRESH) > before + 0.2


def test_only_the_weights_that_are_included():
    teacher = model_of(MLP)
    student = pruned(teacher, 0.6)
    before = weights(student)
    assert (
        trained(
            student,
            teacher,
            batches(rows()),
            include=("w*",),
            exclude=("w1",),
            watch="loss",
        ).weights
        == 1
    )
    after = weights(student)
    assert [n for n in before if not np.array_equal(before[n], after[n])] == ["w2"]


def test_penalties_shrink_weights():
    teacher = model_of(MLP)
    sizes = []
    for penalty in ({}, {"l1": 0.01}, {"group_lasso": 0.01}, {"l2": 0.5}):
        student = pruned(teacher, 0.5)
        assert trained(
            student, teacher, batches(rows()), steps=100, watch="loss", **penalty
        ).weights
        sizes.append(float(np.abs(weights(student)["w1"]).sum()))
    assert all(size < 0.97 * sizes[0] for size in sizes[1:])


def test_batch_statistics_move_and_are_written():
    teacher, student = model_of(CNN), model_of(CNN, seed=7)
    data = rows(256, (1, 6, 6)) + 2
    result = trained(student, teacher, batches(data), preset="student", steps=150)
    assert result.weights > 0
    assert not np.allclose(
        weights(student)["mean"], weights(model_of(CNN, seed=7))["mean"], atol=0.01
    )
    fresh = rows(256, (1, 6, 6), seed=9) + 2
    assert agreement(student, teacher, fresh) > agreement(
        model_of(CNN, seed=7), teacher, fresh
    )


@pytest.mark.parametrize(
    "change", [{"flip": True}, {"shift": 1}, {"mixup": 0.3}, {"cutmix": 1.0}]
)
def test_images_change_and_the_teacher_sees_the_change(change):
    teacher = model_of(CNN)
    student = pruned(teacher, 0.6)
    result = trained(
        student,
        teacher,
        batches(rows(128, (1, 6, 6))),
        labels=0.0,
        steps=60,
        watch="loss",
        **change,
    )
    assert result.weights > 0


def test_data_in_batches_of_unequal_shape():
    text = MLP.replace("float[n, 6] x", "float[n, t, 6] x").replace(
        "float[n, 4] y", "float[n, t, 4] y"
    )
    teacher = model_of(
        text.replace("y = Add (c, b2)", "z = Add (c, b2)\n    y = Softmax (z)")
    )
    student = pruned(teacher, 0.6)
    data = [({"x": rows(8, (2 + i % 3, 6), seed=i)}, None) for i in range(24)]
    result = trained(student, teacher, data, batch=16)
    assert result.stats["rows"] == 192
    assert result.weights == 4


def test_a_model_with_a_fixed_batch():
    text = MLP.replace("float[n, ", "float[8, ")
    teacher = model_of(text)
    student = pruned(teacher, 0.6)
    assert trained(student, teacher, batches(rows(), 8), batch=32).weights == 4


def test_it_stops_early():
    teacher = model_of(MLP)
    result = trained(
        pruned(teacher, 0.1),
        teacher,
        batches(rows()),
        rate=1e-9,
        steps=100,
        checks=50,
        patience=3,
    )
    assert result.stats["steps"] < 20
    assert "no better for 3 checks" in result.stats["stopped"]


def test_a_budget_of_time_ends_it():
    teacher = model_of(MLP)
    result = trained(
        pruned(teacher, 0.5), teacher, batches(rows()), steps=0, minutes=0.02
    )
    assert 1.0 < result.stats["seconds"] < 10


def test_inputs_made_up_from_statistics():
    teacher = model_of(CNN)
    data = rows(512, (1, 6, 6)) * 0.5 + 1
    with_data = model_of(CNN, seed=7)
    trained(
        with_data, teacher, batches(data), preset="student", steps=60
    )  # its statistics are those of the data
    made = synthesize(with_data, 64, 0)
    assert [batch["x"].shape for batch in made] == [(64, 1, 6, 6)]
    taps = Local().runner(with_data, ["c"])
    with taps as run:
        real, own, noise = (
            run({"x": x})["c"].mean((0, 2, 3))
            for x in (data, made[0]["x"], rows(64, (1, 6, 6)))
        )
    assert np.abs(own - real).mean() < 0.5 * np.abs(noise - real).mean()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MLP, "no BatchNormalization"),
        (CNN.replace("1, 6, 6] x", "1, h, w] x"), "axes are known"),
    ],
)
def test_what_inputs_cannot_be_made_up_for(text, message):
    with pytest.raises(RefusedError, match=message):
        synthesize(model_of(text), 64, 0)


@pytest.mark.parametrize(
    ("node", "products"),
    [
        ("MatMul (x, w)", 40),
        ("MatMul (w, x)", 90),
        ("Gemm <transB = 1> (x, w)", 90),
        ("Gemm (w, x)", 90),
        ("Gemm <transA = 1> (w, x)", 40),
    ],
)
def test_fresh_weights_are_sized_by_the_products_of_an_output(node, products):
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[a, b] x) => (float[c, d] y) <float[40, 90] w> {{ y = {node} }}
    """
    model = model_of(textwrap.dedent(text).replace("> { y", ">\n{ y"))
    assert initialize(model, 0) == 1
    assert weights(model)["w"].std() == pytest.approx(products**-0.5, rel=0.05)


# bad input: a clear error, and the student as it was


@pytest.mark.parametrize(
    ("data", "options", "kind", "message"),
    [
        (lambda: batches(rows(10)), {}, RefusedError, "holds 10 samples"),
        (
            lambda: batches(rows(), labels=np.zeros((256, 2), np.int64)),
            {},
            RefusedError,
            r"int64 \[\d+, 2\].*needs",
        ),
        (
            lambda: batches(rows(), labels=np.zeros(256, np.float32)),
            {},
            RefusedError,
            "float32",
        ),
        (
            lambda: batches(rows(), labels=np.full(256, 7)),
            {},
            RefusedError,
            r"class 7 is outside 0 … 3",
        ),
        (lambda: batches(rows()), {"watch": "labels"}, RefusedError, "no labels"),
        (
            lambda: batches(rows()),
            {"distill": False},
            RefusedError,
            "nothing to learn from",
        ),
        (
            lambda: batches(rows()),
            {"features": ("nowhere",)},
            UsageError,
            "the student has no value 'nowhere'",
        ),
        (
            lambda: batches(rows()),
            {"output_weights": ("y",)},
            UsageError,
            "not name=weight",
        ),
        (
            lambda: batches(rows()),
            {"output_weights": ("z=1",)},
            RefusedError,
            "no trained output 'z'",
        ),
        (
            lambda: batches(rows()),
            {"flip": True},
            RefusedError,
            "0 inputs are batches of float images",
        ),
        (
            lambda: batches(rows()),
            {"include": ("none*",)},
            RefusedError,
            "no weights that train",
        ),
        (
            lambda: batches(np.full((64, 6), np.nan, np.float32)),
            {},
            RefusedError,
            "not finite for batch 0",
        ),
        (lambda: batches(rows()), {"device": "cuda"}, UsageError, "finds no GPU"),
    ],
)
def test_bad_input(data, options, kind, message):
    teacher = model_of(MLP)
    student = pruned(teacher, 0.5)
    before = serialized(student)
    with pytest.raises(kind, match=message):
        trained(student, teacher, data(), **options)
    assert serialized(student) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [(NOTHING, "no weights that train"), (ROUNDED, "reached by a gradient")],
)
def test_nothing_trainable(text, message):
    model = model_of(text)
    with pytest.raises(RefusedError, match=message):
        trained(model.clone(), model, batches(rows()))


def test_a_teacher_of_another_question():
    with pytest.raises(
        RefusedError, match=r"student gives \[2, 4\], the teacher \[2, 6\]"
    ):
        trained(model_of(MLP), model_of(NOTHING), batches(rows()))


def test_no_float_output():
    text = MLP.replace("float[n, 4] y", "int64[n] y").replace(
        "y = Add (c, b2)",
        "z = Add (c, b2)\n    y = ArgMax <axis = 1, keepdims = 0> (z)",
    )
    with pytest.raises(RefusedError, match="no float output in common"):
        trained(model_of(text), model_of(text), batches(rows()))


def _nan_at(monkeypatch, step):
    real = loop_module.Loop._loss

    def broken(self, example, random):
        loss = real(self, example, random)
        return loss * float("nan") if self.account.steps == step else loss

    monkeypatch.setattr(loop_module.Loop, "_loss", broken)


def test_a_loss_that_is_not_finite_at_once(monkeypatch):
    _nan_at(monkeypatch, 0)
    teacher = model_of(MLP)
    student = pruned(teacher, 0.5)
    before = serialized(student)
    with pytest.raises(
        CheckError, match=r"loss is not finite at step 1 \(epoch 1, batch 1: rows \d+"
    ):
        trained(student, teacher, batches(rows()))
    assert serialized(student) == before


def test_a_loss_that_stops_being_finite_keeps_the_best(monkeypatch):
    _nan_at(monkeypatch, 100)
    teacher = model_of(MLP)
    student = pruned(teacher, 0.6)
    before = agreement(student, teacher, FRESH)
    result = trained(student, teacher, batches(rows()), steps=200)
    assert "not finite at step 101 (epoch 9, batch 5" in result.warnings[0]
    assert agreement(student, teacher, FRESH) > before


def test_the_teacher_is_not_changed():
    teacher = model_of(MLP)
    before = serialized(teacher)
    trained(pruned(teacher, 0.6), teacher, batches(rows()))
    assert serialized(teacher) == before


def test_tied_weights_stay_tied():
    text = MLP.replace("16", "6").replace(
        "r = Relu (h)", "q = Relu (h)\n    t = MatMul (q, w1)\n    r = Relu (t)"
    )
    teacher = model_of(text)
    student = pruned(teacher, 0.4)
    assert trained(student, teacher, batches(rows())).weights == 4
    assert (
        len(
            [
                n
                for n in student.graph
                if n.op_type == "MatMul" and n.inputs[1].name == "w1"
            ]
        )
        == 2
    )
    assert isinstance(student.graph.initializers["w1"].const_value, ir.TensorProtocol)


@pytest.mark.parametrize("preset", ["recover", "block"])
def test_a_weight_that_is_a_setting_elsewhere(preset):
    text = CNN.replace("(c, scale, shift, mean, var)", "(c, scale, var, mean, var)")
    teacher = model_of(text)
    student = pruned(teacher, 0.6)
    variance = weights(student)["var"]
    result = trained(
        student,
        teacher,
        batches(rows(128, (1, 6, 6))),
        preset=preset,
        steps=40,
        watch="loss",
    )
    assert result.weights > 0 or preset == "block"
    node = next(n for n in student.graph if n.op_type == "BatchNormalization")
    np.testing.assert_array_equal(node.inputs[4].const_value.numpy(), variance)


def test_curves_for_tensorboard(monkeypatch, tmp_path):
    teacher, seen = model_of(MLP), []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *error):
            seen.append(self.folder)

        def add_scalar(self, name, figure, step):
            seen.append((name, step, figure))

    monkeypatch.setitem(
        sys.modules,
        "torch.utils.tensorboard",
        types.SimpleNamespace(SummaryWriter=Writer),
    )
    trained(
        pruned(teacher, 0.6),
        teacher,
        batches(rows()),
        steps=20,
        checks=2,
        tensorboard=str(tmp_path),
    )
    assert [entry[:2] for entry in seen[:-1]] == [
        (name, step) for step in (10, 20) for name in ("held out", "rate", "loss")
    ]
    assert seen[-1] == str(tmp_path)


def test_without_tensorboard_it_says_so_before_training(monkeypatch, tmp_path):
    teacher = model_of(MLP)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="not installed"):
        trained(
            pruned(teacher, 0.6),
            teacher,
            batches(rows()),
            steps=20,
            tensorboard=str(tmp_path),
        )


@pytest.mark.parametrize("options", [{}, {"flip": True}])
def test_halves_learn_nearly_what_floats_do(options):
    teacher = model_of(CNN)
    images = rows(shape=(1, 6, 6))
    found = {}
    for precision in ("float32", "bfloat16"):
        student = pruned(teacher, 0.6)
        result = trained(
            student,
            teacher,
            batches(images),
            steps=60,
            precision=precision,
            watch="loss",
            **options,
        )
        assert result.stats["after"] > result.stats["before"]
        assert weights(student)["k"].dtype == np.float32
        found[precision] = result.stats["loss_last"]
    assert found["float32"] != found["bfloat16"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.3)


def test_features_are_asked_of_the_teacher_step_by_step():
    """They would take a disk: of all data only outputs are kept."""
    teacher = model_of(MLP)
    student, asked = pruned(teacher, 0.6), []

    class Watching(Local):
        @contextlib.contextmanager
        def runner(self, model, names):
            with super().runner(model, names) as run:
                asked.append([tuple(names), 0])
                yield lambda feeds, count=asked[-1]: (
                    count.__setitem__(1, count[1] + 1),
                    run(feeds),
                )[1]

    trained(
        student,
        teacher,
        batches(rows()),
        steps=30,
        features=("r",),
        precision="float32",
        runtime=Watching(),
    )
    kept, often = asked[0], asked[1]
    assert (kept[0], often[0]) == (("y",), ("y", "r"))
    assert kept[1] < often[1]
    assert often[1] >= 30


UNITS = """
<ir_version: 10, opset_import: ["" : 21]>
units (float[n, 6] x) => (float[n, 3] y)
<float[3] deviations = {0.001, 0.7, 15000}, float[3] means = {0, 5, 34000}, float[6, 3] w>
{
    c = MatMul (x, w)
    s = Mul (c, deviations)
    y = Add (s, means)
}
"""


def test_vectors_of_units_stay_where_they_are():
    proto = onnx.parser.parse_model(UNITS.replace(", float[6, 3] w>", ">"))
    w = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    teacher = ir.from_proto(proto)
    student = pruned(teacher, 0.4)
    trained(student, teacher, batches(rows()), steps=40, rate=0.05)
    constants = student.graph.initializers
    for name in ("deviations", "means"):
        before = teacher.graph.initializers[name].const_value.numpy()
        assert (constants[name].const_value.numpy() == before).all()
    # it did learn
    assert (constants["w"].const_value.numpy() != w).any()
    gone = pruned(teacher, 0.4).graph.initializers["w"].const_value.numpy()
    assert (constants["w"].const_value.numpy() != gone).any()
