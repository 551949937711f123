"""fold-constants: budgets and what is never folded, first; then what is."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import model_of, ops_of, run_exact
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.fold_constants import FoldConstants

STAYS = {
    "an overridable default": """
        g (float[2] x, float[2] c) => (float[2] y) <float[2] c = {1,
            2}> { h = Neg (c)  y = Add (x, h) }""",
    "a graph output": "g (float[2] x) => (float[2] y, float[2] z) <float[2] c = {1, 2}> { y "
    "= Neg (c)  z = Neg (x) }",
    "quantized weights": """
        g (float[2] x) => (float[2] y) <int8[2] c = {1, 2}, float s = {0.5}>
        { h = DequantizeLinear (c, s)  y = Add (x, h) }""",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    model, outcome = run_exact(FoldConstants(), STAYS[name])
    assert outcome.changed == 0
    assert ops_of(model) == ops_of(model_of(STAYS[name]))


def test_random_numbers_stay():
    text = """g (float[2] x) => (float[2] y) <int64[1] s = {2}>
    { z = ConstantOfShape (s)  h = RandomNormalLike (z)  y = Add (x, h) }"""
    model = model_of(text)
    FoldConstants().run(model, NullContext())
    assert ops_of(model) == ["RandomNormalLike", "Add"]


def test_a_loop_is_not_run_here():
    text = """
    g (float x) => (float y) <int64 n = {1000000000}, bool c = {1}, float one = {1}> {
        h = Loop (n, c, one) <body = b (int64 i, bool k, float s) => (bool k2, float s2)
            { k2 = Identity (k)  s2 = Add (s, s) }>
        y = Add (x, h)
    }"""
    model = model_of(text)
    assert FoldConstants().run(model, NullContext()).changed == 0
    assert "Loop" in ops_of(model)


BOMBS = {
    "a fill": "<int64[4] s = {1000000, 1000000, 1000, 1000}> { h = ConstantOfShape (s) "
    " y = Add (x, h) }",
    "an expansion": "<float[1] c = {1}, int64[2] s = {1000000, 1000000}> { h = Expand (c, "
    "s)  y = Add (x, h) }",
    "a range": "<int64 a = {0}, int64 b = {100000000000}, int64 d = {1}> "
    "{ r = Range (a, b, d)  h = Cast <to: int = 1> (r)  y = Add (x, h) }",
    "tiles": "<float[1] c = {1}, int64[1] n = {100000000000}> { h = Tile (c, n)  y = Add (x, h) }",
    "padding": "<float[1] c = {1}, int64[2] n = {100000000000, 1}> { h = Pad (c, n) "
    " y = Add (x, h) }",
    "one-hot": "<int64[1] i = {1}, int64 d = {100000000000}, float[2] v = {0, 1}> "
    "{ h = OneHot (i, d, v)  y = Add (x, h) }",
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_size_is_computed_before_anything_is_allocated(name):
    model = model_of(f"g (float[1] x) => (float[n] y) {BOMBS[name]}")
    outcome = FoldConstants().run(model, NullContext())
    assert outcome.changed == 0
    assert any("larger than its inputs" in d.reason for d in outcome.declined)


def with_weight(text, array):
    """A model whose initializer `w` becomes `array`."""
    model = model_of(text)
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(array, name="w")
    normalize(model)
    return model


def test_a_transpose_of_a_weight_used_elsewhere_would_grow_the_file():
    text = """g (float[256] x) => (float[256] y, float[256] z) <float[1] w = {0}>
    { t = Transpose (w)  y = MatMul (x, t)  z = MatMul (x, w) }"""
    model = with_weight(
        text, np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    )
    outcome = FoldConstants().run(model, NullContext())
    assert ops_of(model) == ["Transpose", "MatMul", "MatMul"]
    assert [d.reason for d in outcome.declined] == [
        "folding would add 262144 bytes to the model"
    ]


def test_a_transpose_of_a_weight_of_its_own_is_folded():
    array = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    text = (
        "g (float[256] x) => (float[256] y) <float[1] w = {0}> { t = Transpose (w)  y = "
        "MatMul (x, t) }"
    )
    model = with_weight(text, array)
    outcome = FoldConstants().run(model, NullContext())
    assert ops_of(model) == ["MatMul"]
    assert outcome.stats == {"nodes": 1, "branches": 0, "bytes": 0}
    assert np.array_equal(model.graph[0].inputs[1].const_value.numpy(), array.T)
    assert list(model.graph.initializers) == [model.graph[0].inputs[1].name]


def test_pieces_of_a_weight_put_together_are_folded_as_one():
    """Each slice alone would grow the model; all of them together do not."""
    text = """g (float[256] x) => (float[256] y)
    <float[1] w = {0}, int64[1] a = {0}, int64[1] b = {128}, int64[1] c = {256}>
    { p = Slice (w, a, b)  q = Slice (w, b, c)  t = Concat <axis: int = 0> (q, p)
        y = MatMul (x, t) }"""
    array = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    model = with_weight(text, array)
    assert (
        FoldConstants().run(model, NullContext()).stats["bytes"] == -24
    )  # the bounds of the slices
    assert ops_of(model) == ["MatMul"]
    assert np.array_equal(
        model.graph[0].inputs[1].const_value.numpy(),
        np.concatenate([array[128:], array[:128]]),
    )


def test_half_weights_are_not_widened():
    text = (
        "g (float[256] x) => (float[256] y) <float16[1] w = {0}> { t = Cast <to: int = "
        "1> (w)  y = MatMul (x, t) }"
    )
    model = with_weight(text, np.ones((256, 256), np.float16))
    assert FoldConstants().run(model, NullContext()).changed == 0


FOLDS = {
    "arithmetic": "<float[2] a = {1, 2}, float b = {3}> { h = Mul (a, b) "
    " i = Add (h, a)  y = Add (x, i) }",
    "shapes": "<int64[1] s = {2}, float a = {7}> { h = Expand (a, s)  y = Add (x, h) }",
    "a fill": "<int64[1] s = {2}> { h = ConstantOfShape (s)  y = Add (x, h) }",
    "types": "<int64[2] a = {1, 2}> { h = Cast <to: int = 1> (a)  y = Add (x, h) }",
    "a product": "<float[2, 2] a = {1, 2, 3, 4}, float[2] b = {1, 1}> { h = MatMul (a, b)  "
    "y = Add (x, h) }",
    "several outputs": "<float[4] a = {1, 2, 3, 4}> "
    "{ h, i = Split <num_outputs: int = 2> (a)  j = Mul (h, i)  y = Add (x, j) }",
    "both sides of a graph output": "<float[2] a = {1, 2}> { h = Neg (a)  "
    "i = Exp (h)  y = Add (x, i) }",
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    model, outcome = run_exact(
        FoldConstants(), f"g (float[2] x) => (float[2] y) {FOLDS[name]}"
    )
    assert ops_of(model) == ["Add"]
    assert list(model.graph.initializers) == [model.graph[0].inputs[1].name]
    assert outcome.changed > 0


def test_folds_inside_a_loop_body():
    text = """
    g (float[2] x, int64 n) => (float[2] y) <bool c = {1}, float one = {1}> {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] s2)
            <float two = {2}> { k2 = Identity (k)  t = Add (one, two)  s2 = Mul (s, t) }>
    }"""
    model, _ = run_exact(FoldConstants(), text, {"n": np.array(3)})
    assert ops_of(model) == ["Loop", "Identity", "Mul"]


BRANCHES = """
g (float[batch, 2] x, bool dynamic) => (float[batch, 2] y) <{constants}> {{
    {before}
    h = If (c) <then_branch = t () => (float[n, 2] a) <float two = {{2}}> {{ p = Mul (x,
        two)  a = Neg (p) }},
                else_branch = e () => (float[m, 2] b) {{ p = Exp (x)  b = Relu (p) }}>
    y = Add (h, x)
}}"""


@pytest.mark.parametrize(
    ("constants", "before", "expected"),
    [
        ("bool c = {1}", "", ["Mul", "Neg", "Add"]),
        ("bool[1] c = {0}", "", ["Exp", "Relu", "Add"]),
        ("bool o = {0}", "c = Not (o)", ["Mul", "Neg", "Add"]),
        ("float unused = {0}", "c = Not (dynamic)", None),
    ],
)
def test_an_if_of_constant_condition_becomes_its_branch(constants, before, expected):
    model, outcome = run_exact(
        FoldConstants(), BRANCHES.format(constants=constants, before=before)
    )
    assert outcome.stats["branches"] == (expected is not None)
    assert (
        "If" in ops_of(model)
        if expected is None
        else [op for op in ops_of(model) if op != "Not"] == expected
    )


BATCH = """
g (float[batch, 2] x) => (float[batch, 2] y) <int64 zero = {0}> {
    s = Shape (x)
    d = Gather (s, zero)
    c = Cast <to: int = 9> (d)
    y = If (c) <then_branch = t () => (float[n, 2] a) { a = Neg (x) },
                else_branch = e () => (float[m, 2] b) { b = Exp (x) }>
}"""


@pytest.mark.parametrize("nonempty", [True, False])
def test_a_batch_is_taken_for_nonempty_unless_told_otherwise(nonempty):
    model, outcome = run_exact(FoldConstants(nonempty=nonempty), BATCH)
    assert outcome.stats["branches"] == nonempty
    assert ("If" in ops_of(model)) is not nonempty


def test_a_branch_that_gives_back_an_outer_value_keeps_the_output_name():
    text = """
    g (float[2] x) => (float[2] y) <bool c = {1}> {
        y = If (c) <then_branch = t () => (float[2] a) { a = Identity (x) },
                    else_branch = e () => (float[2] b) { b = Exp (x) }>
    }"""
    model, _ = run_exact(FoldConstants(), text)
    assert ops_of(model) == ["Identity"]
    assert model.graph.outputs[0].name == "y"


def test_nested_branches_with_equal_names_do_not_clash():
    inner = """If (c) <then_branch = t{0} () => (float[2] a) {{ p = Neg (x)  a = Relu (p) }},
                       else_branch = e{0} () => (float[2] b) {{ b = Exp (x) }}>"""
    text = f"""
    g (float[2] x) => (float[2] y) <bool c = {{1}}> {{
        h = {inner.format(1)}
        i = If (c) <then_branch = t () => (float[2] o) {{ o = {inner.format(2)} }},
                    else_branch = e () => (float[2] u) {{ u = Exp (x) }}>
        y = Add (h, i)
    }}"""
    model, outcome = run_exact(FoldConstants(), text)
    assert outcome.stats["branches"] == 3
    assert ops_of(model) == ["Neg", "Relu", "Neg", "Relu", "Add"]


@pytest.mark.parametrize(
    ("shape", "perm", "turned"),
    [
        ((600, 500), "", (500, 600)),
        ((2, 500, 300), "<perm = [0, 2, 1]>", (2, 300, 500)),
        ((3, 400, 250), "<perm = [2, 0, 1]>", (250, 3, 400)),
    ],
)
def test_a_large_weight_is_turned_whenever_it_is_read(shape, perm, turned):
    dims = ", ".join(map(str, turned))
    text = f"""
    g (float[{dims}] x) => (float[{dims}] y) <float[1] w = {{0}}>
    {{ t = Transpose {perm} (w) n = Neg (x) y = Add (n, t) }}"""
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = with_weight(text, weight)
    assert FoldConstants().run(model, NullContext()).changed == 1
    assert ops_of(model) == ["Neg", "Add"]
    (folded,) = model.graph.initializers.values()
    assert isinstance(folded.const_value, ir.LazyTensor)
    axes = [turned.index(length) for length in shape]
    expected = np.moveaxis(weight, range(len(shape)), axes)
    np.testing.assert_array_equal(folded.const_value.numpy(), expected)


def test_what_is_made_of_a_large_turned_weight_folds_too():
    text = """
    g (float[500, 600] x) => (float[500, 600] y) <float[1] w = {0}>
    { t = Transpose (w) n = Neg (t) y = Add (x, n) }"""
    weight = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
    model = with_weight(text, weight)
    assert FoldConstants().run(model, NullContext()).changed == 2
    (folded,) = model.graph.initializers.values()
    np.testing.assert_array_equal(folded.const_value.numpy(), -weight.T)
