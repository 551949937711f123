"""Wrong results that come without an error: each guard against one, and what happens without the
guard.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core import normalize as normalize_module
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._quant import insert_static
from onnx_opt.passes.quant import Quant
from quant_models import (
    FEEDS,
    chain,
    grid,
    kernels,
    model_of,
    normal,
    ops,
    outputs,
    session,
    sqnr,
)

GEMM = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 16] x) => (float[N, 8] y) { y = Gemm <transB = 1> (x, w, b) }
"""


def gemm_drift(calibrated):
    weights = {"w": normal(8, 16), "b": normal(8, scale=10.0)}
    feeds = {"x": normal(16, 16)}
    model = model_of(GEMM, **weights)
    Quant().run(model, calibrated([feeds]))
    return model, sqnr(outputs(model_of(GEMM, **weights), feeds), outputs(model, feeds))


def test_the_bias_scale_is_the_product_of_the_other_two(calibrated, monkeypatch):
    """ONNX Runtime's Gemm kernel takes the bias for x_scale * w_scale whatever its own scale
    says.
    """
    model, drift = gemm_drift(calibrated)
    np.testing.assert_array_equal(
        grid(model, "b_q")[0], grid(model, "x")[0] * grid(model, "w_q")[0]
    )
    assert drift > 35

    def scale_of_its_own(bias, input_scale, scales):
        own = np.full_like(scales, np.abs(bias).max() / 2**15)
        return np.rint(bias / own).astype(np.int32), own

    monkeypatch.setattr(insert_static, "quantize_bias", scale_of_its_own)
    _, wrong = gemm_drift(calibrated)
    assert wrong < 20


def test_activations_are_unsigned_where_values_branch(calibrated, with_rules, tmp_path):
    """ONNX Runtime turns int8 activations into uint8 only along a chain: at a branch its Convs stay
    float.
    """
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] z)
    { a = Conv (x, w1)  b = Conv (a, w2)  c = Conv (a, w3)  s = Add (b, c)
      d = Conv (s, w4)  z = Softmax (d) }
    """
    weights = {f"w{i}": normal(8, 8, 1, 1) for i in (1, 2, 3, 4)}
    feeds = {"x": normal(2, 8, 6, 6)}

    def fused():
        model = model_of(text, **weights)
        Quant().run(model, calibrated([feeds]))
        return kernels(model, tmp_path)["QLinearConv"]

    assert fused() == 4
    with_rules(activation="int8", symmetric=True)
    assert fused() < 4


def stale_model():
    """A Gemm whose weight and result are declared with shapes that they no longer have."""
    proto = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 65] y) <float[N, 7] h, float[3, 3] t>
    { t = Transpose <perm = [1, 0]> (w)  h = MatMul (x, t)  y = Relu (h) }
    """)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(65, 64), "w"))
    proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 65])
    )
    model = ir.from_proto(proto)
    normalize(model)
    return model


def test_stale_shapes_are_forgotten(monkeypatch):
    model = stale_model()
    Quant(form="dynamic").run(model, NullContext())
    shapes = {
        v.name: [d if isinstance(d, int) else str(d) for d in v.shape]
        for n in model.graph
        for v in n.outputs
        if v.shape is not None
    }
    assert shapes["y"] == ["N", 65]
    assert all(shape[-1] in (64, 65) for shape in shapes.values() if len(shape) == 2)
    assert outputs(model, {"x": normal(2, 64)}).shape == (2, 65)
    monkeypatch.setattr(normalize_module, "refresh_shapes", lambda model: True)
    with pytest.raises(Exception, match=r"(?i)shape|dimension|dim"):
        session(stale_model())


def test_a_weight_transposed_for_the_runtime_is_declared_as_it_is():
    """What makes onnxruntime's own quantize_dynamic fail: the transposed weight under its former
    shape.
    """
    model = model_of(
        GEMM.replace("16", "64").replace("8", "65"), w=normal(65, 64), b=normal(65)
    )
    Quant().run(model, NullContext())
    assert ops(model)["MatMulInteger"] == 1
    for value in model.graph.initializers.values():
        assert tuple(value.shape) == tuple(value.const_value.shape.numpy())
    session(model)


@pytest.mark.parametrize(
    "feed",
    [
        np.zeros((2, 3, 9, 9)),
        np.full((2, 3, 9, 9), 3.0),
        np.full((2, 3, 9, 9), 1e-40),
        np.full((2, 3, 9, 9), -1e6),
    ],
    ids=["zeros", "constant", "denormal", "large"],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"form": "ternary"},
        {"form": "binary"},
        {"form": "binary", "planes": 3},
    ],
    ids=str,
)
def test_degenerate_activations_give_finite_results(options, feed, calibrated):
    feeds = {"x": feed.astype(np.float32)}
    model = chain()
    Quant(**options).run(model, calibrated([feeds]))
    for x in (feeds, FEEDS):
        assert np.isfinite(outputs(model, x)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: np.where(np.arange(w.size).reshape(w.shape) == 5, 1e6, w),
        lambda w: w * 1e-42,
        lambda w: w * 0,
        lambda w: np.sign(w) * 1e38,
        lambda w: np.where(w > 0, 1e-40, w),
    ],
    ids=["outlier", "denormal", "zero", "huge", "some denormal"],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"form": "ternary"},
        {"form": "ternary", "fit": "mean"},
        {"form": "binary"},
        {"form": "binary", "planes": 2},
    ],
    ids=str,
)
def test_degenerate_weights_give_a_valid_model(options, change, calibrated):
    with np.errstate(all="ignore"):
        w2 = change(
            chain().graph.initializers["w2"].const_value.numpy().astype(np.float64)
        ).astype(np.float32)
    model = chain(w2=w2)
    reference = outputs(chain(w2=w2), FEEDS)
    Quant(**options).run(
        model, calibrated([FEEDS]) if np.isfinite(reference).all() else NullContext()
    )
    got = outputs(model, FEEDS)
    assert got.shape == reference.shape
    if np.isfinite(reference).all():
        assert np.isfinite(got).all()


def test_integer_models_are_left_alone():
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> g (int32[2, 3] x) => (int32[2, 4] y) '
        "{ y = MatMul (x, w) }",
        w=np.ones((3, 4), np.int32),
    )
    outcome = Quant().run(model, NullContext())
    assert outcome.changed == 0
    assert "INT32" in outcome.declined[0].reason


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"form": "ternary"},
        {"form": "binary"},
        {"form": "binary", "planes": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(options, bad):
    weight = normal(64, 64)
    weight[3, 5] = bad
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) '
        "{ y = MatMul (x, w) }",
        w=weight,
    )
    with pytest.raises(RefusedError, match="w: holds NaN or infinity"):
        Quant(**options, ends="same").run(model, NullContext())
