"""model_stats: unknown figures are None, first; then counts by hand."""

import pytest
from exactness import model_of
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.stats import model_stats


def stats_of(text):
    model = model_of(text)
    normalize(model)
    return model_stats(model)


def test_unknown_shapes_give_unknown_macs():
    stats = stats_of("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[n] y) { h = own.Thing (x)  y = MatMul (h, h) }""")
    assert stats.macs is None
    assert stats.ops == {"own.Thing": 1, "MatMul": 1}


def test_nonzero_is_counted_on_request_only():
    text = "g (float[2] x) => (float[2] y) <float[2] w = {0, 2}> { y = Mul (x, w) }"
    assert model_stats(model_of(text), count_nonzero=False).nonzero is None
    assert model_stats(model_of(text)).nonzero == 1


def test_shapes_and_masks_are_no_parameters():
    stats = stats_of("""g (float[2, 3] x) => (float[3, 2] y) <int64[2] s = {3, 2},
        float[2] w = {1, 0}>
    { h = Reshape (x, s)  y = Mul (h, w) }""")
    assert (stats.params, stats.nonzero) == (2, 1)


def test_constants_count_before_they_are_lifted():
    text = (
        "g (float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 0}> ()  y = "
        "Mul (x, w) }"
    )
    stats = model_stats(model_of(text))
    assert (stats.params, stats.nonzero, stats.nodes) == (2, 1, 2)


@pytest.mark.parametrize(
    ("signature", "body", "macs"),
    [
        (
            "(float[batch, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[b, 4, 6, 6] y)",
            "y = Conv (x, w)",
            4 * 6 * 6 * 27,
        ),
        (
            "(float[2, 4, 8, 8] x, float[4, 1, 3, 3] w) => (float[2, 4, 6, 6] y)",
            "y = Conv <group: int = 4> (x, w)",
            2 * 4 * 6 * 6 * 9,
        ),
        (
            "(float[1, 3, 4, 4] x, float[3, 5, 2, 2] w) => (float[1, 5, 8, 8] y)",
            "y = ConvTranspose <strides = [2, 2]> (x, w)",
            3 * 16 * 20,
        ),
        ("(float[n, 7] x, float[7, 5] w) => (float[n, 5] y)", "y = MatMul (x, w)", 35),
        ("(float[2, 3, 7] x, float[7] w) => (float[2, 3] y)", "y = MatMul (x, w)", 42),
        (
            "(float[7, 2] x, float[5, 7] w) => (float[2, 5] y)",
            "y = Gemm <transA: int = 1, transB: int = 1> (x, w)",
            70,
        ),
        (
            "(float[9, 2, 3] x, float[1, 16, 3] w, float[1, 16, 4] r) => (float[9, 1, 2, 4] y)",
            "y = LSTM <hidden_size: int = 4> (x, w, r)",
            9 * 2 * 16 * 7,
        ),
        (
            "(float[9, 2, 3] x, int8[1, 3, 16] w, int8[1, 4, 16] r, float[1, 16] s, int8[1, 16] z) "
            "=> (float[9, 1, 2, 4] y)",
            "y = com.microsoft.DynamicQuantizeLSTM <hidden_size: int = 4> "
            "(x, w, r, , , , , , s, z, s, z)",
            9 * 2 * 16 * 7,
        ),
        ("(float[2] x) => (float[2] y)", "y = Neg (x)", 0),
        # 3 x 5 scores of 4 products each, and as many for the result, for two heads
        (
            "(float[n, 3, 8] x, float[n, 5, 8] k) => (float[n, 3, 8] y)",
            "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, k, k)",
            2 * 2 * 3 * 5 * 4,
        ),
        # 3 heads of every sample side by side: (n * 3, 4, 5) by (5, 6)
        (
            "(float[n, 3, 4, 5] x, float[5, 6] w) => (float[m, 4, 6] y)",
            "s = Constant <value_ints = [-1, 4, 5]> ()  r = Reshape (x, s)  y = MatMul (r, w)",
            3 * 4 * 5 * 6,
        ),
        # the same, with a target that the graph computes
        (
            "(float[n, 3, l, 5] x, float[5, 6] w) => (float[m, p, 6] y)",
            """d = Shape (x)  b = Constant <value_ints = [2, 3]> ()  e = Gather (d, b)
            f = Constant <value_ints = [-1]> ()  s = Concat <axis = 0> (f, e)
            r = Reshape (x, s)  y = MatMul (r, w)""",
            3 * 5 * 6,
        ),
        # behind a target that nobody knows, the weight tells how many are summed
        (
            "(float[n, 35] x, int64[2] s, float[7, 5] w) => (float[p, 5] y)",
            "r = Reshape (x, s)  y = MatMul (r, w)",
            35,
        ),
        # one element is too short for the window: as well as it can be told
        (
            "(float[n, 3, h, w] x, float[4, 3, 3, 3] k) => (float[n, 4, p, q] y)",
            "y = Conv (x, k)",
            4 * 27,
        ),
    ],
)
def test_multiply_accumulates(signature, body, macs):
    assert stats_of(f"g {signature} {{ {body} }}").macs == macs


def test_the_larger_branch_counts():
    stats = stats_of("""
    g (float[2, 3] x, float[3, 4] v, float[3, 9] w, bool c) => (float[2, n] y) {
        y = If (c) <then_branch = t () => (float[2, 4] a) { a = MatMul (x, v) },
                    else_branch = e () => (float[2, 9] b) { b = MatMul (x, w) }>
    }""")
    assert stats.macs == 54
    assert stats.nodes == 3


def test_shapes_that_the_file_does_not_state_are_inferred_on_a_clone():
    model = model_of("""
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[1, 4] x) => (float[1, 2] y) <float[4, 3] a = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3,
        2] b = {1,2,3,4,5,6}>
    { h = MatMul (x, a)  y = MatMul (h, b) }
    """)
    hidden = model.graph[0].outputs[0]
    hidden.shape = None
    assert model_stats(model).macs == 18
    assert hidden.shape is None


@pytest.mark.parametrize(
    ("body", "params", "macs"),
    [
        (
            """y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0],
            intercepts = [4.0]> (x)""",
            4,
            3,
        ),
        # two support vectors of three features, then a sum of two products
        (
            """y = ai.onnx.ml.SVMRegressor <coefficients = [1.0, 2.0], n_supports = 2, rho = [0.0],
            support_vectors = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> (x)""",
            9,
            8,
        ),
        # how many factors a scaler has is no matter of products
        ("y = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x)", 2, 0),
    ],
)
def test_numbers_in_attributes_count(body, params, macs):
    text = f"""<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>
    g (float[n, 3] x) => (float[n, m] y) {{ {body} }}"""
    stats = stats_of(text)
    assert (stats.params, stats.macs) == (params, macs)


def test_layers_behind_a_scaler_are_counted():
    model = model_of("""<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>
    g (float[n, 3] x) => (float[n, m] y)
    <float[3, 1] w = {1, 2, 3}>
    { s = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x)  y = MatMul (s, w) }""")
    assert model_stats(model).macs == 3
