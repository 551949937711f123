"""requantize: models of other tools whose products saturate, mended in place."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from generated_layers import KINDS, drawn, integer_arrays, qdq_model
from integer_graphs import offending_pairs, run_integers
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.integer_layers import offending_pairs as counted
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.requantize import Requantize
from sample_models import model_from

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
OPERATORS = {
    "QLinearConv": """ g (uint8[1, 4, 5, 5] x) => (uint8[1, 6, 3, 3] y)
    <float xs = {0.02}, uint8 xz = {7}, float[6] ws = {0.01, 0.02, 0.01, 0.03, 0.01, 0.02},
     int8[6] wz = {0, 0, 0, 0, 0, 0}, float ys = {0.5}, uint8 yz = {100}, int32[6] b = {1, 2, 3,
         4, 5, 6}>
    { y = QLinearConv (x, xs, xz, w, ws, wz, ys, yz, b) }""",
    "QLinearMatMul": """ g (uint8[3, 8] x) => (uint8[3, 5] y)
    <float xs = {0.02}, uint8 xz = {7}, float ws = {0.01}, int8 wz = {0},
     float ys = {0.2}, uint8 yz = {100}>
    { y = QLinearMatMul (x, xs, xz, w, ws, wz, ys, yz) }""",
    "QGemm": """ g (uint8[3, 8] x) => (uint8[3, 5] y)
    <float xs = {0.02}, uint8 xz = {7}, float[5] ws = {0.01, 0.02, 0.01, 0.03, 0.01},
        int8[5] wz = {0, 0, 0, 0, 0},
     int32[5] b = {100, 200, 300, 400, 500}, float ys = {0.2}, uint8 yz = {100}>
    { y = com.microsoft.QGemm <transB = 1> (x, xs, xz, w, ws, wz, b, ys, yz) }""",
    "MatMulInteger": """ g (float[3, 8] x) => (float[3, 5] y) <float[5] ws = {0.01, 0.02, 0.01,
        0.03, 0.01}>
    { q, s, z = DynamicQuantizeLinear (x)
      p = MatMulInteger (q, w, z)
      f = Cast <to = 1> (p)
      t = Mul (s, ws)
      y = Mul (f, t) }""",
    "MatMulIntegerToFloat": """ g (uint8[3, 8] x) => (float[3, 5] y)
    <float xs = {0.02}, uint8 xz = {7}, float ws = {0.01}, int8 wz = {3}>
    { y = com.microsoft.MatMulIntegerToFloat (x, w, xs, ws, xz, wz) }""",
    "DynamicQuantizeMatMul": """ g (float[3, 8] x) => (float[3, 5] y) <float ws = {0.01},
        int8 wz = {0}>
    { y = com.microsoft.DynamicQuantizeMatMul (x, w, ws, wz) }""",
}
SHAPES = {"QLinearConv": (6, 4, 3, 3), "QGemm": (5, 8)}


def operator_model(op):
    """A net of one integer operator whose weights are large, and feeds for it."""
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEAD + OPERATORS[op])
    weight = random.integers(-127, 128, SHAPES.get(op, (8, 5))).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = ir.from_proto(proto)
    kind, shape = (
        model.graph.inputs[0].dtype.numpy(),
        model.graph.inputs[0].shape.numpy(),
    )
    x = (
        random.integers(0, 256, shape).astype(np.uint8)
        if kind == np.uint8
        else random.normal(size=shape)
    )
    return model, {"x": x.astype(kind)}


def snr(reference, got):
    reference, got = reference.astype(np.float64), got.astype(np.float64)
    return 10 * np.log10(
        (reference**2).sum() / max(((reference - got) ** 2).sum(), 1e-300)
    )


@pytest.mark.parametrize("op", OPERATORS)
def test_integer_operators_are_mended(op):
    model, feeds = operator_model(op)
    before = run_integers(model, feeds, "exact")[0]
    assert sum(counted(model).values()) == sum(offending_pairs(model).values()) > 0
    outcome = Requantize().run(model, NullContext())
    assert outcome.changed == outcome.stats["layers"] == 1
    assert outcome.stats["mended"] > 0 == outcome.stats["offending_pairs"]
    assert not any(offending_pairs(model).values())
    onnx.checker.check_model(ir.to_proto(model))
    after = run_integers(model, feeds, "exact")[0]
    np.testing.assert_array_equal(run_integers(model, feeds, "saturating")[0], after)
    assert snr(before, after) > 30
    fused = run_session(model).run(None, feeds)[0]
    if fused.dtype == np.uint8:
        np.testing.assert_array_equal(fused, after)
    else:
        np.testing.assert_allclose(fused, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_between_pairs_are_mended(kind, with_data):
    layer, random = drawn(kind, 0)
    proto, feeds = as_ir(layer, random)
    had = sum(offending_pairs(proto).values())
    before = run_integers(proto, feeds[0], "exact")[0]
    outcome = Requantize().run(
        proto, CalibratedContext(feeds) if with_data else NullContext()
    )
    assert (outcome.changed > 0) == (had > 0)
    assert outcome.stats["mended"] == had
    assert not any(offending_pairs(proto).values())
    after = run_integers(proto, feeds[0], "exact")[0]
    assert np.array_equal(before, after) if not had else snr(before, after) > 25
    for batch in feeds:
        np.testing.assert_array_equal(
            run_integers(proto, batch, "saturating")[0],
            run_integers(proto, batch, "exact")[0],
        )


def as_ir(layer, random):
    """A layer between Q/DQ nodes with codes over the whole range, and feeds."""
    model = ir.from_proto(qdq_model(layer, integer_arrays(layer, random), codes=False))
    normalize(model)
    return model, [
        {"x": random.normal(0.4, 1, layer.x).astype(np.float32)} for _ in range(4)
    ]


def test_a_target_that_does_not_saturate_is_left_alone():
    model, _ = operator_model("QLinearMatMul")
    outcome = Requantize().run(model, NullContext("cpu-vnni"))
    assert outcome.changed == 0
    assert [d.reason for d in outcome.declined] == [
        "its kernels do not saturate: weights may use the whole 8-bit range"
    ]


def test_a_float_model_has_nothing_to_mend():
    model = ir.from_proto(
        model_from("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 4] x) => (float[1, 3] y) <float[4, 3] w> { y = MatMul (x, w) }""")
    )
    assert Requantize().run(model, NullContext()).stats == {
        "layers": 0,
        "weights": 0,
        "mended": 0,
        "offending_pairs": 0,
    }


def test_products_without_a_constant_scale_are_declined():
    proto = onnx.parser.parse_model(
        HEAD + " g (uint8[3, 8] x) => (int32[3, 5] y) { y = MatMulInteger (x, w) }"
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.full((8, 5), 127, np.int8), "w")
    )
    model = ir.from_proto(proto)
    outcome = Requantize().run(model, NullContext())
    assert outcome.changed == 0
    assert [d.reason for d in outcome.declined] == [
        "no constant scale of its weight was found"
    ]
    assert outcome.stats["offending_pairs"] == 20
