"""Operators fused and weights evened out before `quant(blocked)` rounds them."""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.quant import Quant
from sample_models import model_from

WIDTH = 64
LOUD = np.exp(np.linspace(-3, 3, WIDTH)).astype(np.float32)

BLOCK = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 4, 64] x) => (float[n, 4, 64] y)
<float[64] gamma, float[64, 64] gate, float[64, 64] up, float[64, 64] down,
    float two = {2}, float least = {0.000001}, int64[1] last = {-1}> {
    p = Pow (x, two)
    m = ReduceMean <keepdims = 1> (p, last)
    v = Add (m, least)
    r = Sqrt (v)
    i = Reciprocal (r)
    c = Mul (x, i)
    h = Mul (c, gamma)
    g = MatMul (h, gate)
    s = Sigmoid (g)
    u = MatMul (h, up)
    z = Mul (s, u)
    y = MatMul (z, down)
}
"""


def block_model():
    """A feed-forward part whose channels are of very different loudness."""
    model = ir.from_proto(model_from(BLOCK))
    gamma = model.graph.initializers["gamma"]
    gamma.const_value = ir.Tensor(LOUD, name="gamma")
    return model


def context():
    samples = np.random.default_rng(1).standard_normal((16, 1, 4, 64))
    return CalibratedContext([{"x": sample.astype(np.float32)} for sample in samples])


def lost(quant):
    """DB of the outputs' noise below the outputs, on samples that nobody saw."""
    model = block_model()
    before = model.clone()
    quant.run(model, context())
    x = np.random.default_rng(2).standard_normal((64, 4, 64)).astype(np.float32)
    want, got = (run_session(m).run(None, {"x": x})[0] for m in (before, model))
    return 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())


@pytest.mark.needs("onnx", "1.18", "opset 23")
@pytest.mark.needs("onnxruntime", "1.23", "opset 23")
def test_operators_are_fused_for_a_cpu():
    model = block_model()
    outcome = Quant("blocked", bits=4).run(model, NullContext())
    assert outcome.stats["fused"] == 1
    assert "RMSNormalization" in [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("quant", "target"),
    [
        (Quant("blocked", bits=4, fuse=False), "cpu"),
        (Quant("blocked", bits=4), "generic"),
        (Quant("dynamic"), "cpu"),
    ],
)
def test_operators_stay_where_nobody_gains(quant, target):
    model = block_model()
    quant.run(model, NullContext(target))
    assert "ReduceMean" in [node.op_type for node in model.graph]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.needs("onnx", "1.18", "opset 23")
@pytest.mark.needs("onnxruntime", "1.23", "opset 23")
def test_evened_weights_lose_less(rounding, fuse):
    plain = Quant("blocked", bits=4, rounding=rounding, fuse=fuse, smooth=False)
    evened = Quant("blocked", bits=4, rounding=rounding, fuse=fuse)
    assert lost(evened) > lost(plain) + 0.5


def test_layers_that_are_left_out_keep_their_weights():
    model = block_model()
    before = model.graph.initializers["down"].const_value.numpy().copy()
    quant = Quant("blocked", bits=4, fuse=False, exclude=("down",))
    outcome = quant.run(model, context())
    # what gate and up read
    assert outcome.stats["smoothed"] == 1
    after = model.graph.initializers["down"].const_value.numpy()
    np.testing.assert_array_equal(after, before)
