"""remove-identities: what must stay, first; then one model for each rule."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import model_of, ops_of, run_exact
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._simplify.rules.cast import widens
from onnx_opt.passes.remove_identities import RemoveIdentities

STAYS = {
    "identity between input and output": "g (float[2] x) => (float[2] y) { y = Identity (x) }",
    "input that is an output twice over": """
        g (float[2] x) => (float[2] y, float[2] z) { y = Identity (x)  z = Identity (x) }""",
    "identity of an output": "g (float[2] x) => (float[2] y, float[2] z) { y = Relu (x)  z "
    "= Identity (y) }",
    "mul by one that widens": """
        g (float[1, 3] x) => (float[2, 3] y) <float[2, 1] c = {1, 1}> { h = Mul (x,
            c)  y = Neg (h) }""",
    "mul by one that adds a rank": """
        g (float[3] x) => (float[1, 3] y) <float[1, 1] c = {1}> { h = Mul (x, c)  y = Neg (h) }""",
    "mul by one against a dim that may be one": """
        g (float[batch, 3] x) => (float[b, 3] y) <float[3, 1] c = {1, 1, 1}> { h = Mul (x,
            c)  y = Neg (h) }""",
    "add of an overridable zero": """
        g (float[2] x, float[2] c) => (float[2] y) <float[2] c = {0, 0}> { h = Add (x,
            c)  y = Neg (h) }""",
    "scale of ones in a normalization": """
        g (float[2, 3] x, float[2, 1] v) => (float[2, 3] y) <float[3] c = {1, 1, 1}>
        { s = Sqrt (v)  n = Div (x, s)  h = Mul (n, c)  y = Neg (h) }""",
    "bias of zeros in a normalization": """
        g (float[2, 3] x, float[2, 1] v) => (float[2, 3] y)
        <float[3] c = {1, 2, 3}, float[3] b = {0, 0, 0}>
        { s = Sqrt (v)  n = Div (x, s)  h = Mul (n, c)  a = Add (h, b)  y = Neg (a) }""",
    "two unsqueezes of a mask": """
        g (int64[b, s] x) => (float[b, 1, 1, s] y)
        <int64[1] k = {1}, int64[1] l = {2}, float one = {1}, float low = {-100}>
        { u = Unsqueeze (x, k)  v = Unsqueeze (u, l)  c = Cast <to: int = 1> (v)
          d = Sub (one, c)  y = Mul (d, low) }""",
    "dims for a target that is not known": """
        g (float[n, m] x, float[9] z) => (float[?, ?] y)
        <int64 i = {0}, int64 j = {1}, int64[1] a = {0}>
        { s = Shape (x)  b = Gather (s, i)  c = Gather (s, j)  bu = Unsqueeze (b, a)
          cu = Unsqueeze (c, a)  t = Concat <axis: int = 0> (bu, cu)  y = Reshape (z, t) }""",
    "almost one": "g (float[2] x) => (float[2] y) <float c = {1.0000001}> { h = Mul (x, c)  "
    "y = Neg (h) }",
    "zero minus x": "g (float[2] x) => (float[2] y) <float c = {0}> { h = Sub (c, x) "
    " y = Exp (h) }",
    "one over x": "g (float[2] x) => (float[2] y) <float c = {1}> { h = Div (c, x)  y = Neg (h) }",
    "one to the power of x": "g (float[2] x) => (float[2] y) <float c = {1}> { h = Pow (c, "
    "x)  y = Neg (h) }",
    "cast to int and back": """
        g (float[4] x) => (float[4] y) { i = Cast <to: int = 7> (x)
        h = Cast <to: int = 1> (i)  y = Neg (h) }""",
    "cast to half and back": """
        g (float[4] x) => (float[4] y) { i = Cast <to: int = 10> (x)
        h = Cast <to: int = 1> (i)  y = Neg (h) }""",
    "long to double and back, which rounds": """
        g (int64[4] x) => (int64[4] y) { i = Cast <to: int = 11> (x)
        h = Cast <to: int = 7> (i)  y = Neg (h) }""",
    "float through double to int": """
        g (float[4] x) => (int64[4] y) { i = Cast <to: int = 11> (x)
        h = Cast <to: int = 7> (i)  y = Neg (h) }""",
    "reshape that copies a dim of the inner one": """
        g (float[2, 3] x) => (float[3, 1, 2] y) <int64[2] s = {3, 2}, int64[3] t = {0, 1, 2}>
        { h = Reshape (x, s)  i = Reshape (h, t)  y = Neg (i) }""",
    "slice to a number below the size": """
        g (float[8] x) => (float[n] y) <int64[1] s = {0}, int64[1] e = {7}> { h = Slice (x, s,
            e)  y = Neg (h) }""",
    "slice of a dynamic size to a small number": """
        g (float[n] x) => (float[m] y) <int64[1] s = {0}, int64[1] e = {8}> { h = Slice (x, s,
            e)  y = Neg (h) }""",
    "slice backwards": """
        g (float[4] x) => (float[4] y)
        <int64[1] s = {3}, int64[1] e = {-9}, int64[1] a = {0}, int64[1] k = {-1}>
        { h = Slice (x, s, e, a, k)  y = Neg (h) }""",
    "slices of one axis": """
        g (float[8] x) => (float[n] y) <int64[1] s = {1}, int64[1] e = {6}, int64[1] t = {-2},
            int64[1] f = {9}>
        { h = Slice (x, s, e)  i = Slice (h, t, f)  y = Neg (i) }""",
    "pad by something": """
        g (float[2] x) => (float[3] y) <int64[2] p = {0, 1}> { h = Pad (x, p)  y = Neg (h) }""",
    "expand that widens": """
        g (float[1, 3] x) => (float[2, 3] y) <int64[2] s = {2, 1}> { h = Expand (x,
            s)  y = Neg (h) }""",
    "expand of a dynamic dim to a number": """
        g (float[batch, 3] x) => (float[b, 3] y) <int64[2] s = {3, 3}> { h = Expand (x,
            s)  y = Neg (h) }""",
    "one transpose": "g (float[2, 3] x) => (float[3, 2] y) { y = Transpose <perm = [1, 0]> (x) }",
    "relu of a clip that goes below zero": """
        g (float[4] x) => (float[4] y) <float a = {-1}, float b = {1}> { h = Clip (x, a,
            b)  y = Relu (h) }""",
    "clips that do not meet": """
        g (float[4] x) => (float[4] y) <float a = {0}, float b = {1}, float c = {2}, float d = {3}>
        { h = Clip (x, a, b)  i = Clip (h, c, d)  y = Neg (i) }""",
    "exp of exp": "g (float[4] x) => (float[4] y) { h = Exp (x)  i = Exp (h)  y = Neg (i) }",
    "neg of a user function's neg": """
        <ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>
        g (float[4] x) => (float[4] y)
        { h = ai.onnx.ml.Binarizer <threshold: float = 0.0> (x)  y = Neg (h) }""",
    "concat of concats along other axes": """
        g (float[2, 2] x) => (float[4, 4] y)
        { h = Concat <axis: int = 1> (x, x)  y = Concat <axis: int = 0> (h, h) }""",
    "flatten of a cube": "g (float[2, 3, 4] x) => (float[2, 12] y) { h = Flatten (x) "
    " y = Neg (h) }",
    "reduce that drops the axis": """
        g (float[3, 1] x) => (float[3] y) <int64[1] a = {1}>
        { h = ReduceSum <keepdims: int = 0> (x, a)  y = Neg (h) }""",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    feeds = (
        {"x": np.array([3.7, -3.7, 0.2, 1e5], np.float32)}
        if "float through double" in name
        else None
    )
    model, outcome = run_exact(RemoveIdentities(), STAYS[name], feeds)
    assert outcome.changed == 0
    assert ops_of(model) == ops_of(model_of(STAYS[name]))


def test_a_used_dropout_mask_stays():
    text = "g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout (x) }"
    assert ops_of(run_exact(RemoveIdentities(), text)[0]) == ["Dropout"]


@pytest.mark.parametrize("training", ["bool t = {1}", ""])
def test_dropout_in_training_stays(training):
    inputs = "float[4] x" if training else "float[4] x, bool t"
    text = (
        f"g ({inputs}) => (float[4] y) <float r = {{0.5}}{', ' + training if training else ''}>"
        "{ h = Dropout (x, r, t)  y = Neg (h) }"
    )
    model = model_of(text)
    assert RemoveIdentities().run(model, NullContext()).changed == 0


def test_loop_carried_identity_stays():
    text = """
    g (float[2] x, int64 n) => (float[2] y) <bool c = {1}> {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] s2) {
            k2 = Identity (k)
            t = Identity (s)
            u = Add (t, x)
            s2 = Identity (u)
        }>
    }"""
    model, outcome = run_exact(RemoveIdentities(), text, {"n": np.array(3)})
    assert ops_of(model) == ["Loop", "Identity", "Add"]
    assert outcome.stats["identity"] == 2


def test_a_captured_value_stays_alive():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        h = Identity (x)
        k = Neg (h)
        y = If (c) <then_branch = t () => (float[2] a) { a = Identity (k) },
                    else_branch = e () => (float[2] b) { d = Identity (h)  b = Neg (d) }>
    }"""
    assert ops_of(run_exact(RemoveIdentities(), text)[0]) == [
        "Neg",
        "If",
        "Identity",
        "Neg",
    ]


REWRITES = {
    "identity": ("{ h = Identity (x)  y = Neg (h) }", ["Neg"]),
    "identity before an output": ("{ h = Neg (x)  y = Identity (h) }", ["Neg"]),
    "dropout": ("{ h = Dropout (x)  y = Neg (h) }", ["Neg"]),
    "add zero": ("<float c = {0}> { h = Add (c, x)  y = Neg (h) }", ["Neg"]),
    "sub zero": ("<float[3] c = {0, 0, 0}> { h = Sub (x, c)  y = Neg (h) }", ["Neg"]),
    "mul one": ("<float[1, 3] c = {1, 1, 1}> { h = Mul (x, c)  y = Neg (h) }", ["Neg"]),
    "div one": ("<float c = {1}> { h = Div (x, c)  y = Neg (h) }", ["Neg"]),
    "pow one": ("<float c = {1}> { h = Pow (x, c)  y = Neg (h) }", ["Neg"]),
    "cast to the same": ("{ h = Cast <to: int = 1> (x)  y = Neg (h) }", ["Neg"]),
    "cast through a wider type": (
        "{ h = Cast <to: int = 11> (x)  i = Cast <to: int = 1> (h)  y = Neg (i) }",
        ["Neg"],
    ),
    "cast like the same": ("{ h = CastLike (x, x)  y = Neg (h) }", ["Neg"]),
    "transposes that cancel": (
        "{ h = Transpose (x)  i = Transpose (h)  y = Neg (i) }",
        ["Neg"],
    ),
    "transpose by the identity": (
        "{ h = Transpose <perm = [0, 1]> (x)  y = Neg (h) }",
        ["Neg"],
    ),
    "reshape to the same": (
        "<int64[2] s = {-1, 3}> { h = Reshape (x, s)  y = Neg (h) }",
        ["Neg"],
    ),
    "reshape that copies all": (
        "<int64[2] s = {0, 0}> { h = Reshape (x, s)  y = Neg (h) }",
        ["Neg"],
    ),
    "reshape twice": (
        "<int64[1] s = {-1}, int64[2] t = {-1, 3}> { h = Reshape (x, s)  i = Reshape "
        "(h, t)  y = Neg (i) }",
        ["Neg"],
    ),
    "squeeze of unsqueeze": (
        "<int64[1] a = {1}> { h = Unsqueeze (x, a)  i = Squeeze (h, a)  y = Neg (i) }",
        ["Neg"],
    ),
    "squeeze of unsqueeze, counted from the end": (
        "<int64[1] a = {-1}, int64[1] b = {2}> { h = Unsqueeze (x, a)  i = Squeeze "
        "(h, b)  y = Neg (i) }",
        ["Neg"],
    ),
    "slice of everything": (
        "<int64[1] s = {0}, int64[1] e = {9223372036854775807}> { h = Slice (x, s, "
        "e)  y = Neg (h) }",
        ["Neg"],
    ),
    "slice of a static axis": (
        "<int64[1] s = {-3}, int64[1] e = {3}, int64[1] a = {1}> { h = Slice (x, s, "
        "e, a)  y = Neg (h) }",
        ["Neg"],
    ),
    "pad by nothing": (
        "<int64[4] p = {0, 0, 0, 0}> { h = Pad (x, p)  y = Neg (h) }",
        ["Neg"],
    ),
    "concat of one": ("{ h = Concat <axis: int = 0> (x)  y = Neg (h) }", ["Neg"]),
    "expand to ones": (
        "<int64[2] s = {1, 1}> { h = Expand (x, s)  y = Neg (h) }",
        ["Neg"],
    ),
    "expand to its own shape": (
        "{ s = Shape (x)  h = Expand (x, s)  y = Neg (h) }",
        ["Neg"],
    ),
    "tile once": ("<int64[2] s = {1, 1}> { h = Tile (x, s)  y = Neg (h) }", ["Neg"]),
    "relu of relu": ("{ h = Relu (x)  y = Relu (h) }", ["Relu"]),
    "relu of sigmoid": ("{ h = Sigmoid (x)  y = Relu (h) }", ["Sigmoid"]),
    "relu of clip": (
        "<float a = {0}, float b = {6}> { h = Clip (x, a, b)  y = Relu (h) }",
        ["Clip"],
    ),
    "clip of clip": (
        "<float a = {-1}, float b = {1}, float c = {0}, float d = {6}> "
        "{ h = Clip (x, a, b)  y = Clip (h, c, d) }",
        ["Clip"],
    ),
    "neg of neg": ("{ h = Neg (x)  i = Neg (h)  y = Exp (i) }", ["Exp"]),
    "max of one": ("{ h = Max (x)  y = Neg (h) }", ["Neg"]),
    "flatten of a matrix": ("{ h = Flatten (x)  y = Neg (h) }", ["Neg"]),
    "shapes through casts and arithmetic": (
        "<int64[1] one = {1}, int64 i = {1}> { s = Shape (x)  d = Gather (s, one)  e "
        "= Gather (s, i) "
        "f = Add (d, e)  g = Mul (f, one)  b = Cast <to: int = 1> (g)  y = Mul (x, b) }",
        ["Cast", "Mul"],
    ),
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites(name):
    body, expected = REWRITES[name]
    model, outcome = run_exact(
        RemoveIdentities(), f"g (float[batch, 3] x) => (float[batch, 3] y) {body}"
    )
    assert ops_of(model) == expected
    assert outcome.changed > 0


MERGES = {
    "transposes": (
        "(float[2, 3, 4] x) => (float[4, 3, 2] y)",
        "{ h = Transpose <perm = [1, 2, 0]> (x)  y = Transpose <perm = [1, 0, 2]> (h) }",
        ["Transpose"],
    ),
    "unsqueezes": (
        "(float[2, 3] x) => (float[1, 2, 1, 3] y)",
        "<int64[1] a = {1}, int64[1] b = {0}> { h = Unsqueeze (x, a)  y = Unsqueeze (h, b) }",
        ["Unsqueeze"],
    ),
    "squeezes": (
        "(float[1, 2, 1, 3] x) => (float[2, 3] y)",
        "<int64[1] a = {0}, int64[1] b = {1}> { h = Squeeze (x, a)  y = Squeeze (h, b) }",
        ["Squeeze"],
    ),
    "slices": (
        "(float[batch, 8, 8] x) => (float[batch, 4, 3] y)",
        "<int64[1] s = {0}, int64[1] e = {99}, int64[1] a = {1}, int64[1] k = {2}, "
        "int64[1] t = {-4}, "
        "int64[1] f = {-1}, int64[1] b = {2}> { h = Slice (x, s, e, a, k)  y = Slice "
        "(h, t, f, b) }",
        ["Slice"],
    ),
    "concats": (
        "(float[2, 3] x) => (float[2, 9] y)",
        "{ n = Neg (x)  h = Concat <axis: int = 1> (x, n)  y = Concat <axis: int = -1> (h, x) }",
        ["Neg", "Concat"],
    ),
    "gather and unsqueeze": (
        "(float[4, 3] x) => (float[1, 3] y)",
        "<int64 i = {2}, int64[1] a = {0}> { h = Gather (x, i)  y = Unsqueeze (h, a) }",
        ["Gather"],
    ),
    "a wider reshape after a flatten": (
        "(float[2, 3, 4] x) => (float[4, 6] y)",
        "<int64[2] s = {4, 6}> { h = Flatten (x)  y = Reshape (h, s) }",
        ["Reshape"],
    ),
    "casts of a small integer": (
        "(uint8[4] x) => (float[4] y)",
        "{ h = Cast <to: int = 6> (x)  y = Cast <to: int = 1> (h) }",
        ["Cast"],
    ),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges(name):
    signature, body, expected = MERGES[name]
    assert ops_of(run_exact(RemoveIdentities(), f"g {signature} {body}")[0]) == expected


SWAPPED = """
g (float[batch, 3, seq, 4] x) => (float[a, b, c, d] y) <int64[1] rest = {{-1}}> {{
    b = Shape <start = 0, end = 2> (x)
    l = Shape <start = 2, end = 3> (x)
    d = Shape <start = 3> (x)
    inner = Concat <axis = 0> (rest, l, d)
    outer = Concat <axis = 0> (b, {last})
    m = Reshape (x, inner)
    t = Transpose <perm = [0, 2, 1]> (m)
    z = Reshape (t, outer)
    y = Neg (z)
}}"""


def test_a_transpose_between_views_is_one_of_the_last_two_axes():
    model, _ = run_exact(RemoveIdentities(), SWAPPED.format(last="d, l"))
    assert ops_of(model) == ["Transpose", "Neg"]
    assert list(model.graph[0].attributes["perm"].as_ints()) == [0, 1, 3, 2]


def test_a_transpose_between_other_views_stays():
    model, _ = run_exact(RemoveIdentities(), SWAPPED.format(last="l, d"))
    assert "Reshape" in ops_of(model)


@pytest.mark.parametrize(
    ("target", "ops"),
    [
        ("n, k, l, k", ["Reshape", "Neg"]),
        # a zero there is a size
        ("n, k, l, k, zero", None),
    ],
)
def test_a_target_that_takes_zeros_as_sizes(target, ops):
    rank = "a, b, c, d, e" if ops is None else "a, b, c, d"
    text = f"""
    g (float[batch, seq, 4] x) => (float[{rank}] y)
    <int64[1] k = {{2}}, int64[1] zero = {{0}}> {{
        n = Shape <start = 0, end = 1> (x)
        l = Shape <start = 1, end = 2> (x)
        s = Concat <axis = 0> ({target})
        z = Reshape <allowzero = 1> (x, s)
        y = Neg (z)
    }}"""
    if ops is None:
        model = model_of(text)
        RemoveIdentities().run(model, NullContext())
        assert "Concat" in ops_of(model)
        return
    model, _ = run_exact(RemoveIdentities(), text)
    assert ops_of(model) == ops
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 2, -1, 2]
    assert "allowzero" not in model.graph[0].attributes


def test_a_computed_target_of_expand_has_ones_for_what_stays():
    text = """
    g (float[batch, 3, 1, seq] x) => (float[batch, 3, 2, seq] y) <int64[2] k = {3, 2}> {
        n = Shape <start = 0, end = 1> (x)
        l = Shape <start = 3> (x)
        s = Concat <axis = 0> (n, k, l)
        z = Expand (x, s)
        y = Neg (z)
    }"""
    model, _ = run_exact(RemoveIdentities(), text)
    assert ops_of(model) == ["Expand", "Neg"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("i = Reciprocal (r) y = Mul (x, i)", ["Abs", "Sqrt", "Div"]),
        ("i = Reciprocal (r) y = Mul (i, x)", ["Abs", "Sqrt", "Div"]),
        # it is needed twice
        (
            "i = Reciprocal (r) p = Mul (i, x) y = Add (p, i)",
            ["Abs", "Sqrt", "Reciprocal", "Mul", "Add"],
        ),
    ],
)
def test_a_product_with_the_reciprocal_of_a_root_is_a_quotient(body, ops):
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ a = Abs (x) r = Sqrt (a) {body} }}"
    assert ops_of(run_exact(RemoveIdentities(), text)[0]) == ops


SPLIT_HEADS = """
g (float[batch, seq, 12] x) => (float[b, s, h, d] y) <int64[1] heads = {3}, int64[1] rest = {4},
    int64 zero = {0},
   int64 one = {1}, int64[1] a = {0}> {
    s = Shape (x)
    i = Gather (s, zero)
    j = Gather (s, one)
    k = Unsqueeze (i, a)
    l = Unsqueeze (j, a)
    t = Concat <axis: int = 0> (k, l, heads, rest)
    h = Reshape (x, t)
    y = Neg (h)
}"""


def test_a_computed_target_becomes_constant_and_stays_dynamic():
    model, outcome = run_exact(RemoveIdentities(), SPLIT_HEADS)
    assert ops_of(model) == ["Reshape", "Neg"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 0, 3, 4]
    assert outcome.stats["reshape-target"] == 1


MERGED_BATCH = """
g (float[batch, seq, 12] x) => (float[n, m] y) <int64 zero = {0}, int64[1] a = {0},
    int64[1] minus = {-1}> {
    s = Shape (x)
    i = Gather (s, zero)
    k = Unsqueeze (i, a)
    t = Concat <axis: int = 0> (k, minus)
    h = Reshape (x, t)
    y = Neg (h)
}"""


def test_a_target_of_dims_without_names_copies_them():
    """Dims of which nothing is known but whose they are."""
    model = model_of("""
        g (float[n, m] x, bool[k] c, bool[l] d) => (float[?, ?, 1] y)
        <int64[1] one = {1}>
        { h = Compress <axis: int = 0> (x, c)  i = Compress <axis: int = 1> (h, d)
          s = Shape (i)  t = Concat <axis: int = 0> (s, one)  y = Reshape (i, t) }""")
    normalize(model)
    RemoveIdentities().run(model, NullContext())
    assert ops_of(model) == ["Compress", "Compress", "Reshape"]
    target = list(model.graph)[-1].inputs[1]
    assert target.const_value.numpy().tolist() == [0, 0, 1]


@pytest.mark.parametrize(("nonempty", "target"), [(True, [0, -1]), (False, None)])
def test_minus_one_beside_a_copied_dim_needs_nonempty_inputs(nonempty, target):
    model, _ = run_exact(RemoveIdentities(nonempty=nonempty), MERGED_BATCH)
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    constant = reshape.inputs[1].const_value
    assert (constant.numpy().tolist() if constant is not None else None) == target


def test_squeeze_axes_as_attribute_before_opset_13():
    text = """<ir_version: 7, opset_import: ["" : 12]>
    g (float[1, 2, 1, 3] x) => (float[2,
        3] y) { h = Squeeze <axes = [0]> (x)  y = Squeeze <axes = [-2]> (h) }"""
    model, _ = run_exact(RemoveIdentities(), text)
    assert ops_of(model) == ["Squeeze"]
    assert list(model.graph[0].attributes.get_ints("axes")) == [0, 2]


def test_negative_zero_counts_as_zero():
    """X + 0.0 turns -0.0 into 0.0; the pass takes the two for equal, as documented."""
    text = (
        "g (float[2] x) => (float[2] y) <float c = {0}> { h = Add (x, c)  y = Abs (h) }"
    )
    model, _ = run_exact(
        RemoveIdentities(), text, {"x": np.array([-0.0, 0.0], np.float32)}
    )
    assert ops_of(model) == ["Abs"]


def test_work_is_bounded_on_a_doubling_integer_chain():
    lines = "\n".join(f"v{i + 1} = Add (v{i}, v{i})" for i in range(60))
    text = f"g (float[batch, 3] x) => (int64[2] v60) {{ v0 = Shape (x) {lines} }}"
    model = model_of(text)
    RemoveIdentities().run(model, NullContext())
    assert len(model.graph) == 61


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("FLOAT16", "FLOAT", True),
        ("FLOAT", "FLOAT16", False),
        ("BFLOAT16", "FLOAT16", False),
        ("INT8", "FLOAT16", False),
        ("INT32", "FLOAT", False),
        ("INT32", "DOUBLE", True),
        ("INT64", "DOUBLE", False),
        ("UINT8", "INT16", True),
        ("INT8", "UINT16", False),
        ("UINT32", "INT32", False),
        ("BOOL", "INT8", True),
        ("FLOAT", "INT64", False),
    ],
)
def test_widens(source, target, expected):
    assert widens(ir.DataType[source], ir.DataType[target]) is expected


STEPS = [
    "{0} = Identity ({1})",
    "{0} = Neg ({1})",
    "{0} = Relu ({1})",
    "{0} = Add ({1}, zero)",
    "{0} = Mul (one, {1})",
    "{0} = Transpose <perm = [1, 0, 2]> ({1})",
    "{0} = Transpose <perm = [2, 0, 1]> ({1})",
    "{0} = Reshape ({1}, flat)",
    "{0} = Reshape ({1}, copy)",
    "{0} = Cast <to: int = 11> ({1})",
    "{0} = Cast <to: int = 1> ({1})",
    "{0} = Clip ({1}, low, high)",
    "{0} = Abs ({1})",
    "{0} = Slice ({1}, start, stop)",
    "{0} = Expand ({1}, ones)",
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=12))
def test_random_chains_keep_their_outputs(choice):
    # every value is cast to float first, so that any step can follow any other
    lines, last = [], "x"
    for index, step in enumerate(choice):
        lines.append(STEPS[step].format(f"s{index}", last))
        lines.append(f"c{index} = Cast <to: int = 1> (s{index})")
        last = f"c{index}"
    text = f"""g (float[2, 3, 4] x) => (float[a, b, c] y)
    <float zero = {{0}}, float one = {{1}}, int64[3] flat = {{2, 2, 6}}, int64[3] copy = {{0, 0,
        -1}},
     float low = {{-1}}, float high = {{1}}, int64[1] start = {{0}}, int64[1] stop = {{2147483647}},
     int64[3] ones = {{1, 1, 1}}>
    {{ {" ".join(lines)} y = Neg ({last}) }}"""
    run_exact(RemoveIdentities(), text)
