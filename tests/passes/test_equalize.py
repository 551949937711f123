import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.equalize import Equalize
from sample_models import model_from

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
chain (float[n, 4, 8, 8] x) => (float[n, 6, 2, 2] y)
<float[8, 4, 3, 3] k1, float[8] b1, float[8, 1, 3, 3] k2, float[6, 4, 1, 1] k3>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <group = 8> (r1, k2)
    p = MaxPool <kernel_shape = [3, 3], strides = [3, 3]> (c2)
    y = Conv <group = 2> (p, k3)
}
"""
MLP = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[n, 8] x) => (float[n, 4] y)
<float[8, 16] w1, float[16] b1, float[4, 16] w2>
{ m = MatMul (x, w1) a = Add (b1, m) r = Relu (a) y = Gemm <transB = 1> (r, w2) }
"""
CLIPPED = """
<ir_version: 10, opset_import: ["" : 21]>
clipped (float[n, 8] x) => (float[n, 4] y)
<float[8, 16] w1, float[16, 4] w2, float low = {0}, float high = {6}>
{ m = MatMul (x, w1) r = Clip (m, low, high) y = MatMul (r, w2) }
"""
RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21]>
residual (float[n, 8] x) => (float[n, 8] y)
<float[8, 8] w1, float[8, 8] w2>
{ m = MatMul (x, w1) z = MatMul (m, w2) y = Add (m, z) }
"""
OUTPUT = """
<ir_version: 10, opset_import: ["" : 21]>
output (float[n, 8] x) => (float[n, 8] m, float[n, 8] y)
<float[8, 8] w1, float[8, 8] w2>
{ m = MatMul (x, w1) y = MatMul (m, w2) }
"""


def made(text, seed=0):
    model = ir.from_proto(model_from(text, seed))
    normalize(model)
    return model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CLIPPED, "the value comes from Clip, which cannot take the scales"),
        (RESIDUAL, "something else reads the value too, and would need it unscaled"),
        (OUTPUT, "something else reads the value too, and would need it unscaled"),
    ],
)
def test_leaves_alone(text, reason):
    model = made(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Equalize().run(model, NullContext())
    assert outcome.changed == 0
    assert reason in {d.reason for d in outcome.declined}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("text", "pairs"), [(CHAIN, 2), (MLP, 1)])
def test_outputs_stay_and_a_second_run_changes_nothing(text, pairs):
    model = made(text)
    before = model.clone()
    assert Equalize().run(model, NullContext()).stats["pairs"] == pairs
    shape = {"chain": (4, 4, 8, 8), "mlp": (4, 8)}[model.graph.name]
    x = np.random.default_rng(1).normal(0, 2, shape).astype(np.float32)
    want, got = (
        run_session(m, optimize=False).run(None, {"x": x})[0] for m in (before, model)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert Equalize().run(model, NullContext()).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_both_layers_have_the_same_range_for_each_channel():
    model = made(CHAIN)
    Equalize().run(model, NullContext())
    k1, k2, k3 = (
        np.abs(model.graph.initializers[n].const_value.numpy())
        for n in ("k1", "k2", "k3")
    )
    np.testing.assert_allclose(
        k1.max(axis=(1, 2, 3)), k2.max(axis=(1, 2, 3)), rtol=2.5e-3
    )
    read = k3.reshape(2, 3, 4).max(axis=1).reshape(-1)
    np.testing.assert_allclose(k2.max(axis=(1, 2, 3)), read, rtol=2.5e-3)


def test_a_channel_of_zeros_keeps_its_weights():
    model = made(MLP)
    value = model.graph.initializers["w1"]
    array = value.const_value.numpy().copy()
    array[:, 5] = 0
    value.const_value = ir.Tensor(array, name="w1")
    before = model.graph.initializers["w2"].const_value.numpy().copy()
    Equalize().run(model, NullContext())
    after = model.graph.initializers["w2"].const_value.numpy()
    np.testing.assert_array_equal(after[:, 5], before[:, 5])
    assert (after[:, 4] != before[:, 4]).any()


ACROSS_RANKS = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[4, 4, 8, 8] x, float[2, 4, 4, 6, 6] g) => (float[2, 4, 4, 6, 6] y)
<float[4, 4, 3, 3] u, float[4, 4, 1, 1, 1] w>
{ m = Conv (x, u) h = Mul (g, m) y = Conv (h, w) }
"""


def test_a_product_of_images_of_other_ranks_is_left_alone():
    # the first axis behind the batch is another one in the product
    model = ir.from_proto(model_from(ACROSS_RANKS))
    normalize(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert Equalize().run(model, NullContext()).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
