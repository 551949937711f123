"""eliminate-common-subexpressions: what only looks equal, first; then what is."""

import time

import numpy as np
import pytest
from exactness import model_of, ops_of, run_exact
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.eliminate_common_subexpressions import (
    EliminateCommonSubexpressions,
)

STAYS = {
    "other attributes": "{ a = Elu <alpha: float = 1.0> (x) "
    " b = Elu <alpha: float = 2.0> (x)  y = Add (a, b) }",
    "other order of inputs": "<float c = {2}> { a = Sub (x, c)  b = Sub (c, x)  y = Add (a, b) }",
    "other constants of one element": "<float c = {2}, float d = {3}> "
    "{ a = Sub (x, c)  b = Sub (x, d)  y = Add (a, b) }",
    "constants of one element in other shapes": "<float c = {2}, float[1] d = {2}> "
    "{ a = Sub (x, c)  b = Sub (x, d)  y = Add (a, b) }",
    "equal constants of more elements": "<float[2] c = {2, 3}, float[2] d = {2, 3}> "
    "{ a = Sub (x, c)  b = Sub (x, d)  y = Add (a, b) }",
    "two outputs of the graph": "{ y = Neg (x)  z = Neg (x) }",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    outputs = "float[2] y, float[2] z" if "outputs" in name else "float[2] y"
    model, outcome = run_exact(
        EliminateCommonSubexpressions(), f"g (float[2] x) => ({outputs}) {STAYS[name]}"
    )
    assert outcome.changed == 0
    assert "Neg" in ops_of(model) or len(model.graph) == 3


def test_random_numbers_differ():
    model = model_of("""g (float[2] x) => (float[2] y)
    { a = RandomNormalLike (x)  b = RandomNormalLike (x)  y = Sub (a, b) }""")
    assert EliminateCommonSubexpressions().run(model, NullContext()).changed == 0


def test_ops_of_other_domains_stay():
    model = model_of("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { a = own.Noise (x)  b = own.Noise (x)  y = Sub (a, b) }""")
    assert EliminateCommonSubexpressions().run(model, NullContext()).changed == 0


def test_dequantized_weights_stay_one_for_each_user():
    text = """g (float[2] x) => (float[2] y) <int8[2] c = {1, 2}, float s = {0.5}>
    { a = DequantizeLinear (c, s)  b = DequantizeLinear (c, s)  h = Add (x, a)  y = Mul (h, b) }"""
    assert run_exact(EliminateCommonSubexpressions(), text)[1].changed == 0


def test_branches_do_not_share_with_each_other():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { p = Exp (x)  a = Neg (p) },
                    else_branch = e () => (float[2] b) { q = Exp (x)  b = Relu (q) }>
    }"""
    assert run_exact(EliminateCommonSubexpressions(), text)[1].changed == 0


def test_a_branch_does_not_share_with_what_comes_later():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        h = If (c) <then_branch = t () => (float[2] a) { p = Exp (x)  a = Neg (p) },
                    else_branch = e () => (float[2] b) { b = Relu (x) }>
        q = Exp (x)
        y = Add (h, q)
    }"""
    assert run_exact(EliminateCommonSubexpressions(), text)[1].changed == 0


MERGES = {
    "equal nodes": ("{ a = Exp (x)  b = Exp (x)  y = Add (a, b) }", ["Exp", "Add"]),
    "chains of equal nodes": (
        "{ a = Exp (x)  c = Neg (a)  b = Exp (x)  d = Neg (b)  y = Add (c, d) }",
        ["Exp", "Neg", "Add"],
    ),
    "commuted inputs": (
        "<float c = {2}> { a = Mul (x, c)  b = Mul (c, x)  y = Add (a, b) }",
        ["Mul", "Add"],
    ),
    "equal constants of one element": (
        "<float c = {2}, float d = {2}> { a = Sub (x, c)  b = Sub (x, d)  y = Add (a, b) }",
        ["Sub", "Add"],
    ),
    "equal attributes": (
        "{ a = Elu <alpha: float = 2.0> (x)  b = Elu <alpha: float = 2.0> (x)  y = Add (a, b) }",
        ["Elu", "Add"],
    ),
    "the second is the output": (
        "{ a = Exp (x)  y = Exp (x)  b = Neg (a) }",
        ["Exp", "Neg"],
    ),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges(name):
    body, expected = MERGES[name]
    model, _ = run_exact(
        EliminateCommonSubexpressions(), f"g (float[2] x) => (float[2] y) {body}"
    )
    assert ops_of(model) == expected
    assert [o.name for o in model.graph.outputs] == ["y"]


def test_a_branch_shares_with_what_comes_before():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        q = Exp (x)
        h = If (c) <then_branch = t () => (float[2] a) { p = Exp (x)  a = Neg (p) },
                    else_branch = e () => (float[2] b) { b = Relu (x) }>
        y = Add (h, q)
    }"""
    model, _ = run_exact(EliminateCommonSubexpressions(), text, {"c": np.array(True)})
    assert sorted(ops_of(model)) == ["Add", "Exp", "If", "Neg", "Relu"]


def test_many_equal_nodes_take_linear_time():
    lines = "\n".join(f"a{i} = Exp (x)" for i in range(5000))
    model = model_of(
        f"g (float[2] x) => (float[2] y) {{ {lines} y = Sum "
        f"({', '.join(f'a{i}' for i in range(50))}) }}"
    )
    start = time.perf_counter()
    outcome = EliminateCommonSubexpressions().run(model, NullContext())
    assert outcome.stats == {"nodes": 4999}
    assert time.perf_counter() - start < 5
