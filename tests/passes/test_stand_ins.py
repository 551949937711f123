"""Shapes of ONNX Runtime's own operators, and of counted positions, behind inference."""

import onnx
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._core.normalize import normalize

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
X = "float[N, L, 8] x"


def shapes_behind(signature, body, opset=21):
    """Shapes of the values that nodes make, by name."""
    graph = f"g ({signature}) => (float[a] never) {{ {body} never = Neg (end) }}"
    text = f"{HEADER.format(opset=opset)} {graph}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    for value in model.graph.outputs:
        value.shape = None
    assert refresh_shapes(model)
    return {
        value.name: str(value.shape) for node in model.graph for value in node.outputs
    }


@pytest.mark.parametrize(
    ("signature", "node", "shape"),
    [
        (X, "SkipLayerNormalization (x, x, s, s)", "[N,L,8]"),
        (X, "SkipSimplifiedLayerNormalization (x, x, s)", "[N,L,8]"),
        (X, "MultiHeadAttention <num_heads = 2> (x, x, x)", "[N,L,8]"),
        # as wide as the values, not as the queries
        (X, "MultiHeadAttention <num_heads = 2> (x, x, wide)", "[N,L,12]"),
        (X, "MultiHeadAttention <num_heads = 2> (x, four, four)", "[N,L,6]"),
        (X, "MultiHeadAttention <num_heads = 2> (x, x, any)", "None"),
        (
            X,
            "MatMulNBits <K = 8, N = 5, bits = 4, block_size = 16> (x, w, s)",
            "[N,L,5]",
        ),
        (
            X,
            "GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, k, k, , , l, t)",
            "[N,L,8]",
        ),
        (
            X,
            "GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, , , , , l, t)",
            "[N,L,4]",
        ),
        ("float[N, h, L, 8] x", "RotaryEmbedding (x, p, s, s)", "[N,h,L,8]"),
    ],
)
def test_the_operators_of_the_runtime(signature, node, shape):
    further = ", float[8] s, uint8[5, 1, 8] w, float[N, L, 4] k, int32[N] l, int32 t"
    further += ", int64[1] p, float[N, T, 12] wide, float[N, 2, T, 3] four, float[] any"
    found = shapes_behind(signature + further, f"end = com.microsoft.{node}")
    assert found["end"] == shape


def test_the_sum_beside_a_normalisation():
    body = "y, , , end = com.microsoft.SkipSimplifiedLayerNormalization (x, x, s)"
    found = shapes_behind(f"{X}, float[8] s", body)
    assert (found["y"], found["end"]) == ("[N,L,8]", "[N,L,8]")


@pytest.mark.parametrize("opset", [13, 21])
def test_positions_are_as_many_as_the_axis_that_is_counted(opset):
    body = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    s = Shape (x)
    n = Gather <axis = 0> (s, one)
    p = Range (zero, n, one)
    end = Cast <to = 1> (p)
    """
    graph = f"g ({X}) => (float[a] never) {{ {body} never = Neg (end) }}"
    text = f"{HEADER.format(opset=opset)} {graph}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    # constants are initializers then
    normalize(model)
    refresh_shapes(model)
    (positions,) = (node for node in model.graph if node.op_type == "Range")
    assert str(positions.outputs[0].shape) == "[L]"
