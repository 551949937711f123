"""remove-unused: what someone needs, first; then what nobody does."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import model_of, ops_of, run_exact
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.remove_unused import RemoveUnused

STAYS = {
    "an unused input": "g (float[2] x, float[3] z) => (float[2] y) { y = Neg (x) }",
    "an unused input with a default": "g (float[2] x, float[1] z) => (float[2] y) <float[1] "
    "z = {1}> { y = Neg (x) }",
    "a used mask": "g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout (x) }",
    "values captured by a branch": """
        g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
            h = Neg (x)
            y = If (c) <then_branch = t () => (float[2] a) { a = Mul (h, w) },
                        else_branch = e () => (float[2] b) { b = Exp (x) }>
        }""",
    "an unused output that is not optional": """
        g (float[4] x) => (float[2] y) { y, z = Split <num_outputs: int = 2> (x) }""",
    "statistics of a training BatchNormalization": """
        g (float[4, 2] x) => (float[4, 2] y) {
            w = Constant <value_floats = [1.0, 2.0]> ()
            y, m, v = BatchNormalization <training_mode: int = 1> (x, w, w, w, w)
        }""",
    "statistics of a training BatchNormalization before opset 14": """
        <ir_version: 7, opset_import: ["" : 13]>
        g (float[4, 2] x) => (float[4, 2] y) {
            w = Constant <value_floats = [1.0, 2.0]> ()
            y, m, v, sm, sv = BatchNormalization (x, w, w, w, w)
        }""",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    model, outcome = run_exact(RemoveUnused(), STAYS[name])
    assert outcome.changed == 0
    assert len(model.graph.initializers) == any(
        word in name for word in ("default", "branch", "training")
    )


def test_nodes_and_what_only_they_use():
    text = """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}>
    { y = Neg (x)  a = Mul (x, w)  b = Exp (a) }"""
    model, outcome = run_exact(RemoveUnused(), text)
    assert ops_of(model) == ["Neg"]
    assert not model.graph.initializers
    assert outcome.stats == {
        "nodes": 2,
        "initializers": 2,
        "outputs": 0,
        "functions": 0,
    }


def test_a_branch_and_what_it_captured():
    text = """
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        h = Neg (x)
        k = If (c) <then_branch = t () => (float[2] a) { a = Mul (h, w) },
                    else_branch = e () => (float[2] b) { b = Exp (x) }>
        y = Relu (x)
    }"""
    model, outcome = run_exact(RemoveUnused(), text)
    assert ops_of(model) == ["Relu"]
    assert outcome.stats["initializers"] == 1


def test_inside_a_loop_body():
    text = """
    g (float[2] x, int64 n) => (float[2] y) <bool c = {1}> {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] s2)
            <float one = {1}> { k2 = Identity (k)  u = Add (s, one)  s2 = Neg (s) }>
    }"""
    model, outcome = run_exact(RemoveUnused(), text, {"n": np.array(3)})
    assert ops_of(model) == ["Loop", "Identity", "Neg"]
    assert outcome.stats["initializers"] == 1


def test_optional_outputs_at_the_end_and_in_the_middle():
    text = """g (float[5, 2, 3] x) => (float[1, 2, 4] h)
    <float[1, 16, 3] w = {48}, float[1, 16, 4] r = {64}> { y, h,
        c = LSTM <hidden_size: int = 4> (x, w, r) }"""
    zeros = {
        "w": "{" + ", ".join(["0.1"] * 48) + "}",
        "r": "{" + ", ".join(["0.2"] * 64) + "}",
    }
    text = text.replace("{48}", zeros["w"]).replace("{64}", zeros["r"])
    model, outcome = run_exact(RemoveUnused(), text)
    assert [o.name for o in model.graph[0].outputs] == ["", "h"]
    assert outcome.stats["outputs"] == 2


def test_functions_and_opset_imports():
    text = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1, "gone" : 3]>
    g (float[2] x) => (float[2] y) { y = Neg (x) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]>
    unused (a) => (b) { b = own.inner (a) }
    <domain: "own", opset_import: ["" : 21]>
    inner (a) => (b) { b = Exp (a) }
    """
    model = model_of(text)
    outcome = RemoveUnused().run(model, NullContext())
    assert outcome.stats["functions"] == 2
    assert not model.functions
    assert model.opset_imports == {"": 21}


def test_a_function_that_is_called_stays():
    text = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.twice (x) }
    <domain: "own", opset_import: ["" : 21]>
    twice (a) => (b) { c = Exp (a)  b = Add (a, a) }
    """
    model = model_of(text)
    outcome = RemoveUnused().run(model, NullContext())
    assert outcome.stats["nodes"] == 1
    assert [node.op_type for node in model.functions[("own", "twice", "")]] == ["Add"]
    assert isinstance(model.graph, ir.Graph)
