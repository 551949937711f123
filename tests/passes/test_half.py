"""float16 models: where the casts stand, what stays float32 and why, and that ONNX Runtime runs the
result.
"""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from exactness import model_of
from onnx.reference import ReferenceEvaluator
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import Names, all_nodes
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._quant.fp16.convert import to_half

CHAIN = """
m (float[n, 4] x) => (float[n, 2] y, float[n, 2] z)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.25}>
{
    h = MatMul (x, w)
    y = Add (h, b)
    z = Relu (y)
}
"""


def halved(text, context=None):
    """The float16 form, checked, with the interface of the original; gives (proto, outcome,
    original).
    """
    model = model_of(text)
    normalize(model)
    before = ir.to_proto(model)
    outcome = to_half(model, context or NullContext(), Names(model))
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    names = [n.name for n in all_nodes(model) if n.name]
    assert len(names) == len(set(names))
    once = after.SerializeToString(deterministic=True)
    assert to_half(model, context or NullContext(), Names(model)).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    return after, outcome, before


def reasons(outcome):
    return {d.where: d.reason for d in outcome.declined}


def ops(proto):
    return [n.op_type for n in proto.graph.node]


@pytest.mark.parametrize(
    "text",
    [
        "m (int64[n] x) => (int64[n] y) { y = Add (x, x) }",
        "m (double[n] x) => (double[n] y) { y = Sqrt (x) }",
        "m (float16[n] x) => (float16[n] y) { y = Relu (x) }",
        "m (float[n] x) => (float[n] y) { y = Softmax (x) }",
        "m (float[n] x) => (float16[n] y) { y = Cast <to = 10> (x) }",
    ],
)
def test_leaves_alone(text):
    after, outcome, before = halved(text)
    assert outcome.changed == 0
    assert after == before


def test_casts_stand_at_the_borders_and_weights_are_half():
    after, outcome, before = halved(CHAIN)
    assert outcome.stats == {"nodes": 3, "islands": 0, "casts": 3, "weights": 2}
    assert collections.Counter(ops(after)) == {
        "Cast": 3,
        "MatMul": 1,
        "Add": 1,
        "Relu": 1,
    }
    assert {t.name: t.data_type for t in after.graph.initializer} == {"w": 10, "b": 10}
    x = np.array([[1, -2, 0.5, 0.25]], np.float32)
    for got, want in zip(
        *(run_session(p).run(None, {"x": x}) for p in (after, before)), strict=True
    ):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)  # small integers: exact in float16


def test_one_cast_for_each_value_and_direction():
    after, *_ = halved(
        "m (float[n] x) => (float[n] y) { a = Relu (x)\n b = Abs (x)\n c = Exp (a)\n d = Exp (a)\n"
        " e = Add (b, c)\n y = Add (d, e) }"
    )
    assert ops(after).count("Cast") == 1 + 1 + 2 + 1  # x, a, (c, d), y


def test_an_overridable_initializer_stays_float32():
    text = "m (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }"
    after, *_ = halved(text)
    assert after.graph.initializer[0].data_type == onnx.TensorProto.FLOAT
    assert run_session(after).run(
        None, {"x": np.ones(2, np.float32), "w": np.full(2, 3, np.float32)}
    )[0].tolist() == [3, 3]


def test_a_weight_of_half_and_single_nodes_is_kept_in_both_types():
    text = (
        "m (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Mul (x, w)\n b = Pow "
        "(a, w)\n y = Add (b, a) }"
    )
    after, *_ = halved(text)
    assert sorted(t.data_type for t in after.graph.initializer) == [1, 10]


@pytest.mark.parametrize(
    ("body", "single"),
    [
        (
            "y = Add (x, big)",
            {"Add y": "constant 'big' is beyond 65504, the largest of float16"},
        ),
        (
            "a = Mul (x, big)\n b = Add (a, x)\n y = Softmax (b)",
            {
                "Mul a": "constant 'big' is beyond 65504, the largest of float16",
                "Add b": "a number beyond 65504, the largest of float16, may reach it",
                "Softmax y": "its exponentials may exceed the range of float16",
            },
        ),
        (
            "a = Mul (x, infinite)\n y = Relu (a)",
            {"Mul a": "constant 'infinite' is beyond 65504, the largest of float16"},
        ),
        (
            "a = Add (x, eps)\n b = Sqrt (a)\n c = Div (x, b)\n y = Mul (c, x)",
            {
                "Add a": "constant 'eps' is below 2**-14, where float16 has few digits",
                "Sqrt b": "a number below 2**-14, where float16 has few digits, may reach it",
                "Div c": "a number below 2**-14, where float16 has few digits, may reach it",
            },
        ),
        ("y = Pow (x, x)", {"Pow y": "small and large numbers lose digits in float16"}),
        (
            "a = Relu (x)\n y = com.example.Own (a)",
            {"com.example.Own": "nothing says that com.example.Own takes float16"},
        ),
    ],
)
def test_islands_and_their_reasons(body, single):
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]> '
        "m (float[3] x) => (float[3] y) "
        "<float[1] big = {-3e38}, float[1] infinite = {-1e30}, float[1] eps = {1e-12}> {"
        + body
        + "}"
    )
    model = model_of(text)
    normalize(model)
    outcome = to_half(model, NullContext(), Names(model))
    found = reasons(outcome)
    assert list(found.values()) == list(single.values()) or found == single
    assert outcome.changed == body.count("\n") + 1 - len(single)


def test_float_arithmetic_on_sizes_stays_exact():
    text = """
    m (float[n, 3] x) => (float[k] y)
    <float one_third = {0.33333334}, int64[1] first = {0}>
    {
        s = Shape (x)
        n = Gather (s, first)
        f = Cast <to = 1> (n)
        g = Mul (f, one_third)
        h = Floor (g)
        k = Cast <to = 7> (h)
        y = ConstantOfShape (k)
    }
    """
    after, outcome, _ = halved(text)
    assert [d.reason for d in outcome.declined] == ["it computes sizes or indices"] * 4
    assert run_session(after).run(None, {"x": np.zeros((9001, 3), np.float32)})[
        0
    ].shape == (3000,)


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize(("reduction", "reasons"), [("none", 0), ("add", 1)])
def test_the_cpu_does_not_reduce_scattered_halves(op, reduction, reasons):
    index = "int64[1, 1] i = {2}" if op == "ScatterND" else "int64[1] i = {2}"
    text = (
        f"m (float[3] x, float[1] u) => (float[3] y) <{index}> "
        f'{{ h = Relu (x) s = {op} <reduction = "{reduction}"> (h, i, u) y = Neg (s) }}'
    )
    after, outcome, _ = halved(text)
    assert sum("does not reduce" in d.reason for d in outcome.declined) == reasons
    feeds = {"x": np.float32([1, 2, 3]), "u": np.float32([4])}
    wanted = [-1, -2, -4 if reduction == "none" else -7]
    assert run_session(after).run(None, feeds)[0].tolist() == wanted


def test_a_constant_that_a_branch_returns_keeps_its_type():
    text = """
    m (bool flag, float[2] x) => (float[2] y)
    {
        y = If (flag) <
            then_branch = first () => (float[2] t) {
                t = Constant <value = float[2] {1, 2}> ()
                unused = Sub (x, t)
            },
            else_branch = second () => (float[2] e) { e = Relu (x) }
        >
    }
    """
    after, _, _ = halved(text)
    session = run_session(after)
    x = np.array([-1, 3], np.float32)
    assert session.run(None, {"flag": np.array(True), "x": x})[0].tolist() == [1, 2]
    assert session.run(None, {"flag": np.array(False), "x": x})[0].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("scale", "where"), [(40000.0, "reaches 4e+04"), (1e-5, "stays below 1e-05")]
)
def test_calibration_finds_activations_that_float16_cannot_hold(
    calibrated, scale, where
):
    text = "m (float[2] x) => (float[2] y) { a = Mul (x, x)\n b = Relu (a)\n y = Sigmoid (b) }"
    feeds = [{"x": np.full(2, np.sqrt(scale), np.float32)}]
    after, outcome, before = halved(text, calibrated(feeds))
    assert all(where in d.reason for d in outcome.declined)
    assert outcome.changed == 0
    assert after == before


def test_with_calibration_an_overflow_in_the_middle_is_an_island(calibrated):
    text = """
    m (float[4] x) => (float[4] y) <float[1] up = {1000}, float[1] down = {0.0001}>
    { a = Relu (x)
      b = Mul (a, up)
      c = Mul (b, up)
      d = Mul (c, down)
      e = Mul (d, down)
      y = Relu (e) }
    """
    feeds = [{"x": np.array([0.5, 1, 2, 4], np.float32)}]
    after, outcome, before = halved(text, calibrated(feeds))
    assert reasons(outcome) == {
        "Mul c": "'c' reaches 4e+06",
        "Mul d": "'c' reaches 4e+06",
    }
    got, want = (run_session(p).run(None, feeds[0])[0] for p in (after, before))
    np.testing.assert_allclose(got, want, rtol=2e-3)
    blind, *_ = halved(
        text
    )  # ONNX Runtime's CPU provider computes it in float32: the guard shows only elsewhere
    with np.errstate(over="ignore"):
        assert not np.isfinite(ReferenceEvaluator(blind).run(None, feeds[0])[0]).all()
    np.testing.assert_allclose(
        ReferenceEvaluator(after).run(None, feeds[0])[0], want, rtol=2e-3
    )


def test_says_that_overflow_is_unchecked_without_data():
    context = NullContext()
    halved(CHAIN, context)
    assert context.warnings[0].startswith(
        "float16: without data nothing shows which activations overflow"
    )


def test_says_that_the_cpu_provider_gains_nothing_but_bytes():
    contexts = {target: NullContext(target) for target in ("cpu", "cuda")}
    for context in contexts.values():
        halved(CHAIN, context)
    assert "compress-weights(fp16)" in contexts["cpu"].warnings[1]
    assert len(contexts["cuda"].warnings) == 1


def test_bodies_of_control_flow_are_converted_behind_float32_borders():
    text = """
    m (float[2] x, bool c) => (float[2] y)
    <float[2] w = {2, 3}>
    {
        h = Mul (x, w)
        r = If (c) <
            then_branch = t () => (float[2] a) { p = Relu (h)  a = Mul (p, w) },
            else_branch = e () => (float[2] b) { b = Neg (h) }
        >
        y = Relu (r)
    }
    """
    after, outcome, before = halved(text)
    assert reasons(outcome) == {
        "If r": "what enters and leaves its subgraphs stays float32"
    }
    assert outcome.stats["nodes"] == 5
    for condition in (True, False):
        feeds = {"x": np.array([1, -2], np.float32), "c": np.array(condition)}
        got, want = (run_session(p).run(None, feeds)[0] for p in (after, before))
        np.testing.assert_array_equal(got, want)


def test_what_a_loop_carries_stays_float32():
    text = """
    m (float[2] x, int64 n) => (float[2] y)
    <bool go = {1}>
    {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool k, float[2] u)
            { k = Identity (c)  s = Add (v, v)  u = Relu (s) }>
    }
    """
    after, outcome, _ = halved(text)
    assert outcome.stats["nodes"] == 2
    feeds = {"x": np.array([1, 3], np.float32), "n": np.array(3)}
    assert run_session(after).run(None, feeds)[0].tolist() == [8, 24]


def test_inputs_that_must_be_float32_stay_so():
    text = """
    m (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
    <float[4] scales = {1, 1, 2, 2}>
    { a = Relu (x)
      y = Resize <mode = "nearest"> (a, , scales) }
    """
    after, outcome, _ = halved(text)
    assert outcome.changed == 2
    assert after.graph.initializer[0].data_type == onnx.TensorProto.FLOAT
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(
        run_session(after).run(None, {"x": x})[0], x.repeat(2, 2).repeat(2, 3)
    )


def test_constants_of_shape_and_casts_change_their_attribute():
    text = """
    m (int64[1] n, int32[k] x) => (float[k] y)
    { a = ConstantOfShape <value = float[1] {2}> (n)
      b = Cast <to = 1> (x)
      y = Add (a, b) }
    """
    after, outcome, _ = halved(text)
    assert outcome.changed == 3
    feeds = {"n": np.array([3]), "x": np.array([1, 2, 3], np.int32)}
    assert run_session(after).run(None, feeds)[0].tolist() == [3, 4, 5]


def test_batchnorm_of_an_old_opset_keeps_one_type():
    text = """
    <ir_version: 7, opset_import: ["" : 12]>
    m (float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y)
    <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] mean = {0, 0}, float[2] var = {1, 70000}>
    { a = Relu (x)
      y = BatchNormalization (a, s, b, mean, var) }
    """
    after, outcome, _ = halved(text)
    assert reasons(outcome) == {
        "BatchNormalization y": "constant 'var' is beyond 65504, the largest of float16"
    }
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in after.graph.initializer)
    assert np.isfinite(
        run_session(after).run(None, {"x": np.ones((1, 2, 2, 2), np.float32)})[0]
    ).all()


def test_a_name_that_is_taken_is_not_used_twice():
    text = (
        "m (float[2] x) => (float[2] y) { x_half = Relu (x)\n y_half = Abs (x_half)\n y "
        "= Neg (y_half) }"
    )
    after, *_ = halved(text)
    values = [o for n in after.graph.node for o in n.output]
    assert len(values) == len(set(values))
