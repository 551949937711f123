import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, batches, run_session
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._calibrated.block_compensation import (
    nearest_in_blocks,
    values_in_blocks,
)
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._quant.block_grids import BlockGrid
from onnx_opt.passes.smooth import Smooth
from sample_models import model_from

SPREAD = 10 ** np.linspace(-2, 1, 16)
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\nnet (float[n, 3, 16] x) => (float[n, 3, 8] y)\n'
NORM = (
    HEAD
    + """<float[16] gamma, float[16] beta, float[16, 8] w, float[8] b>
{ h = LayerNormalization (x, gamma, beta) m = MatMul (h, w) y = Add (m, b) }
"""
)
NORM_SHARED = (
    HEAD
    + """<float[16] gamma, float[16] beta, float[16, 8] w, float[16, 8] v>
{
    h = LayerNormalization (x, gamma, beta)
    a = MatMul (h, w)
    b = MatMul (h, v)
    c = Add (a, b)
    t = ReduceMean <keepdims = 1> (h)
    y = Add (c, t)
}
"""
)
MUL = (
    HEAD
    + """<float[16] g, float[16, 8] w> { h = Mul (g, x) y = MatMul (h, w) }
"""
)
LAYERS = (
    HEAD
    + """<float[16, 16] u, float[16] c, float[16, 8] w>
{ m = MatMul (x, u) a = Add (m, c) h = Relu (a) y = MatMul (h, w) }
"""
)
GATED = (
    HEAD
    + """<float[16, 16] u, float[16, 16] v, float[16, 8] w> {
    a = MatMul (x, v)
    g = Sigmoid (a)
    m = MatMul (x, u)
    h = Mul (g, m)
    y = MatMul (h, w)
}
"""
)
SOFTMAX = (
    HEAD
    + """<float[16, 8] w> { h = Softmax (x) y = MatMul (h, w) }
"""
)
INPUT = (
    HEAD
    + """<float[16, 8] w> { y = MatMul (x, w) }
"""
)


def made(text, spread=()):
    """The model of a text, the initializers named in `spread` uneven over their last axis (`u`:
    over its columns).
    """
    model = ir.from_proto(model_from(text))
    normalize(model)
    for name in spread:
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(
            (value.const_value.numpy() * SPREAD).astype(np.float32), name=name
        )
    return model, CalibratedContext(batches((64, 3, 16), count=16))


def spread_of(model, name, context):
    """Largest over smallest max|x| of the channels of a value."""
    from onnx_opt.passes._base import MomentRequest

    highest = context.collect(model, {"a": MomentRequest(name, "absmax")}, 64)["a"]
    return highest.max() / highest.min()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (INPUT, "the value is an input of the model, or no operator of ONNX makes it"),
        (NORM, "scaling would lower its rounding noise by only"),
    ],
)
def test_leaves_alone(text, reason):
    model, context = made(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Smooth(min_gain=15, insert_gain=15).run(model, context)
    assert outcome.changed == 0
    assert outcome.stats == {"smoothed": 0, "inserted": 0, "gain_db": 0.0}
    assert outcome.declined[0].reason.startswith(reason)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_alpha_0_and_no_spread_of_weights_change_nothing():
    model, context = made(
        INPUT.replace("y = MatMul (x, w)", "h = Relu (x) y = MatMul (h, w)")
    )
    weight = model.graph.initializers["w"]
    weight.const_value = ir.Tensor(np.ones((16, 8), np.float32), name="w")
    assert (
        Smooth(alpha=0.0, min_gain=0.0, insert_gain=0.0).run(model, context).changed
        == 0
    )


@pytest.mark.parametrize(
    ("text", "spread", "value", "ops"),
    [
        (NORM, ("gamma", "beta"), "h", ["LayerNormalization", "MatMul", "Add"]),
        (MUL, ("g",), "h", ["Mul", "MatMul"]),
        (LAYERS, ("u", "c"), "h", ["MatMul", "Add", "Relu", "MatMul"]),
        (GATED, ("u",), "h", ["MatMul", "Sigmoid", "MatMul", "Mul", "MatMul"]),
        (SOFTMAX, (), "h_smoothed", ["Softmax", "Mul", "MatMul"]),
        (
            NORM_SHARED,
            ("gamma", "beta"),
            "h_smoothed",
            [
                "LayerNormalization",
                "Mul",
                "MatMul",
                "MatMul",
                "Add",
                "ReduceMean",
                "Add",
            ],
        ),
    ],
)
def test_evens_the_channels_and_keeps_the_outputs(text, spread, value, ops):
    model, context = made(text, spread)
    if text is SOFTMAX:
        context.feeds = [
            {"x": 0.2 * f["x"] + np.log(SPREAD).astype(np.float32)}
            for f in context.feeds
        ]
    before = model.clone()
    outcome = Smooth(alpha=1.0).run(model, context)
    assert outcome.changed == 1
    assert outcome.stats["gain_db"] > 3
    assert [n.op_type for n in model.graph] == ops
    assert outcome.stats["inserted"] == (value == "h_smoothed")
    assert spread_of(before, "h", context) > 50
    assert spread_of(model, value, context) < 4  # what may yet come keeps some distance
    for feeds in context.feeds:
        want, got = (
            run_session(m, optimize=False).run(None, feeds)[0] for m in (before, model)
        )
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def output_power_lost(model, context):
    """Mean square of what 4-bit blocks change of the outputs, and that of the outputs."""
    rounded = model.clone()
    weight = rounded.graph.initializers["w"]
    rows = weight.const_value.numpy().T.astype(np.float64)
    grid = BlockGrid(4, 16)
    values = values_in_blocks(nearest_in_blocks(rows, grid), grid)
    weight.const_value = ir.Tensor(values.T.astype(np.float32), name="w")
    lost = whole = 0.0
    for feeds in context.feeds:
        want, got = (run_session(m).run(None, feeds)[0] for m in (model, rounded))
        lost += np.square(got - want).mean()
        whole += np.square(want).mean()
    return lost, whole


@pytest.mark.parametrize(("text", "spread"), [(NORM, ("gamma",)), (GATED, ("u",))])
def test_weights_that_loud_channels_meet_round_better(text, spread):
    model, context = made(text, spread)
    before = model.clone()
    outcome = Smooth(aim="weights", block=16).run(model, context)
    assert outcome.changed == 1
    assert outcome.stats["inserted"] == 0
    lost, whole = output_power_lost(model, context)
    lost_before, whole_before = output_power_lost(before, context)
    np.testing.assert_allclose(whole, whole_before, rtol=1e-5)
    gain = 10 * np.log10(lost_before / lost)
    # told for other samples, and as if channels had nothing in common
    assert gain > 1
    assert abs(gain - outcome.stats["gain_db"]) < 1.5


def test_values_that_other_layers_read_are_left_alone():
    # h is read by the layer of w, and x by those of u and v
    model, context = made(GATED, ("u",))
    smooth = Smooth(aim="weights", block=16)
    assert smooth.run_on(model, context, only={"u", "v"}).changed == 0
    assert smooth.run_on(model, context, only={"w"}).changed == 1


@pytest.mark.needs("onnx", "1.18", "opset 23")
@pytest.mark.needs("onnxruntime", "1.23", "opset 23")
def test_an_rms_normalization_takes_factors():
    text = NORM.replace('"" : 21', '"" : 23').replace(
        "LayerNormalization (x, gamma, beta)", "RMSNormalization (x, gamma)"
    )
    model, context = made(text.replace(", float[16] beta", ""), ("gamma",))
    outcome = Smooth(alpha=1.0).run(model, context)
    assert outcome.stats["smoothed"] == 1
    assert outcome.stats["inserted"] == 0


@pytest.mark.parametrize("alpha", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    ("text", "spread"), [(NORM, ("gamma", "beta")), (NORM_SHARED, ("gamma", "beta"))]
)
def test_a_second_run_finds_nothing_left(text, spread, alpha):
    model, context = made(text, spread)
    pass_ = Smooth(alpha=alpha, min_gain=0.0, insert_gain=0.0)
    assert pass_.run(model, context).changed == 1
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert pass_.run(model, context).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_channels_that_are_never_seen_keep_their_weights():
    model, context = made(MUL, ("g",))
    value = model.graph.initializers["g"]
    array = value.const_value.numpy().copy()
    array[3] = 0
    value.const_value = ir.Tensor(array, name="g")
    before = model.graph.initializers["w"].const_value.numpy().copy()
    assert Smooth().run(model, context).changed == 1
    after = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(after[3], before[3])
    assert np.isfinite(after).all()


def test_few_samples_tell_nothing():
    model, context = made(NORM, ("gamma", "beta"))
    context.feeds = [{"x": f["x"][:1]} for f in context.feeds[:3]]
    outcome = Smooth(min_gain=0.0).run(model, context)
    assert outcome.changed == 0
    assert [d.reason for d in outcome.declined] == [
        "its channels need 4 samples or more: give more data"
    ]


def test_without_data_says_what_to_give():
    with pytest.raises(UsageError, match="no calibration data"):
        Smooth().run(made(NORM)[0], NullContext())
