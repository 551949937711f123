"""Magnitude pruning: what stays, what goes, which combinations are refused, and what it does to
outputs.
"""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes._sparsity import rows as rows_module
from onnx_opt.passes.prune import Prune

TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
two_layers (float[1, 4] x) => (float[1, 2] y)
<float[4, 2] w = {1, -8, 2, 7, -3, 6, 4, 5}, float[2] b = {0.1, 0.1}>
{
    h = MatMul (x, w)
    y = Add (h, b)
}
"""

SHARED_IN_BRANCHES = """
<ir_version: 10, opset_import: ["" : 21]>
branches (bool c, float[1, 2] x) => (float[1, 2] y)
<float[2, 2] outer = {1, 2, 3, 4}>
{
    h = MatMul (x, outer)
    h2 = MatMul (h, outer)
    y = If (c) <
        then_branch = then () => (float[1, 2] t) <float[2, 2] inner = {-5, 6, 7,
            8}> { t = MatMul (h2, inner) },
        else_branch = other () => (float[1, 2] e) { e = MatMul (h2, outer) }
    >
}
"""

NOTHING_TO_PRUNE = """
<ir_version: 10, opset_import: ["" : 21]>
nothing (float[2, 2] x, float[2, 2] w) => (float[2, 2] y, float[2, 2] z, float[2, 2] q)
<float[2, 2] w = {1, 2, 3, 4}, float[2, 2] added = {1, 2, 3, 4}, int8[2, 2] i = {1, 2, 3, 4},
    float s = {0.5},
 float[2, 2] bad = {1, nan, 2, 3}>
{
    y = MatMul (x, w)
    a = Add (x, added)
    d = DequantizeLinear (i, s)
    z = MatMul (a, d)
    q = MatMul (a, bad)
}
"""


def model_of(text, **weights):
    """The model of a text; initializers named in `weights` replaced."""
    model = ir.from_proto(onnx.parser.parse_model(text.replace("nan", "0")))
    for name, array in weights.items():
        set_weight(model, name, array)
    return model


def set_weight(model, name, array):
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def one_op(op, attributes, array, x_shape, weight_first=False, perms=()):
    """A model y = op(x, chain of Transposes of w), w of any type."""
    tensor = ir.tensor(array, name="w")
    value = ir.Value(
        name="w",
        shape=tensor.shape,
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    x = ir.Value(
        name="x", shape=ir.Shape(x_shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    nodes, last = [], value
    for perm in perms:
        nodes.append(
            ir.node("Transpose", [last], {} if perm is None else {"perm": perm})
        )
        last = nodes[-1].outputs[0]
    nodes.append(
        ir.node(op, [last, x] if weight_first else [x, last], attributes, name="layer")
    )
    graph = ir.Graph(
        [x],
        nodes[-1].outputs,
        nodes=nodes,
        initializers=[value],
        opset_imports={"": 21},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def weight(model, name="w"):
    return model.graph.initializers[name].const_value.numpy()


def pruned(model, **options):
    outcome = Prune(**options).run(model, NullContext())
    return weight(model), outcome


def run_model(model, feeds):
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def test_leaves_what_is_not_a_float_weight_with_reasons():
    model = model_of(NOTHING_TO_PRUNE, bad=np.array([[1, np.nan], [2, 3]], np.float32))
    before = {n: v.const_value for n, v in model.graph.initializers.items()}
    outcome = Prune(sparsity=0.5).run(model, NullContext())
    assert outcome.changed == 0
    assert outcome.stats == {
        "weights": 0,
        "zeros": 0,
        "sparsity": 0.0,
        "select": "min",
        "zipped_bytes": 8,
    }
    assert [d.reason for d in outcome.declined] == [
        "weight 'w' is also an input of the model: callers may override it",
        "already quantized",
        "it holds NaN or infinity, which cannot be ranked by magnitude",
    ]
    assert {n: v.const_value for n, v in model.graph.initializers.items()} == before


def test_a_weight_that_is_also_the_scales_of_a_resize_stays():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    m (float[2, 4] x, float[1, 1, 2, 2] i) => (float[2] y, float[1, 1, 4, 2] j)
    <float[4] w = {1, 1, 2, 1}>
    {
        y = MatMul (x, w)
        j = Resize (i, , w)
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    outcome = Prune(sparsity=0.5).run(model, NullContext())
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("w", "another node uses it as a size, scale or bound")
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.0},
        {"sparsity": 0.5, "exclude": ("w",)},
        {"sparsity": 0.5, "ops": ("Conv",)},
        {"threshold": 0.5},
        {"sparsity": 0.0, "threshold": 0.0, "pattern": ""},
        {"sparsity": 0.0, "scope": "row"},
        {"sparsity": 0.0, "scope": "model", "select": "max", "mode": "clip"},
    ],
)
def test_options_that_select_nothing_change_nothing(options):
    model = model_of(TWO_LAYERS)
    original = model.graph.initializers["w"].const_value
    outcome = Prune(**options).run(model, NullContext())
    assert outcome.changed == 0
    assert model.graph.initializers["w"].const_value is original


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"sparsity": 0.5}, [0, -8, 0, 7, 0, 6, 0, 5]),
        (
            {"sparsity": 0.5, "threshold": 0.0, "pattern": ""},
            [0, -8, 0, 7, 0, 6, 0, 5],
        ),
        ({"sparsity": 0.49}, [0, -8, 0, 7, 0, 6, 4, 5]),
        ({"select": "max"}, [1, 0, 2, 0, -3, 0, 4, 0]),
        (
            {"select": "max", "mode": "clip", "sparsity": 0.25},
            [1, -6, 2, 6, -3, 6, 4, 5],
        ),
        ({"threshold": 3.0}, [0, -8, 0, 7, 0, 6, 4, 5]),
        ({"threshold": 7.0, "select": "max"}, [1, 0, 2, 0, -3, 6, 4, 5]),
        (
            {"threshold": 4.5, "select": "max", "mode": "clip"},
            [1, -4.5, 2, 4.5, -3, 4.5, 4, 4.5],
        ),
        ({"scope": "row"}, [0, -8, 0, 7, -3, 0, 4, 0]),
        ({"scope": "row", "select": "max"}, [1, 0, 2, 0, 0, 6, 0, 5]),
        (
            {"scope": "row", "select": "max", "mode": "clip", "sparsity": 0.25},
            [1, -7, 2, 7, -3, 6, 3, 5],
        ),
        ({"pattern": "1:2"}, [0, -8, 2, 0, 0, 6, 4, 0]),
        ({"pattern": "1:4"}, [0, -8, 0, 0, 0, 0, 4, 0]),
    ],
)
def test_what_is_kept(options, kept):
    model = model_of(TWO_LAYERS)
    array, outcome = pruned(model, **options)
    assert array.reshape(-1).tolist() == kept
    assert outcome.changed == 1
    assert outcome.stats["zeros"] == kept.count(0)
    assert outcome.stats["sparsity"] == kept.count(0) / 8
    again, second = pruned(model, **options)
    assert second.changed == 0
    assert again.reshape(-1).tolist() == kept
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_ties_go_by_index_and_what_is_zeroed_has_no_sign():
    model = model_of(
        TWO_LAYERS, w=np.array([[-1, 1], [1, -1], [2, 1], [-0.0, 1]], np.float32)
    )
    array, _ = pruned(model, sparsity=0.5)
    assert array.reshape(-1).tolist() == [0, 0, 0, -1, 2, 1, 0, 1]
    assert not np.signbit(array[array == 0]).any()


def test_ties_of_the_largest_go_by_index_too():
    model = model_of(
        TWO_LAYERS, w=np.array([[3, -3], [3, 1], [3, 2], [0, 1]], np.float32)
    )
    array, outcome = pruned(model, sparsity=0.5, select="max")
    assert array.reshape(-1).tolist() == [0, 0, 0, 1, 3, 2, 0, 1]
    assert outcome.stats["zeros"] == 4


def test_shared_weights_and_branches_are_pruned_once():
    model = model_of(SHARED_IN_BRANCHES)
    outcome = Prune(sparsity=0.5).run(model, NullContext())
    assert outcome.changed == 2
    assert outcome.stats["weights"] == 8
    assert weight(model, "outer").tolist() == [[0, 0], [3, 4]]
    inner = (
        model.graph.node(2).attributes["then_branch"].as_graph().initializers["inner"]
    )
    assert inner.const_value.numpy().tolist() == [[0, 0], [7, 8]]


def test_model_scope_ranks_all_weights_together():
    model = model_of(SHARED_IN_BRANCHES)
    outcome = Prune(scope="model").run(model, NullContext())
    assert (outcome.changed, outcome.stats["zeros"]) == (1, 4)
    assert weight(model, "outer").tolist() == [[0, 0], [0, 0]]


def test_one_bad_weight_leaves_the_pool_and_the_rest_is_ranked():
    model = model_of(
        SHARED_IN_BRANCHES, outer=np.array([[1, np.inf], [3, 4]], np.float32)
    )
    for options in ({"scope": "model"}, {"allocation": "lamp"}, {"allocation": "erk"}):
        trial = model.clone()
        outcome = Prune(**options).run(trial, NullContext())
        assert [d.where for d in outcome.declined] == ["outer"]
        assert (outcome.stats["weights"], outcome.stats["zeros"]) == (4, 2)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5},
        {"scope": "model"},
        {"scope": "row"},
        {"pattern": "2:4"},
        {"select": "max"},
        {"allocation": "lamp"},
    ],
)
def test_every_float_type_keeps_its_type_and_count(dtype, options):
    array = np.random.default_rng(0).standard_normal((64, 48)).astype(dtype)
    got, outcome = pruned(one_op("MatMul", {}, array, [1, 64]), **options)
    assert got.dtype == array.dtype
    assert outcome.stats["zeros"] == 64 * 48 // 2
    np.testing.assert_array_equal(got[got != 0], array[got != 0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_clipping_a_narrow_type_twice_changes_nothing(dtype):
    array = np.random.default_rng(0).standard_normal((64, 48)).astype(dtype)
    for options in (
        {"threshold": 0.3},
        {"sparsity": 0.1},
        {"sparsity": 0.1, "scope": "row"},
    ):
        model = one_op("MatMul", {}, array, [1, 64])
        _, first = pruned(model, select="max", mode="clip", **options)
        _, second = pruned(model, select="max", mode="clip", **options)
        assert first.stats["clipped"] > 0
        assert (second.changed, second.stats["clipped"]) == (0, 0)


@settings(max_examples=80, deadline=None)
@example(9, 1, 1 / 3, 1, False)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0, 0.99),
    st.integers(1, 5),
    st.booleans(),
)
def test_count_is_exact_and_kept_outweigh_pruned(
    rows, columns, sparsity, levels, by_row
):
    random = np.random.default_rng(rows * 31 + columns)
    array = (random.integers(-levels, levels + 1, (rows, columns)) / 4).astype(
        np.float32
    )
    got, _ = pruned(
        one_op("Gemm", {"transB": 1}, array, [1, columns]),
        sparsity=sparsity,
        scope="row" if by_row else "layer",
    )
    before, after = (
        (array, got) if by_row else (array.reshape(1, -1), got.reshape(1, -1))
    )
    for old, new in zip(before, after, strict=True):
        target = max(
            math.floor(Fraction(repr(sparsity)) * old.size), int((old == 0).sum())
        )  # of the number as written
        assert int((new == 0).sum()) == target
        gone = np.abs(old[(new == 0) & (old != 0)])
        if gone.size and (new != 0).any():
            assert gone.max() <= np.abs(new[new != 0]).min()


ROW_CASES = [
    ("Conv", {}, (6, 4, 3, 3), [1, 4, 8, 8], (1, 2, 3), 1),
    ("ConvTranspose", {}, (4, 6, 3, 3), [1, 4, 8, 8], (0, 2, 3), 0),
    ("Gemm", {"transB": 1}, (6, 8), [1, 8], (1,), 1),
    ("Gemm", {}, (8, 6), [1, 8], (0,), 0),
    ("MatMul", {}, (8, 6), [1, 8], (0,), 0),
    ("MatMul", {}, (3, 8, 6), [3, 1, 8], (1,), 1),
    ("LSTM", {"hidden_size": 2}, (1, 8, 4), [1, 1, 4], (2,), 2),
]


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "x_shape", "summed", "axis"), ROW_CASES
)
def test_rows_are_what_one_output_sums(
    op, attributes, shape, x_shape, summed, axis, monkeypatch
):
    monkeypatch.setattr(rows_module, "_SLAB", 40)
    array = (
        np.random.default_rng(0)
        .permutation(np.arange(1, np.prod(shape) + 1))
        .reshape(shape)
        .astype(np.float32)
    )
    got, outcome = pruned(one_op(op, attributes, array, x_shape), scope="row")
    length = int(np.prod([shape[a] for a in summed]))
    assert outcome.declined == []
    assert set((got == 0).sum(axis=summed).reshape(-1).tolist()) == {length // 2}
    kept = np.where(got == 0, np.inf, got).min(axis=summed)
    gone = np.where(got == 0, array, 0).max(axis=summed)
    assert (kept > gone).all()


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "x_shape", "summed", "axis"), ROW_CASES
)
def test_patterns_run_along_the_input_axis(
    op, attributes, shape, x_shape, summed, axis
):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    got, outcome = pruned(one_op(op, attributes, array, x_shape), pattern="1:4")
    assert outcome.declined == []
    groups = np.moveaxis(got, axis, -1).reshape(-1, 4)
    assert (groups != 0).sum(axis=1).tolist() == [1] * len(groups)
    largest = np.abs(np.moveaxis(array, axis, -1).reshape(-1, 4)).argmax(axis=1)
    np.testing.assert_array_equal((groups != 0).argmax(axis=1), largest)


def test_a_pattern_counts_through_transposes():
    array = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    got, _ = pruned(one_op("MatMul", {}, array, [1, 8], perms=(None,)), pattern="2:4")
    assert ((got.reshape(6, 2, 4) != 0).sum(axis=2) == 2).all()
    array = np.random.default_rng(0).standard_normal((4, 2, 6)).astype(np.float32)
    got, _ = pruned(
        one_op("MatMul", {}, array, [2, 1, 4], perms=([2, 0, 1], [2, 1, 0], [0, 1, 2])),
        pattern="2:4",
    )
    assert ((got != 0).sum(axis=0) == 2).all()


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (
            one_op("Conv", {}, np.ones((4, 3, 3, 3), np.float32), [1, 3, 8, 8]),
            {"pattern": "2:4"},
            "its input axis has 3 elements, not a multiple of 4",
        ),
        (
            one_op(
                "ConvTranspose",
                {"group": 2},
                np.ones((4, 3, 3, 3), np.float32),
                [1, 4, 8, 8],
            ),
            {"pattern": "2:4"},
            "its input axis has 2 elements, not a multiple of 4",
        ),
        (
            one_op(
                "ConvTranspose",
                {"group": 2},
                np.ones((4, 3, 3, 3), np.float32),
                [1, 4, 8, 8],
            ),
            {"scope": "row"},
            "the output channels of a grouped ConvTranspose are not slices of its weight",
        ),
    ],
)
def test_declines_what_has_no_such_axis(model, options, reason):
    _, outcome = pruned(model, **options)
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [("w", reason)]


def test_declines_uses_that_disagree_on_the_axis():
    model = model_of(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        tied (float[4, 4] x) => (float[4, 4] y) <float[4, 4] w>
        { t = Transpose (w)  h = MatMul (x, w)  y = MatMul (h, t) }
        """.replace(
            "<float[4, 4] w>",
            "<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>",
        )
    )
    for options, reason in (
        ({"pattern": "2:4"}, "its uses read it along different axes"),
        ({"scope": "row"}, "its uses sum it over different axes"),
    ):
        _, outcome = pruned(model, **options)
        assert [d.reason for d in outcome.declined] == [reason]
    _, outcome = pruned(model, sparsity=0.5)
    assert outcome.stats["zeros"] == 8


def test_names_and_ops_choose_weights():
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        named (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] head = {1, 2, 3, 4}, float[2, 2] body0 = {1, 2, 3, 4}, float[2,
            2] body1 = {1, 2, 3, 4}>
        { a = MatMul (x, body0)  b = Gemm (a, body1)  y = MatMul (b, head) }
        """
    for options, names in (
        ({"exclude": ("head",)}, ["body0", "body1"]),
        ({"include": ("body*",)}, ["body0", "body1"]),
        ({"include": ("body*",), "exclude": ("*1",)}, ["body0"]),
        ({"ops": ("Gemm",)}, ["body1"]),
    ):
        model = model_of(text)
        outcome = Prune(sparsity=0.5, **options).run(model, NullContext())
        assert [
            n for n in ("body0", "body1", "head") if (weight(model, n) == 0).any()
        ] == names
        assert len(outcome.declined) == 3 - len(names)


def test_reasons_for_weights_that_names_leave_out():
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        named (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] head = {1, 2, 3, 4}, float[2, 2] body = {1, 2, 3, 4}>
        { a = MatMul (x, body)  y = MatMul (a, head) }
        """
    for options, reason in (
        ({"include": ("head",)}, "not matched by include"),
        ({"include": ("y",)}, "not matched by include"),
        ({"exclude": ("bo*",)}, "matched by exclude"),
        ({"exclude": ("a",)}, "matched by exclude"),
    ):
        outcome = Prune(**options).run(model_of(text), NullContext())
        assert [(d.where, d.reason) for d in outcome.declined] == [("body", reason)]


def test_a_name_equal_to_its_pattern_matches():
    array = np.arange(1, 5, dtype=np.float32).reshape(2, 2)
    model = one_op("MatMul", {}, array, [1, 2])
    model.graph.initializers["w"].name = "w[0]"
    outcome = Prune(sparsity=0.5, include=("w[0]",)).run(model, NullContext())
    assert (outcome.changed, outcome.declined) == (1, [])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_layer_is_refused_with_the_nearest_names(option):
    array = np.ones((2, 2), np.float32)
    model = one_op("MatMul", {}, array, [1, 2])
    with pytest.raises(UsageError, match="'layers' matches no layer") as caught:
        Prune(sparsity=0.5, **{option: ("w", "layers")}).run(model, NullContext())
    assert caught.value.where == f"prune.{option}"
    assert caught.value.fix.startswith("the nearest names are layer")


def test_a_pattern_is_no_error_where_there_is_nothing_to_prune():
    model = model_of("m (float[1] x) => (float[1] y) { y = Relu (x) }")
    outcome = Prune(sparsity=0.5, include=("w",)).run(model, NullContext())
    assert (outcome.changed, outcome.declined) == (0, [])


def test_a_pattern_may_name_a_quantized_layer():
    model = model_of(NOTHING_TO_PRUNE)
    outcome = Prune(sparsity=0.5, exclude=("z",)).run(model, NullContext())
    assert "already quantized" in [d.reason for d in outcome.declined]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"sparsity": 1.0}, "prune.sparsity"),
        ({"sparsity": float("nan")}, "prune.sparsity"),
        ({"threshold": -1.0}, "prune.threshold"),
        ({"threshold": float("inf")}, "prune.threshold"),
        ({"mode": "clip"}, "prune.mode"),
        ({"pattern": "2x4"}, "prune.pattern"),
        ({"pattern": "4:4"}, "prune.pattern"),
        ({"pattern": "2:4", "sparsity": 0.6}, "prune.sparsity"),
        ({"pattern": "2:4", "threshold": 0.1}, "prune.threshold"),
        ({"pattern": "2:4", "scope": "row"}, "prune.pattern"),
        ({"pattern": "2:4", "select": "max"}, "prune.select"),
        ({"allocation": "erk", "scope": "model"}, "prune.scope"),
        ({"allocation": "lamp", "select": "max"}, "prune.select"),
        ({"ops": ("Convv",)}, "prune.ops"),
    ],
)
def test_refuses_options_that_contradict_each_other(options, where):
    with pytest.raises(UsageError) as caught:
        Prune(**options)
    assert caught.value.where == where
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        "prune",
        "prune(sparsity=0.6, scope=model)",
        "prune(pattern=2:4)",
        "prune(threshold=0.01, select=max, mode=clip)",
        'prune(allocation=erk, include=[a*, "b c"], ops=[Conv])',
    ],
)
def test_text_round_trips(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("prune(threshold=0.0)", {"threshold": 0.0}),
        ('prune(pattern="")', {"pattern": ""}),
        ("prune(threshold=0, scope=row)", {"threshold": 0.0, "scope": "row"}),
        ("prune(threshold=none, pattern=none)", {}),
    ],
)
def test_text_of_options_that_are_off_replays(text, options):
    assert list(parse(text).passes) == [Prune(**options)]


def test_shell_safe_text_carries_a_pattern():
    assert list(parse("prune:pattern=2:4").passes) == [Prune(pattern="2:4")]


def sqnr_db(reference, got):
    return 10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum())


def test_the_largest_hurt_more_than_the_smallest_at_equal_sparsity():
    random = np.random.default_rng(0)
    array = random.standard_normal((64, 32)).astype(np.float32)
    x = random.standard_normal((16, 64)).astype(np.float32)
    drift = {}
    for select in ("min", "max"):
        model = one_op("MatMul", {}, array, [16, 64])
        model.graph.outputs[0].name = "y"
        model.graph.outputs[0].type, model.graph.outputs[0].shape = (
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([16, 32]),
        )
        got, outcome = pruned(model, sparsity=0.3, select=select)
        assert outcome.stats["sparsity"] == 614 / 2048
        np.testing.assert_allclose(
            run_model(model, {"x": x})[0], x @ got, rtol=1e-5, atol=1e-4
        )
        drift[select] = sqnr_db(x @ array, x @ got)
    assert drift["min"] > 15
    assert drift["max"] < 3


def test_zipped_size_counts_the_zeros():
    array = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
    outcomes = [
        pruned(one_op("MatMul", {}, array, [1, 200]), sparsity=s)[1]
        for s in (0.0, 0.5, 0.9)
    ]
    sizes = [outcome.stats["zipped_bytes"] for outcome in outcomes]
    assert 0.85 < sizes[0] / array.nbytes < 1
    assert 0.5 < sizes[1] / array.nbytes < 0.62
    assert 0.1 < sizes[2] / array.nbytes < 0.2


def test_weights_are_described_not_copied(tmp_path):
    array = np.random.default_rng(0).standard_normal((1024, 700)).astype(np.float32)
    ir.save(
        one_op("MatMul", {}, array, [1, 1024]),
        tmp_path / "m.onnx",
        external_data="m.data",
    )
    model = ir.load(tmp_path / "m.onnx")
    Prune(sparsity=0.5).run(model, NullContext())
    Prune(pattern="1:4").run(model, NullContext())
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor.source.source, ir.ExternalTensor)
    ir.save(model, tmp_path / "out.onnx", external_data="out.data")
    written = ir.load(tmp_path / "out.onnx").graph.initializers["w"].const_value.numpy()
    threshold = np.sort(np.abs(array).reshape(-1))[array.size // 2 - 1]
    half = np.where(np.abs(array) <= threshold, 0, array).reshape(-1, 4, 700)
    expected = np.where(
        np.abs(half) == np.abs(half).max(axis=1, keepdims=True), half, 0
    ).reshape(array.shape)
    np.testing.assert_array_equal(written, expected)
