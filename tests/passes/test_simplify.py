"""simplify: what the passes do together that none does alone, its fixed point, and its speed."""

import time

import numpy as np
import onnx_ir as ir
import pytest
from exactness import ops_of, run_exact
from onnx import helper
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.simplify import Simplify

HIDDEN_BATCHNORM = """
g (float[batch, 2, 4, 4] x) => (float[batch, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] g = {1, 2}, float[2] b = {3, 4}, double[2] m = {5,
    6}, float v = {2},
 float zero = {0}, int64[1] one = {1}> {
    s = Shape <start: int = 0, end: int = 1> (w)
    t = Expand (s, one)
    z = CastLike (zero, x)
    k = Expand (z, t)
    h = Conv (x, w, k)
    mean = Cast <to: int = 1> (m)
    variance = Expand (v, t)
    n = BatchNormalization (h, g, b, mean, variance)
    y = Relu (n)
}"""


def test_batchnorm_behind_casts_and_expansions_is_found():
    model, outcome = run_exact(Simplify(), HIDDEN_BATCHNORM)
    assert ops_of(model) == ["Conv", "Relu"]
    assert (outcome.stats["nodes_before"], outcome.stats["nodes_after"]) == (9, 2)


def test_dynamic_dims_stay_dynamic():
    model, _ = run_exact(Simplify(), HIDDEN_BATCHNORM)
    assert [str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch,2,4,4]"
    ] * 2


ATTENTION_SHAPES = """
g (float[batch, seq, 12] x) => (float[b, s, d] y)
<int64 zero = {0}, int64 one = {1}, int64[1] a = {0}, int64[1] heads = {3}, int64[1] rest = {4},
    int64[1] all = {12}> {
    s1 = Shape (x)
    i = Gather (s1, zero)
    iu = Unsqueeze (i, a)
    s2 = Shape (x)
    j = Gather (s2, one)
    ju = Unsqueeze (j, a)
    t1 = Concat <axis: int = 0> (iu, ju, heads, rest)
    r = Reshape (x, t1)
    p = Transpose <perm = [0, 2, 1, 3]> (r)
    e = Exp (p)
    q = Transpose <perm = [0, 2, 1, 3]> (e)
    t2 = Concat <axis: int = 0> (iu, ju, all)
    y = Reshape (q, t2)
}"""


def test_shape_arithmetic_of_attention_goes():
    model, _ = run_exact(Simplify(), ATTENTION_SHAPES)
    assert ops_of(model) == ["Reshape", "Transpose", "Exp", "Transpose", "Reshape"]


FUSED_BY_THE_RUNTIME = [
    "h = HardSwish (x)  y = Neg (h)",
    "h = Gelu (x)  y = Neg (h)",
    "h = LayerNormalization (x, g)  y = Neg (h)",
    "h = Softmax (x)  y = Neg (h)",
    "h = MatMul (x, w)  y = Add (h, g)",
]


@pytest.mark.parametrize("body", FUSED_BY_THE_RUNTIME)
def test_what_the_runtime_fuses_is_not_split(body):
    text = f"""g (float[batch, 2] x) => (float[batch, 2] y)
    <float[2] g = {{1, 2}}, float[2, 2] w = {{1, 2, 3, 4}}> {{ {body} }}"""
    model, _ = run_exact(Simplify(), text)
    assert ops_of(model) == [
        line.split("= ")[1].split(" (")[0] for line in body.split("  ")
    ]


def test_interface_is_kept_where_everything_folds_away():
    text = """g (float[2] x, float[3] unused, float[1] d) => (float[2] y, float[2] same,
        float[2] constant)
    <float[1] d = {1}, float[2] c = {1, 2}>
    { h = Identity (x)  y = Neg (h)  same = Identity (x)  n = Neg (c)  constant = Identity (n) }"""
    model, _ = run_exact(Simplify(), text)
    assert sorted(ops_of(model)) == ["Identity", "Neg", "Neg"]
    assert [v.name for v in model.graph.inputs] == ["x", "unused", "d"]


def test_a_function_is_inlined_and_simplified():
    text = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { h = own.scaled (x)  e = Exp (h)  y = own.scaled (e) }
    <domain: "own", opset_import: ["" : 21]>
    scaled (a) => (b) { one = Constant <value_float: float = 1.0> ()  c = Mul (a, one)
        b = Neg (c) }
    """
    model, _ = run_exact(Simplify(), text)
    assert ops_of(model) == ["Neg", "Exp", "Neg"]


def chain(length):
    nodes = []
    for index in range(length):
        inputs = [f"v{index}"] if index % 2 else [f"v{index}", "one"]
        nodes.append(
            helper.make_node("Relu" if index % 2 else "Add", inputs, [f"v{index + 1}"])
        )
    ports = [
        helper.make_tensor_value_info(name, 1, ["n", 4])
        for name in ("v0", f"v{length}")
    ]
    one = helper.make_tensor("one", 1, [1], [1.0])
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], [one])
    return ir.from_proto(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
    )


@pytest.mark.slow
def test_twenty_thousand_nodes_take_less_than_ten_seconds():
    model = chain(20_000)
    start = time.process_time()
    Simplify().run(model, NullContext())
    assert time.process_time() - start < 10
    assert len(model.graph) == 20_000


def test_the_same_model_gives_the_same_bytes():
    results = set()
    for _ in range(2):
        model, _ = run_exact(Simplify(), ATTENTION_SHAPES)
        results.add(ir.to_proto(model).SerializeToString(deterministic=True))
    assert len(results) == 1


def test_numbers_of_a_fold_are_those_of_the_runtime():
    text = """g (float[4] x) => (float[4] y) <float[4] c = {0.1, -2, 30, 0}>
    { a = Tanh (c)  b = Erf (a)  d = Softmax (b)  e = Exp (d)  y = Mul (x, e) }"""
    model, _ = run_exact(
        Simplify(), text, {"x": np.array([1, 10, 100, 1000], np.float32)}
    )
    assert ops_of(model) == ["Mul"]
