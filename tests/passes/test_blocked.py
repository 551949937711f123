"""Blocked weight-only quantization: exact values, what ONNX Runtime makes of it, and what has no
blocked form.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import quant_models
from exactness import model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt import RefusedError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import Names
from onnx_opt.passes._core.lazy import DerivedTensor
from onnx_opt.passes._core.targets import TARGETS
from onnx_opt.passes._quant.block_grids import LEVELS
from onnx_opt.passes._quant.blocked import (
    block_scales,
    insert_blocks,
    quantize_blocks,
    why_not_blocked,
)
from onnx_opt.passes._quant.engine import LayerCase
from onnx_opt.passes._quant.layers import find_layers
from onnx_opt.passes.quant import Quant

MATMUL = "m (float[n, {k}] x, float[{k}, {n}] w) => (float[n, {n}] y) {{ y = MatMul (x, w) }}"
GEMM = (
    "m (float[n, {k}] x, float[{n}, {k}] w) => (float[n, {n}] y) {{ y = Gemm <transB = "
    "1> (x, w) }}"
)
SHARED = """
m (float[n, 32] x, float[32, 32] w) => (float[n, 32] y, float[n, 32] z)
{
    y = MatMul (x, w)
    z = Gemm <transB = 1> (y, w)
}
"""


def with_weight(text, weight, **sizes):
    """The model of a text with its input `w` turned into an initializer."""
    model = model_of(text.format(**sizes) if sizes else text)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.Tensor(weight, name="w")
    model.graph.register_initializer(value)
    return model


def layers_of(model):
    return find_layers(model.graph, TARGETS["cpu"].quant, (), ())[0]


def refusal(layer, bits, block):
    """The reason why a layer has no blocked form, of a run without data."""
    rules = TARGETS["cpu"].quant
    return why_not_blocked(
        LayerCase(
            layer,
            bits,
            block,
            named=False,
            has_data=False,
            calibrated=False,
            rules=rules,
        )
    )


def blocked(model, bits, block):
    stats = insert_blocks(model.graph, Names(model), layers_of(model), bits, block)
    del model.graph.initializers["w"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, stats


def run(proto, x, path=None, level=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if path is None:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    else:
        options.optimized_model_filepath = str(path)
    if level is not None:
        options.add_session_config_entry(
            "session.qdq_matmulnbits_accuracy_level", level
        )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def dequantized(proto):
    arrays = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float32)
        for t in proto.graph.initializer
    }
    node = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear")
    block = next(a.i for a in node.attribute if a.name == "block_size")
    q, scale = (arrays[name] for name in node.input)
    return q * np.repeat(scale, block, axis=0)[: len(q)]


@pytest.mark.parametrize(
    ("text", "bits", "block", "reason"),
    [
        (MATMUL, 3, 32, "blocked weights have 4 or 8 bits, not 3"),
        (MATMUL, 4, 24, "no kernel for blocks of 24"),
        (MATMUL, 4, 8, "no kernel for blocks of 8"),
        (
            "m (float[n, 8] x, float[8, 64] w) => (float[n, 64] y) {{ y = MatMul (x, w) }}",
            4,
            32,
            "its 8 inputs are fewer",
        ),
        (
            "m (float[n, 8] x, float[64, 8] w) => (float[n, 64] y) {{ y = Gemm "
            "<transB = 1> (x, w) }}",
            4,
            16,
            "its 8 inputs",
        ),
    ],
)
def test_says_why_not(text, bits, block, reason):
    shape = (64, 8) if "64, 8" in text else (8, 64) if "8, 64" in text else (32, 4)
    model = with_weight(text, np.ones(shape, np.float32), k=32, n=4)
    assert reason in refusal(layers_of(model)[0], bits, block)


def test_a_convolution_has_no_blocked_form():
    model = with_weight(
        "m (float[1, 32, 8, 8] x, float[4, 32, 1, 1] w) => (float[1, 4, 8, 8] y) { r "
        "= Conv (x, w)\n"
        " y = Softmax (r) }",
        np.ones((4, 32, 1, 1), np.float32),
    )
    assert [refusal(layer, 8, 32) for layer in layers_of(model)] == [
        "Conv has no kernel for blocked weights"
    ]


def test_int8_scales_are_the_largest_of_each_block_over_127():
    weight = np.zeros((48, 2), np.float32)
    weight[3, 0], weight[40, 0], weight[31, 1] = -12.7, 1.27, 0.127
    scales = block_scales(ir.Tensor(weight), 8, 32)
    np.testing.assert_allclose(scales, [[0.1, 0.001], [0.01, 1e-30]], rtol=1e-6)
    quantized = quantize_blocks(ir.Tensor(weight), scales, 8, 32).numpy()
    assert (quantized[3, 0], quantized[40, 0], quantized[31, 1]) == (-127, 127, 127)
    assert np.count_nonzero(quantized) == 3


def test_int4_uses_the_level_below_zero_for_the_largest_weight():
    weight = np.zeros((16, 2), np.float32)
    weight[:, 0] = weight[:, 1] = np.arange(-8, 8)
    weight[:, 1] *= -1
    scales = block_scales(ir.Tensor(weight), 4, 16)
    assert scales.tolist() == [[1.0, -1.0]]
    quantized = quantize_blocks(ir.Tensor(weight), scales, 4, 16).numpy().astype(int)
    assert quantized.tolist() == [[v, v] for v in range(-8, 8)]


@pytest.mark.parametrize(
    ("k", "block"), [(64, 32), (40, 32), (100, 16), (20, 128), (128, 128)]
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("text", [MATMUL, GEMM])
@pytest.mark.needs("onnxruntime", "1.26", "older ones do not fuse it")
def test_onnx_runtime_computes_the_dequantized_product_and_fuses_it(
    text, bits, k, block, tmp_path
):
    random = np.random.default_rng(k)
    weight = random.normal(size=(k, 24) if text is MATMUL else (24, k)).astype(
        np.float32
    )
    proto, stats = blocked(with_weight(text, weight, k=k, n=24), bits, block)
    assert stats == {"layers": 1, "weights": 24 * k, "pairs": 0}
    x = random.normal(size=(3, k)).astype(np.float32)
    reference = x @ dequantized(proto)
    np.testing.assert_allclose(run(proto, x), reference, rtol=1e-5, atol=1e-5)
    fused = run(proto, x, tmp_path / "o.onnx")
    assert (
        np.square(fused - reference).sum() < 1e-3 * np.square(reference).sum()
    )  # activations rounded to 8 bits
    (node,) = onnx.load(tmp_path / "o.onnx").graph.node
    assert node.op_type == "MatMulNBits"
    assert {
        a.name: a.i for a in node.attribute if a.name in ("accuracy_level", "bits")
    } == {"accuracy_level": 4, "bits": bits}
    exact = run(proto, x, tmp_path / "o.onnx", level="1")
    np.testing.assert_allclose(exact, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "sqnr"), [(4, 20.0), (8, 40.0)])
def test_the_weights_stay_close(bits, sqnr):
    weight = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    proto, _ = blocked(with_weight(MATMUL, weight, k=256, n=64), bits, 32)
    noise = np.square(dequantized(proto) - weight).sum()
    assert 10 * np.log10(np.square(weight).sum() / noise) > sqnr


def test_a_weight_read_both_ways_is_stored_in_both_layouts_and_computed_right():
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    model = with_weight(SHARED, weight)
    proto, stats = blocked(model, 8, 32)
    assert stats["layers"] == 2
    assert (
        sum(t.data_type == onnx.TensorProto.INT8 for t in proto.graph.initializer) == 2
    )
    x = np.eye(32, dtype=np.float32)
    assert np.abs(run(proto, x) - weight).max() < 0.02


@pytest.mark.needs("onnxruntime", "1.22", "older ones do not fuse it")
def test_each_user_of_a_shared_weight_is_fused(tmp_path):
    text = (
        "m (float[n, 32] x, float[32, 32] w) => (float[n, 32] z) { y = MatMul (x, w)\n z "
        "= MatMul (y, w) }"
    )
    proto, stats = blocked(with_weight(text, np.eye(32, dtype=np.float32)), 4, 32)
    assert stats == {"layers": 2, "weights": 1024, "pairs": 0}
    run(proto, np.ones((1, 32), np.float32), tmp_path / "o.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == [
        "MatMulNBits",
        "MatMulNBits",
    ]


@pytest.mark.needs("onnxruntime", "1.22", "older ones do not fuse it")
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_activation_behind_a_layer_does_not_part_it_from_its_kernel(
    activation, tmp_path
):
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    m (float[n, 64] x) => (float[n, 64] y) {{
        a = MatMul (x, w)
        y = {activation} (a)
    }}
    """
    model = quant_models.model_of(text, w=quant_models.normal(64, 64))
    Quant("blocked").run(model, NullContext())
    path = tmp_path / "optimized.onnx"
    x = np.ones((2, 64), np.float32)
    run(ir.to_proto(model), x, path=path)
    nodes = onnx.load(path).graph.node
    assert [node.op_type for node in nodes] == ["MatMulNBits", "Max", activation]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [4, 8])
def test_refuses_a_weight_without_integer_form(bad, bits):
    weight = np.ones((32, 4), np.float32)
    weight[5, 2] = bad
    with pytest.raises(RefusedError, match="NaN or infinity"):
        block_scales(ir.Tensor(weight, name="w"), bits, 32)


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e30, -1e-30])
def test_extreme_weights_stay_finite(value):
    weight = np.full((32, 4), value, np.float32)
    proto, _ = blocked(with_weight(MATMUL, weight, k=32, n=4), 4, 32)
    assert np.isfinite(dequantized(proto)).all()
    assert np.isfinite(run(proto, np.ones((1, 32), np.float32))).all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 9),
    block=st.sampled_from([16, 32]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)
def test_both_layouts_agree_and_streaming_changes_nothing(
    rows, columns, block, bits, seed
):
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    lazy = DerivedTensor(ir.Tensor(weight), lambda part, start: part, ir.DataType.FLOAT)
    scales = block_scales(lazy, bits, block)
    turned = ir.Tensor(np.ascontiguousarray(weight.T))
    np.testing.assert_array_equal(
        block_scales(turned, bits, block, by_rows=True).T, scales
    )
    values = quantize_blocks(lazy, scales, bits, block).numpy().astype(int)
    other = (
        quantize_blocks(
            turned, np.ascontiguousarray(scales.T), bits, block, by_rows=True
        )
        .numpy()
        .astype(int)
    )
    np.testing.assert_array_equal(other.T, values)
    low, high = LEVELS[bits]
    assert low <= values.min() <= values.max() <= high


def test_a_weight_longer_than_one_streamed_block():
    weight = np.random.default_rng(0).normal(size=(1024, 600)).astype(np.float32)
    scales = block_scales(ir.Tensor(weight), 8, 32)
    np.testing.assert_allclose(
        scales, np.abs(weight.reshape(32, 32, 600)).max(1) / 127, rtol=1e-6
    )
    back = quantize_blocks(ir.Tensor(weight), scales, 8, 32).numpy() * np.repeat(
        scales, 32, axis=0
    )
    assert np.abs(back - weight).max() <= scales.max() / 2 + 1e-6
