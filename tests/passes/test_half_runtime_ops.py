"""float16 of ONNX Runtime's own operators: each in the table runs, close to float32, no islands."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import Names
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._quant.fp16.convert import to_half
from onnx_opt.passes._quant.fp16.runtime_ops import TAKES_HALF

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
LENGTHS = "int32[1] l = {2}, int32 t = {3}"

MODELS = {
    "Attention": "(float[1, 3, 8] x, float[8, 24] w, float[24] b) => (float[1, 3, 8] y)"
    "{ y = com.microsoft.Attention <num_heads = 2> (x, w, b) }",
    "BiasGelu": "(float[2, 4] x, float[4] b) => (float[2, 4] y)"
    "{ y = com.microsoft.BiasGelu (x, b) }",
    "EmbedLayerNormalization": "(float[4, 8] w, float[3, 8] p, float[8] g, float[8] b)"
    " => (float[1, 3, 8] y) <int32[1, 3] i = {1, 3, 2}>"
    "{ y, m = com.microsoft.EmbedLayerNormalization (i, , w, p, , g, b) }",
    "FastGelu": "(float[2, 4] x, float[4] b) => (float[2, 4] y)"
    "{ y = com.microsoft.FastGelu (x, b) }",
    "FusedConv": "(float[1, 2, 5, 5] x, float[3, 2, 3, 3] w, float[3] b)"
    ' => (float[1, 3, 3, 3] y) { y = com.microsoft.FusedConv <activation = "Relu"> (x, w, b) }',
    "FusedGemm": "(float[2, 4] x, float[4, 3] w, float[3] b) => (float[2, 3] y)"
    '{ y = com.microsoft.FusedGemm <activation = "Relu"> (x, w, b) }',
    "FusedMatMul": "(float[2, 4] x, float[3, 4] w) => (float[2, 3] y)"
    "{ y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (x, w) }",
    "GatherBlockQuantized": "(float[4, 1] s) => (float[2, 16] y)"
    "<uint8[4, 16] w, int64[2] i = {2, 0}> { y = com.microsoft.GatherBlockQuantized"
    " <bits = 8, block_size = 16, quantize_axis = 1> (w, i, s) }",
    "Gelu": "(float[2, 4] x) => (float[2, 4] y) { y = com.microsoft.Gelu (x) }",
    "GroupQueryAttention": "(float[1, 3, 64] q, float[1, 3, 32] k, float[1, 3, 32] v,"
    " float[1, 2, 0, 16] a, float[1, 2, 0, 16] b, float[8, 8] c, float[8, 8] s)"
    " => (float[1, 3, 64] y, float[1, 2, 3, 16] d, float[1, 2, 3, 16] e)"
    f"<{LENGTHS}> {{ y, d, e = com.microsoft.GroupQueryAttention"
    " <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (q, k, v, a, b, l, t, c, s) }",
    "MatMulNBits": "(float[2, 32] x, float[4, 1] s) => (float[2, 4] y) <uint8[4, 1, 16] w>"
    "{ y = com.microsoft.MatMulNBits <K = 32, N = 4, bits = 4, block_size = 32> (x, w, s) }",
    "MultiHeadAttention": "(float[1, 3, 8] q, float[1, 5, 8] k, float[1, 5, 8] v)"
    " => (float[1, 3, 8] y) { y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) }",
    "QuickGelu": "(float[2, 4] x) => (float[2, 4] y) { y = com.microsoft.QuickGelu (x) }",
    "RotaryEmbedding": "(float[1, 2, 3, 16] x, float[8, 8] c, float[8, 8] s)"
    " => (float[1, 2, 3, 16] y) <int64[1, 3] p = {0, 1, 2}>"
    "{ y = com.microsoft.RotaryEmbedding (x, p, c, s) }",
    "SkipLayerNormalization": "(float[1, 3, 8] x, float[1, 3, 8] s, float[8] g, float[8] b)"
    " => (float[1, 3, 8] y) { y = com.microsoft.SkipLayerNormalization (x, s, g, b) }",
    "SkipSimplifiedLayerNormalization": "(float[1, 3, 8] x, float[1, 3, 8] s, float[8] g)"
    " => (float[1, 3, 8] y, float[1, 3, 8] z)"
    "{ y, , , z = com.microsoft.SkipSimplifiedLayerNormalization (x, s, g) }",
    "SimplifiedLayerNormalization": "(float[1, 3, 8] x, float[8] g) => (float[1, 3, 8] y)"
    "{ y = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (x, g) }",
}
"""By operator; a value that is declared without numbers is random."""


def test_the_table_is_covered():
    assert set(MODELS) == {op for _, op in TAKES_HALF}


@pytest.mark.parametrize("op", MODELS)
def test_runs_in_float16(op):
    model = ir.from_proto(parsed(op))
    before = ir.to_proto(model)
    outcome = to_half(model, NullContext(), Names(model))
    after = ir.to_proto(model)
    assert (outcome.changed, outcome.declined) == (1, [])
    (node,) = (each for each in after.graph.node if each.op_type == op)
    producers = {name for each in after.graph.node for name in each.output}
    # every float that it reads was cast, every one that it makes is cast back
    floats = {
        info.name for info in after.graph.input if info.type.tensor_type.elem_type == 1
    }
    assert not floats & set(node.input)
    assert set(node.output) - {""} <= producers
    sessions = [run_session(proto) for proto in (before, after)]
    random = np.random.default_rng(0)
    feeds = {
        info.name: random.normal(0, 1, info.shape).astype(np.float32)
        for info in sessions[0].get_inputs()
    }
    outputs = [session.run(None, feeds) for session in sessions]
    for wanted, got in zip(*outputs, strict=True):
        assert np.ptp(wanted) > 0
        np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=2e-2)


def parsed(op):
    proto = onnx.parser.parse_model(f"{HEADER}g {MODELS[op]}")
    random = np.random.default_rng(1)
    made = {name for node in proto.graph.node for name in node.output}
    for info in proto.graph.value_info:
        if info.name not in made:
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            codes = random.integers(100, 156, shape, np.uint8)
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(codes, info.name)
            )
    del proto.graph.value_info[:]
    return proto


def test_sums_of_squares_in_float16_stay_single():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) <float[4] s = {1, 2, 3, 4}> {
        a = Relu (x)
        y = LayerNormalization <stash_type = 10> (a, s)
        z = LayerNormalization (a, s)
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    normalize(model)
    outcome = to_half(model, NullContext(), Names(model))
    assert [(each.where, each.reason) for each in outcome.declined] == [
        (
            "LayerNormalization y",
            "its sums of squares are not asked for in float32 (stash_type)",
        )
    ]
