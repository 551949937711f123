"""Attention, rotary embeddings and RMS normalisations: what is found, and what is in the way."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import model_of, run_exact
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.rewrites import Gate, Rewrite, through
from onnx_opt.passes.fuse_attention import FuseAttention

pytestmark = [
    pytest.mark.needs("onnx", "1.18", "opset 23"),
    pytest.mark.needs("onnxruntime", "1.23", "opset 23"),
]


def fused(text, form="standard", **feeds):
    """Operators after the pass, proved by ONNX Runtime, and the outcome."""
    model, outcome = run_exact(FuseAttention(form=form), text, feeds)
    return [node.op_type for node in model.graph], outcome


def reasons(outcome):
    return [declined.reason for declined in outcome.declined]


def test_a_copy_that_is_thrown_away_counts_for_nothing():
    model = model_of(
        "g (float[N, 4] x) => (float[N, 4] y) { a = Identity (x) y = Relu (a) }"
    )
    gate = Gate()
    with through(gate):
        outcome = FuseAttention().run(model, NullContext())
    assert outcome.changed == 0
    assert gate.made == []
    assert [node.op_type for node in model.graph] == ["Identity", "Relu"]


def test_a_pattern_that_must_stay_leaves_the_model_as_it_was():
    model = model_of(NORM.format(**PLAIN))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    rule = Rewrite("fuse-attention", "normalization")
    gate = Gate(left_out=frozenset({rule}))
    with through(gate):
        outcome = FuseAttention().run(model, NullContext())
    assert outcome.changed == 0
    assert gate.made == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# --- RMS normalisation ------------------------------------------------------------


NORM = """
g (float[N, 3, 4] x) => (float[N, 3, 4] y)
<float[4] s = {{1, 2, 3, 4}}, float e = {{0.001}}, float two = {{2}}, float one = {{1}},
    int64[1] a = {{{axis}}}> {{
    {square}
    m = ReduceMean <keepdims = {keep}> (p, a)
    v = Add ({sum})
    r = Sqrt (v)
    {normal}
    y = Mul ({scale})
}}"""
PLAIN = {
    "axis": -1,
    "square": "p = Pow (x, two)",
    "keep": 1,
    "sum": "m, e",
    "normal": "n = Div (x, r)",
    "scale": "s, n",
}


@pytest.mark.parametrize(
    "spelling",
    [
        {},
        {"axis": 2, "square": "p = Mul (x, x)", "sum": "e, m", "scale": "n, s"},
        {"normal": "i = Reciprocal (r) n = Mul (x, i)"},
        {"normal": "i = Div (one, r) n = Mul (i, x)"},
    ],
)
def test_normalisations(spelling):
    ops, outcome = fused(NORM.format(**PLAIN | spelling))
    assert ops == ["RMSNormalization"]
    found = [outcome.stats[kind] for kind in ("attention", "rotary", "normalization")]
    assert found == [0, 0, 1]
    assert outcome.changed == 1


@pytest.mark.parametrize(
    "other",
    [
        {"axis": 1},
        {"square": "p = Pow (x, e)"},
        {"square": "q = Abs (x) p = Pow (q, two)"},
        {"scale": "e, n"},
    ],
)
def test_other_normalisations_stay(other):
    ops, outcome = fused(NORM.format(**PLAIN | other))
    assert outcome.changed == 0
    assert "ReduceMean" in ops


# --- rotary embeddings ------------------------------------------------------------


ROTARY = """
g (float[N, 2, 3, 4] x, float[{batch}, 3, 2] f) => (float[N, 2, 3, 4] y)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
    int64[1] end = {{9223372036854775807}}> {{
    a = Concat <axis = -1> ({halves})
    c0 = Cos (a)
    s0 = Sin (a)
    c = Unsqueeze (c0, one)
    s = Unsqueeze (s0, one)
    left = Slice (x, zero, two, three)
    right = Slice (x, two, end, three)
    n = Neg ({negated})
    h = Concat <axis = 3> ({turned})
    p = Mul (c, x)
    q = Mul (h, s)
    y = Add (q, p)
}}"""
HALVES = {"batch": "1", "halves": "f, f", "negated": "right", "turned": "n, left"}


@pytest.mark.parametrize(
    ("batch", "more"), [("1", ["Shape", "Concat", "Expand"] * 2), ("N", [])]
)
def test_rotations(batch, more):
    ops, outcome = fused(ROTARY.format(**HALVES | {"batch": batch}))
    assert outcome.stats["rotary"] == 1
    made = ["RotaryEmbedding", "Cos", "Sin", "Concat", "Unsqueeze", "Unsqueeze"]
    assert sorted(ops) == sorted([*made, *["Slice", "Squeeze"] * 2, *more])


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (
            {"halves": "f, g"},
            ["nothing shows that its angles are the same in both halves of a head"],
        ),
        (
            {"batch": "M"},
            ["its angles are not known to be of as many samples"],
        ),
        ({"negated": "left", "turned": "n, right"}, []),
        ({"turned": "left, n"}, []),
    ],
)
def test_other_rotations_stay(other, why):
    text = ROTARY.format(**HALVES | other).replace(
        "a = Concat", "g = Exp (f) a = Concat"
    )
    _, outcome = fused(text)
    assert (outcome.changed, reasons(outcome)) == (0, why)


# --- attention --------------------------------------------------------------------


ATTENTION = """
g (float[N, {heads}, 3, 4] q, float[N, 2, 5, 4] k, float[N, 2, 5, 4] v{inputs})
    => (float[N, {heads}, 3, 4] y)
<float c = {{0.5}}, float zero = {{0}}, float low = {{-3.4028235e38}}, float few = {{-10000}},
    int64[1] two = {{2}}, int64[5] e = {{1, 1, 2, 1, 1}}, int64[4] r = {{0, 4, -1, 4}}{values}> {{
    {before}
    t = Transpose <perm = [0, 1, 3, 2]> ({key})
    s0 = MatMul (q, t)
    {scores}
    p = Softmax <axis = -1> (s)
    {after}
    y = MatMul ({weights}, {value})
}}"""
HEADS = {
    "heads": 2,
    "inputs": "",
    "values": "",
    "before": "",
    "key": "k",
    "scores": "s = Mul (s0, c)",
    "after": "",
    "weights": "p",
    "value": "v",
}
CAUSAL = "bool[3, 5] m = {1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1}"
MIXED = (
    "float[3, 5] m = {" + ", ".join(["-3.4028235e38"] * 10 + ["-inf"] * 4 + ["0"]) + "}"
)
MASK = ", bool[N, 1, 3, 5] m"
GUARD = {"after": "b = IsNaN (p) w = Where (b, zero, p)", "weights": "w"}
REPEATED = {
    "heads": 4,
    "before": "k1 = Unsqueeze (k, two) k2 = Expand (k1, e) k3 = Reshape (k2, r)"
    " v1 = Unsqueeze (v, two) v2 = Expand (v1, e) v3 = Reshape (v2, r)",
    "key": "k3",
    "value": "v3",
}
ADDED = "s1 = Mul (s0, c) a = Where (m, zero, {}) s = Add (s1, a)"
NOBODY = np.zeros((3, 1, 3, 5), bool)


@pytest.mark.parametrize(
    ("form", "ops"),
    [
        ({}, ["Attention"]),
        ({"scores": "s1 = Div (s0, c) s = Mul (c, s1)"}, ["Attention"]),
        (REPEATED, ["Attention"]),
        # written over scores
        (
            {"values": f", {CAUSAL}", "scores": "s = Where (m, s0, low)"},
            ["Where", "Attention"],
        ),
        # a constant that is lowest in one place and infinite in another
        (
            {"values": f", {MIXED}", "scores": "s = Add (s0, m)"},
            ["Max", "Attention"],
        ),
        (
            {"inputs": MASK, "scores": ADDED.format("low")} | GUARD,
            ["Where", "Max", "Attention"],
        ),
        (
            {"inputs": MASK, "scores": ADDED.format("few")} | REPEATED,
            ["Where", "Attention"],
        ),
        (
            {"inputs": ", float[N, 1, 1, 5] m", "scores": "s = Add (s0, m)"},
            ["Max", "Shape", "Shape", "Concat", "Expand", "Attention"],
        ),
    ],
)
def test_attentions(form, ops):
    text = ATTENTION.format(**HEADS | form)
    feeds = [{}]
    if MASK in form.get("inputs", ""):
        # positions that attend to nothing, too
        feeds.append({"m": NOBODY})
    for given in feeds:
        found, outcome = fused(text, **given)
        assert found == ops
        assert outcome.stats["attention"] == 1


RUNTIME = "MultiHeadAttention"


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ({}, []),
        (REPEATED, ["Gather", "Gather"]),
        ({"inputs": MASK, "scores": ADDED.format("low")} | GUARD, ["Where"]),
    ],
)
def test_attentions_of_the_runtime(form, more):
    text = ATTENTION.format(**HEADS | form)
    given = {"m": NOBODY} if MASK in form.get("inputs", "") else {}
    for feeds in ({}, given):
        ops, outcome = fused(text, "runtime", **feeds)
        views = ["Transpose", "Reshape", "Reshape", "Transpose"]
        assert sorted(ops) == sorted([*views, *more, RUNTIME])
        assert outcome.stats["attention"] == 1


def test_zeros_for_rows_without_numbers_need_the_standard_form():
    scores = (
        ADDED.replace("zero", "inf").format("zero").replace("inf, zero", "zero, inf")
    )
    form = {"inputs": MASK, "values": ", float inf = {-inf}", "scores": scores} | GUARD
    ops, _ = fused(ATTENTION.format(**HEADS | form), "runtime", m=NOBODY)
    assert ops == ["Where", "Attention"]


def test_heads_that_are_taken_apart_and_merged_stay_on_one_axis():
    head = "Reshape ({0}, s) {1} = Transpose <perm = [0, 2, 1, 3]> ({0}4)"
    text = f"""
    g (float[N, 3, 8] a, float[N, 3, 8] b, float[N, 3, 8] c) => (float[N, 3, 8] y)
    <int64[4] s = {{0, 0, 2, 4}}, int64[3] t = {{0, 0, 8}}> {{
        a4 = {head.format("a", "q")}
        b4 = {head.format("b", "k")}
        c4 = {head.format("c", "v")}
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        p0 = MatMul (q, kt)
        p = Softmax (p0)
        o = MatMul (p, v)
        o4 = Transpose <perm = [0, 2, 1, 3]> (o)
        o3 = Reshape (o4, t)
        y = Relu (o3)
    }}"""
    ops, _ = fused(text, "runtime")
    views = ["Reshape", "Reshape", "Transpose", "Transpose"]
    assert sorted(ops) == sorted([*views, RUNTIME, "Relu"])


@pytest.mark.parametrize("also", ["", "z = Relu (r)"])
def test_rotated_heads_stay_on_one_axis(also):
    more = ", float[N, 2, 3, 4] z" if also else ""
    text = f"""
    <ir_version: 10, opset_import: ["" : 23]>
    g (float[N, 3, 8] a, float[N, 2, 3, 4] k, float[N, 2, 3, 4] v,
        float[N, 3, 2] c, float[N, 3, 2] s) => (float[N, 2, 3, 4] y{more})
    <int64[4] heads = {{0, 0, 2, 4}}> {{
        a4 = Reshape (a, heads)
        q = Transpose <perm = [0, 2, 1, 3]> (a4)
        r = RotaryEmbedding <interleaved = 1> (q, c, s)
        {also}
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        p0 = MatMul (r, kt)
        p = Softmax (p0)
        y = MatMul (p, v)
    }}"""
    ops, _ = fused(text, "runtime")
    assert ops.count("RotaryEmbedding") == 1
    # of the result alone, but where something else reads the heads
    views = [name for name in ops if name in ("Reshape", "Transpose")]
    assert len(views) == (6 if also else 2)


def test_keys_of_another_order():
    text = """
    g (float[N, 3, 2, 4] a, float[N, 5, 2, 4] b, float[N, 5, 2, 4] c) => (float[N, 2, 3, 4] y) {
        q = Transpose <perm = [0, 2, 1, 3]> (a)
        k = Transpose <perm = [0, 2, 3, 1]> (b)
        v = Transpose <perm = [0, 2, 1, 3]> (c)
        s = MatMul (q, k)
        p = Softmax (s)
        y = MatMul (p, v)
    }"""
    ops, _ = fused(text)
    assert ops == ["Transpose", "Transpose", "Transpose", "Attention"]


def test_one_mask_serves_all_layers():
    layer = """
        s{0} = MatMul ({1}, t)
        a{0} = Add (s{0}, m)
        p{0} = Softmax (a{0})
        o{0} = MatMul (p{0}, v)"""
    text = f"""
    g (float[N, 2, 3, 4] q, float[N, 2, 3, 4] k, float[N, 2, 3, 4] v, float[N, 1, 3, 3] m)
        => (float[N, 2, 3, 4] y) {{
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        {layer.format(1, "q")}
        {layer.format(2, "o1")}
        y = Identity (o2)
    }}"""
    ops, _ = fused(text)
    assert ops == ["Max", "Attention", "Attention"]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (
            {
                "inputs": MASK,
                "scores": ADDED.format("few").replace("s =", "s2 =")
                + " s = Mul (s2, c)",
            },
            "it scales its mask too",
        ),
        (
            {
                "inputs": ", float[N, 1, 3, 5] m, float[N, 1, 3, 5] o",
                "scores": "s1 = Add (s0, m) s = Add (s1, o)",
            },
            "it has two masks",
        ),
        (
            {"inputs": ", float[N, 1, 3, 5] m", "scores": "s = Add (s0, m)"} | GUARD,
            "rows without numbers become zeros, and nothing shows what its mask is filled with",
        ),
        (
            {"inputs": MASK, "scores": "s = Where (m, s0, few)"},
            "its mask replaces scores by a number that does not absorb them when added",
        ),
        (
            {"values": f", {CAUSAL}", "scores": "s = Where (m, s0, few)"},
            "its mask replaces scores by a number that does not absorb them when added",
        ),
        ({"scores": "s = Tanh (s0)"}, "its scores are no product of queries and keys"),
        (
            {"values": ", float minus = {-0.5}", "scores": "s = Mul (s0, minus)"},
            "its scale is not positive",
        ),
    ],
)
def test_other_attentions_stay(form, why):
    ops, outcome = fused(ATTENTION.format(**HEADS | form))
    assert outcome.changed == 0
    assert "Softmax" in ops
    assert reasons(outcome) == [why]


# shapes of queries, keys and values, and what is between their product and the Softmax
SHAPED = """{header}
g (float[{q}] q, float[{k}] k, float[{v}] v{inputs}) => (float[a, b, c, d] y) {{
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, t)
    {masked}
    p = Softmax <axis = -1> ({scores})
    y = MatMul (p, v)
}}"""
ALIKE = {
    "header": "",
    "q": "N, 2, 3, 4",
    "k": "N, 2, 5, 4",
    "v": "N, 2, 5, 4",
    "inputs": "",
    "masked": "",
    "scores": "s",
}
MASKED = {
    "inputs": ", float[N, 1, 1, 5] m",
    "masked": "a = Add (s, m)",
    "scores": "a",
}


@pytest.mark.parametrize("form", ["standard", "runtime"])
@pytest.mark.parametrize("samples", ["1", "M"])
def test_samples_that_may_broadcast_stay(form, samples):
    _, outcome = fused(SHAPED.format(**ALIKE | {"q": f"{samples}, 2, 3, 4"}), form)
    why = "queries, keys and values are not known to be of as many samples"
    assert (outcome.changed, reasons(outcome)) == (0, [why])


def test_a_mask_that_may_lengthen_the_scores_stays():
    longer = {
        "q": "N, 2, 1, 4",
        "inputs": ", float[N, 1, L, 5] m",
        "masked": "a = Add (s, m)",
        "scores": "a",
    }
    _, outcome = fused(SHAPED.format(**ALIKE | longer))
    why = "its mask is not known to have no other shape than its scores"
    assert (outcome.changed, reasons(outcome)) == (0, [why])


# keys and values with a cache, whose lengths inference names apart
CACHED = """
g (float[N, 2, 1, 4] q, float[N, 2, P, 4] past_k, float[N, 2, {past}, 4] past_v,
   float[N, 2, 1, 4] new_k, float[N, 2, 1, 4] new_v, float[N, 1, 1, L] m)
 => (float[N, 2, 1, 4] y)
{{
    k = Concat <axis = 2> (past_k, new_k)
    v = Concat <axis = 2> (past_v, new_v)
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, t)
    a = Add (s, m)
    p = Softmax <axis = -1> (a)
    y = MatMul (p, v)
}}"""


@pytest.mark.parametrize(("past", "changed"), [("P", 1), ("R", 0)])
def test_keys_and_values_of_caches_that_are_as_long_have_no_longer_mask(past, changed):
    # every length that is a name is 3 here
    mask = np.zeros((3, 1, 1, 4), np.float32)
    _, outcome = fused(CACHED.format(past=past), m=mask)
    assert outcome.changed == changed


def test_values_of_another_size_need_the_standard_form():
    ops, _ = fused(SHAPED.format(**ALIKE | {"v": "N, 2, 5, 6"}), "runtime")
    assert ops == ["Attention"]


def test_a_mask_raises_the_opset_that_its_shape_needs():
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    model, outcome = run_exact(
        FuseAttention(form="runtime"),
        SHAPED.format(**ALIKE | MASKED | {"header": header}),
    )
    assert outcome.changed == 1
    assert model.opset_imports[""] == 15
