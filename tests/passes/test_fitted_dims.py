"""Lengths that operators ask for of the open dims of inputs."""

import onnx_ir as ir
import pytest
from exactness import HEADER
from onnx_opt.passes._core.fitted_dims import fitted_dims
from sample_models import model_from


def model_of(text):
    return ir.from_proto(model_from(HEADER + text))


FITTED = {
    "nothing asks": ("(float[N,K] x) => (float[N,K] y) { y = Relu (x) }", ["N", "K"]),
    "a weight": (
        "(float[N,K] x) => (float[N,5] y) <float[12,5] w> { y = MatMul (x, w) }",
        ["N", 12],
    ),
    "a dim without a name": (
        "(float[?,?] x) => (float[?,5] y) <float[12,5] w> { y = MatMul (x, w) }",
        ["#0", 12],
    ),
    "behind other operators": (
        """(float[N,K] x) => (float[N,5] y) <float[12,5] w>
        { r = Relu (x)  t = Transpose <perm = [0, 1]> (r)  y = MatMul (t, w) }""",
        ["N", 12],
    ),
    "a vector": (
        "(float[K] x) => (float[5] y) <float[12,5] w> { y = MatMul (x, w) }",
        [12],
    ),
    "on the left": (
        "(float[K,N] x) => (float[5,N] y) <float[5,12] w> { y = MatMul (w, x) }",
        [12, "N"],
    ),
    "stacked matrices": (
        "(float[H,N,K] x) => (float[H,N,5] y) <float[3,12,5] w> { y = MatMul (x, w) }",
        [3, "N", 12],
    ),
    "Gemm": (
        "(float[N,K] x) => (float[N,5] y) <float[12,5] w> { y = Gemm (x, w) }",
        ["N", 12],
    ),
    "Gemm, transposed": (
        """(float[K,N] x) => (float[N,5] y) <float[5,12] w>
        { y = Gemm <transA = 1, transB = 1> (x, w) }""",
        [12, "N"],
    ),
    "Conv": (
        "(float[N,C,H,W] x) => (float[N,5,?,?] y) <float[5,7,3,3] w> { y = Conv (x, w) }",
        ["N", 7, "H", "W"],
    ),
    "Conv in groups": (
        """(float[N,C,H] x) => (float[N,6,?] y) <float[6,2,3] w>
        { y = Conv <group = 3> (x, w) }""",
        ["N", 6, "H"],
    ),
    "ConvTranspose": (
        "(float[N,C,H] x) => (float[N,2,?] y) <float[6,2,3] w> { y = ConvTranspose (x, w) }",
        ["N", 6, "H"],
    ),
    "InstanceNormalization": (
        "(float[N,C,H] x) => (float[N,C,H] y) <float[4] s> { y = InstanceNormalization (x, s, s) }",
        ["N", 4, "H"],
    ),
    "LayerNormalization": (
        "(float[N,T,D] x) => (float[N,T,D] y) <float[6] s> { y = LayerNormalization (x, s) }",
        ["N", "T", 6],
    ),
    "LSTM": (
        """(float[T,N,K] x) => (float[?,?,?,?] y) <float[1,8,3] w, float[1,8,2] r>
        { y = LSTM <hidden_size = 2> (x, w, r) }""",
        ["T", "N", 3],
    ),
    "Add": (
        "(float[N,K] x) => (float[N,6] y) <float[6] b> { y = Add (x, b) }",
        ["N", 6],
    ),
    "1 is repeated": (
        "(float[N,K] x) => (float[N,K] y) <float[1] b> { y = Add (x, b) }",
        ["N", "K"],
    ),
    "Concat": (
        """(float[N,K] x) => (float[?,?] y) <float[2,6] c>
        { y = Concat <axis = 0> (x, c) }""",
        ["N", 6],
    ),
    "two that differ": (
        """(float[N,K] x) => (float[N,5] y, float[N,6] z) <float[12,5] w, float[6] b>
        { y = MatMul (x, w)  z = Add (x, b) }""",
        ["N", 12],
    ),
    "in a branch": (
        """(float[N,K] x, bool c) => (float[?,?] y) <float[12,5] w> {
        y = If (c) <then_branch = t () => (float[?,?] a) { a = MatMul (x, w) },
                    else_branch = e () => (float[?,?] b) { b = Identity (x) }> }""",
        ["N", 12],
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_lengths_of_an_input(name):
    graph, expected = FITTED[name]
    model = model_of(f"g {graph}")
    before = model.graph.inputs[0].shape.copy()
    assert fitted_dims(model)["x"] == expected
    assert model.graph.inputs[0].shape == before


def test_symbols_that_must_be_equal_are_one():
    model = model_of("""g (float[N,K] x, float[M,5] z, float[?,?] u) => (float[N,5] y, float[?,?] v)
    { y = MatMul (x, z)  v = MatMul (u, y) }""")
    assert fitted_dims(model) == {"x": ["N", "K"], "z": ["K", 5], "u": ["#0", "N"]}


def test_an_input_of_unknown_rank_is_left_out():
    model = model_of("g (float[N] x, float z) => (float[N] y) { y = Add (x, z) }")
    model.graph.inputs[0].shape = None
    assert fitted_dims(model) == {"z": []}
