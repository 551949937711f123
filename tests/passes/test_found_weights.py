"""Weights found however they are spelled, by every pass alike, with data and without, or named."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._calibrated.layers import fittable_layers
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes.quant import Quant

SIZE = 64
HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>\n'
PLAIN = "y = MatMul (x, w)"
FOUND = {
    "plain": PLAIN,
    "identities": "a = Identity (w)\n b = Identity (a)\n y = MatMul (x, b)",
    "transpose": "t = Transpose <perm = [1, 0]> (w)\n y = MatMul (x, t)",
    "default perm": "t = Transpose (w)\n y = MatMul (x, t)",
    "transposed back": (
        "t = Transpose (w)\n i = Identity (t)\n u = Transpose (i)\n y = MatMul (x, u)"
    ),
    "transposed Gemm": "t = Transpose (w)\n y = Gemm <transB = 1> (x, t)",
    "cast back": "h = Cast <to = 10> (w)\n c = Cast <to = 1> (h)\n y = MatMul (x, c)",
    "reshape": "r = Reshape (w, square)\n y = MatMul (x, r)",
    "norm": (
        "n = ReduceL2 <keepdims = 1> (w, one)\n u = Div (w, n)\n v = Mul (u, gain)\n"
        " y = MatMul (x, v)"
    ),
    "halves": (
        "a, b = Split <axis = 1, num_outputs = 2> (w)\n c = Concat <axis = 1> (b, a)\n"
        " y = MatMul (x, c)"
    ),
    "cut at lengths of an activation": (
        "z = Constant <value_ints = [0]> ()\n s = Shape <start = 1> (x)\n"
        " r = Slice (w, z, s)\n y = MatMul (x, r)"
    ),
    "norm behind Transpose": "u = Mul (w, gain)\n t = Transpose (u)\n y = MatMul (x, t)",
    "einsum": 'y = Einsum <equation = "ni,io->no"> (x, w)',
    "einsum by rows": 'y = Einsum <equation = "...i, oi -> ...o"> (x, w)',
    "weight first": 'y = Einsum <equation = "io,ni->no"> (w, x)',
    "heads out": (
        'q = Reshape (w, heads)\n h = Einsum <equation = "nc,chd->nhd"> (x, q)\n'
        " y = Flatten (h)"
    ),
    "heads in": (
        "s = Reshape (x, split)\n q = Reshape (w, joined)\n"
        'y = Einsum <equation = "nhd,hdc->nc"> (s, q)'
    ),
}
"""Products of (n, 64) by a weight of (64, 64), in many spellings."""

PASSES = {
    "quant": "quant(measure=false)",
    "blocked": "quant(blocked)",
    "stored": "quant(bits=4, kernel=float, ends=same)",
    "compress-weights": "compress-weights",
    "prune": "prune(sparsity=0.5)",
}
OTHERS = [text for text in PASSES.values() if not text.startswith("quant")]
LEAST_SQNR = {
    "quant": 30,
    "blocked": 30,
    "stored": 12,
    "compress-weights": 30,
    "prune": 5,
}
"""dB that outputs keep: of Gaussian weights 8 bits cost 40, 4 bits 17, half of them 8."""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model_of(
    body, inputs=f"float[n, {SIZE}] x", outputs=f"float[n, {SIZE}] y", **weights
):
    """The model of a body, with those constants of `w` and the others that it names."""
    known = {
        "w": normal(SIZE, SIZE),
        "gain": normal(SIZE, 1, seed=1) + 2,
        "one": np.array([1], np.int64),
        "square": np.array([SIZE, SIZE], np.int64),
        "heads": np.array([SIZE, 4, SIZE // 4], np.int64),
        "split": np.array([0, 4, SIZE // 4], np.int64),
        "joined": np.array([4, SIZE // 4, SIZE], np.int64),
    }
    proto = onnx.parser.parse_model(f"{HEAD} m ({inputs}) => ({outputs}) {{ {body} }}")
    read = {name for node in nodes_of(proto.graph) for name in node.input}
    for name, array in {**known, **weights}.items():
        if name in read or name in weights:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    normalize(model)
    return model


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def feeds():
    return {"x": normal(32, SIZE, seed=2)}


def outcome_of(text, model, context=None):
    (pass_,) = parse(text).passes
    return pass_.run(model, context or NullContext())


def sqnr(expected, actual):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum())


@pytest.mark.parametrize("spelling", FOUND)
@pytest.mark.parametrize("name", PASSES)
def test_a_weight_is_found_however_it_is_spelled(name, spelling):
    model = model_of(FOUND[spelling])
    (expected,) = run_session(model).run(None, feeds())
    outcome = outcome_of(PASSES[name], model)
    assert (outcome.changed, outcome.declined) == (1, [])
    assert outcome.stats["weights"] == (
        1 if name == "compress-weights" else SIZE * SIZE
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (actual,) = run_session(model).run(None, feeds())
    assert sqnr(expected, actual) > LEAST_SQNR[name]
    # nothing of the float weight is left beside what replaced it
    if name not in ("prune", "compress-weights"):
        assert not any(v.size == SIZE * SIZE and is_float(v) for v in constants(model))


def constants(model):
    return [value.const_value for value in model.graph.initializers.values()]


def is_float(tensor):
    return tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@pytest.mark.parametrize("spelling", FOUND)
@pytest.mark.parametrize(
    "text", ["quant(measure=false)", "gptq(bits=8)", "prune(sparsity=0.3)"]
)
def test_data_finds_what_no_data_finds(text, spelling):
    model = model_of(FOUND[spelling])
    (expected,) = run_session(model).run(None, feeds())
    batches = [{"x": normal(32, SIZE, seed=seed)} for seed in range(3, 11)]
    outcome = outcome_of(text, model, CalibratedContext(batches))
    assert outcome.changed == 1
    (actual,) = run_session(model).run(None, feeds())
    assert sqnr(expected, actual) > (9 if text.startswith("prune") else 30)


IDS = f"float[n, {SIZE}] x, int64[n] ids"
NAMED = [
    (
        "y = com.microsoft.FusedMatMul (x, w)",
        {},
        "FusedMatMul y of com.microsoft reads it, an operator that is not of ONNX",
    ),
    (
        "e = Gather (w, ids)\n y = Add (x, e)",
        {"inputs": IDS},
        "Gather e looks up rows of it and multiplies by none; compress-weights shrinks tables",
    ),
    (
        "y = MatMul (x, w)",
        {"inputs": f"float[n, {SIZE}] x, float[{SIZE}, {SIZE}] w"},
        "also an input of the model: callers may override it",
    ),
    (
        "y = MatMul (x, w)",
        {"outputs": f"float[n, {SIZE}] y, float[{SIZE}, {SIZE}] w"},
        "is an output of the model",
    ),
    (
        "t = Transpose (w)\n y = MatMul (x, t)",
        {"outputs": f"float[n, {SIZE}] y, float[{SIZE}, {SIZE}] t"},
        "is an output of the model",
    ),
    (
        'y = Einsum <equation = "ni,in->in"> (x, w)',
        {"inputs": f"float[{SIZE}, {SIZE}] x", "outputs": f"float[{SIZE}, {SIZE}] y"},
        "Einsum y is not a product of an activation and one matrix",
    ),
]


@pytest.mark.parametrize(("body", "options", "reason"), NAMED)
@pytest.mark.parametrize("text", [*PASSES.values(), "gptq"])
def test_what_is_left_has_a_name_and_a_reason(text, body, options, reason):
    # they store tables: there is nothing to name
    if text.startswith(("compress-weights", "quant")):
        body = body.replace("Gather (w", "Gather <axis = 1> (w")
    model = model_of(body, **options)
    before = ir.to_proto(model).SerializeToString()
    fed = {"x": normal(SIZE, SIZE), "ids": np.arange(SIZE)}
    given = [v.name for v in model.graph.inputs if not v.is_initializer()]
    calibrated = CalibratedContext([{name: fed[name] for name in given}])
    outcome = outcome_of(text, model, calibrated if text == "gptq" else NullContext())
    assert outcome.changed == 0
    assert [reason in declined.reason for declined in outcome.declined] == [True]
    assert ir.to_proto(model).SerializeToString() == before


def with_a_sum_of_shared_weights():
    """A weight that is the sum of two others, which others read too: it is as large as either."""
    return model_of(
        "u = Add (w, v)\n h = MatMul (x, u)\n"
        "p = com.microsoft.FusedMatMul (h, w)\n y = com.microsoft.FusedMatMul (p, v)",
        v=normal(SIZE, SIZE, seed=5),
    )


def test_quant_simplifies_where_that_uncovers_a_weight():
    outcome = Quant(measure=False).run(with_a_sum_of_shared_weights(), NullContext())
    assert outcome.changed == 1
    assert outcome.stats["layers"] == 1
    assert not any("simplify" in declined.reason for declined in outcome.declined)


@pytest.mark.parametrize("text", [*OTHERS, "gptq"])
def test_arithmetic_that_would_make_the_file_larger_is_named(text):
    model = with_a_sum_of_shared_weights()
    context = CalibratedContext([feeds()]) if text == "gptq" else NullContext()
    outcome = outcome_of(text, model, context)
    assert outcome.changed == 0
    assert [declined.where for declined in outcome.declined] == ["MatMul h"]
    assert "from constants by Add u: run simplify first" in outcome.declined[0].reason


@pytest.mark.parametrize(
    ("text", "changed", "reason"),
    [
        ("quant(measure=false)", 1, None),
        ("quant(blocked)", 1, None),
        ("quant(bits=4, kernel=float, ends=same)", 1, None),
        ("prune(sparsity=0.5)", 1, None),
        ("compress-weights", 0, "it is FLOAT16, not FLOAT"),
        ("gptq", 0, "its weight is stored as FLOAT16, not FLOAT"),
    ],
)
def test_a_weight_stored_in_half_precision(text, changed, reason):
    half = normal(SIZE, SIZE).astype(np.float16)
    model = model_of("c = Cast <to = 1> (w)\n y = MatMul (x, c)", w=half)
    (expected,) = run_session(model).run(None, feeds())
    context = CalibratedContext([feeds()]) if text == "gptq" else NullContext()
    outcome = outcome_of(text, model, context)
    reasons = [declined.reason for declined in outcome.declined]
    assert (outcome.changed, reasons) == (changed, [reason] if reason else [])
    (actual,) = run_session(model).run(None, feeds())
    assert changed == 0 or sqnr(expected, actual) > 5


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_model_of_other_floats_is_declined_with_a_remedy(kind):
    name = ir.DataType.from_numpy(np.dtype(kind)).name
    model = model_of("y = MatMul (x, w)", w=normal(SIZE, SIZE).astype(kind))
    outcome = outcome_of("quant(measure=false)", model)
    assert outcome.changed == 0
    reasons = [declined.reason for declined in outcome.declined]
    assert reasons == [f"its weight is {name}, not FLOAT: export the model in float32"]


def test_a_long_chain_is_folded():
    names = ["w", *(f"i{index}" for index in range(50))]
    links = [f"{b} = Identity ({a})" for a, b in itertools.pairwise(names)]
    model = model_of("\n".join([*links, f"y = MatMul (x, {names[-1]})"]))
    assert outcome_of("quant(measure=false)", model).changed == 1
    assert not any(node.op_type == "Identity" for node in model.graph)


def test_random_numbers_are_no_constants():
    model = model_of(
        "r = RandomNormalLike <seed = 1.0> (w)\n u = Mul (r, w)\n y = MatMul (x, u)"
    )
    assert outcome_of("prune(sparsity=0.5)", model).changed == 0
    assert [node.op_type for node in model.graph] == [
        "RandomNormalLike",
        "Mul",
        "MatMul",
    ]


BOTH_WAYS = "t = Transpose (w)\n h = MatMul (x, w)\n y = MatMul (h, t)"


@pytest.mark.parametrize(
    "text",
    [
        "quant(measure=false)",
        "quant(blocked)",
        "quant(bits=4, kernel=float, ends=same)",
    ],
)
@pytest.mark.parametrize("data", [False, True])
def test_a_weight_read_both_ways_has_codes_for_each(text, data):
    model = model_of(BOTH_WAYS)
    (expected,) = run_session(model).run(None, feeds())
    context = CalibratedContext([feeds()]) if data else NullContext()
    outcome = outcome_of(text, model, context)
    assert (outcome.changed, outcome.stats["layers"]) == (2, 2)
    (actual,) = run_session(model).run(None, feeds())
    assert sqnr(expected, actual) > (12 if "bits=4" in text else 28)
    assert not any(node.op_type == "Transpose" for node in model.graph)


def test_both_readers_see_one_pruned_weight():
    model = model_of(BOTH_WAYS)
    assert outcome_of("prune(sparsity=0.5)", model).stats["weights"] == SIZE * SIZE
    w = model.graph.initializers["w"].const_value.numpy()
    assert np.count_nonzero(w) == w.size // 2
    (actual,) = run_session(model).run(None, feeds())
    np.testing.assert_allclose(actual, feeds()["x"] @ w @ w.T, rtol=1e-3, atol=1e-3)


TIED = "e = Gather (w, ids)\n t = Transpose (w)\n y = MatMul (e, t)"


@pytest.mark.parametrize(
    ("text", "changed", "reasons"),
    [
        ("quant(measure=false)", 2, []),
        ("quant(measure=false, tables=float)", 1, ["Gather e reads it too, so it"]),
        ("quant(blocked)", 2, []),
        (
            "quant(bits=4, kernel=float)",
            0,
            [
                "Gather e reads its weight too, in float: the file would only",
                "reads it too, and stays float",
            ],
        ),
        ("compress-weights", 1, []),
        ("gptq", 0, ["weight 'w' is shared with another node"]),
    ],
)
def test_a_tied_head(text, changed, reasons):
    model = model_of(TIED, inputs="int64[n] ids")
    ids = {"ids": np.arange(20)}
    (expected,) = run_session(model).run(None, ids)
    context = CalibratedContext([ids]) if text == "gptq" else NullContext()
    outcome = outcome_of(text, model, context)
    assert outcome.changed == changed
    for reason, declined in zip(reasons, outcome.declined, strict=True):
        assert reason in declined.reason
    (actual,) = run_session(model).run(None, ids)
    assert sqnr(expected, actual) > 28 if changed else np.array_equal(expected, actual)


def test_a_chain_outside_of_the_subgraph_that_reads_it():
    body = (
        "t = Transpose (w)\n c = ReduceMax <keepdims = 0> (x)\n b = Cast <to = 9> (c)\n"
        " y = If (b) <then_branch = f () => (float[n, 64] p) { p = MatMul (x, t) },"
        " else_branch = g () => (float[n, 64] q) { q = Identity (x) }>"
    )
    model = model_of(body)
    (expected,) = run_session(model).run(None, feeds())
    assert outcome_of("quant(measure=false)", model).changed == 1
    (actual,) = run_session(model).run(None, feeds())
    assert sqnr(expected, actual) > 30
    assert not any(node.op_type == "Transpose" for node in model.graph)


def test_gptq_rounds_layers_of_branches():
    body = (
        "c = ReduceMax <keepdims = 0> (x)\n b = Cast <to = 9> (c)\n"
        " y = If (b) <then_branch = f () => (float[n, 64] p) { p = MatMul (x, w) },"
        " else_branch = g () => (float[n, 64] q) { q = Identity (x) }>"
    )
    outcome = outcome_of("gptq", model_of(body), CalibratedContext([feeds()]))
    assert outcome.changed == 1
    assert not outcome.declined


def test_gptq_names_layers_of_loops():
    body = (
        "n = Constant <value = int64 {2}> ()\n b = Constant <value = bool {1}> ()\n"
        " y = Loop (n, b, x) <body = turn (int64 i, bool k, float[m, 64] s)"
        " => (bool l, float[m, 64] p) { l = Identity (k) p = MatMul (s, w) }>"
    )
    outcome = outcome_of("gptq", model_of(body), CalibratedContext([feeds()]))
    assert [declined.where for declined in outcome.declined] == ["MatMul p"]
    assert "it lies in the body of a Loop or Scan" in outcome.declined[0].reason


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("transpose", "y"),
        ("transpose", "w"),
        ("einsum", "y"),
        ("einsum", "w"),
        ("norm", "y"),
        ("norm", "v"),
    ],
)
@pytest.mark.parametrize(
    "text", ["quant(measure=false, exclude={})", "prune(exclude={})"]
)
def test_a_layer_is_left_out_by_its_names(text, spelling, name):
    model = model_of(FOUND[spelling])
    before = ir.to_proto(model).SerializeToString()
    outcome = outcome_of(text.format(name), model)
    assert outcome.changed == 0
    assert [declined.reason for declined in outcome.declined] == ["matched by exclude"]
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    "attributes",
    [
        "alpha = 0.5, beta = 2.0",
        "alpha = 0.5, beta = 2.0, transB = 1",
        "transA = 1, beta = 0.5",
    ],
)
@pytest.mark.parametrize(
    "text", [PASSES["blocked"], PASSES["stored"], "compress-weights"]
)
def test_forms_that_only_store_weights_keep_what_a_gemm_does_besides(text, attributes):
    model = model_of(
        f"y = Gemm <{attributes}> (x, w, b)",
        inputs=f"float[{SIZE}, {SIZE}] x",
        outputs=f"float[{SIZE}, {SIZE}] y",
        b=normal(SIZE),
    )
    fed = {"x": normal(SIZE, SIZE, seed=2)}
    (expected,) = run_session(model).run(None, fed)
    kept = dict(model.graph[-1].attributes)
    assert outcome_of(text, model).changed == 1
    gemm = model.graph[-1]
    for name in ("alpha", "beta", "transA"):
        assert gemm.attributes.get(name) == kept.get(name)
    (actual,) = run_session(model).run(None, fed)
    assert sqnr(expected, actual) > (12 if text == PASSES["stored"] else 30)


@pytest.mark.parametrize(
    ("text", "changed", "reasons"),
    [
        ("quant", 0, ["it gives an output of its graph, which stays float"]),
        ("quant(blocked)", 0, ["Conv has no kernel for blocked weights"]),
        ("quant(bits=4, kernel=float)", 1, []),
    ],
)
def test_a_convolution_of_computed_weight_that_writes_an_output(text, changed, reasons):
    model = model_of(
        "n = ReduceL2 <keepdims = 1> (v, axes)\n u = Div (v, n)\n k = Mul (u, g)\n"
        " y = Conv (x, k)",
        inputs="float[n, 8, 32] x",
        outputs="float[n, 16, 30] y",
        v=normal(16, 8, 3),
        g=normal(16, 1, 1),
        axes=np.array([1, 2], np.int64),
    )
    fed = {"x": normal(4, 8, 32, seed=2)}
    (expected,) = run_session(model).run(None, fed)
    outcome = outcome_of(text, model)
    assert (outcome.changed, [d.reason for d in outcome.declined]) == (changed, reasons)
    (actual,) = run_session(model).run(None, fed)
    assert sqnr(expected, actual) > 30 if changed else np.array_equal(expected, actual)


@pytest.mark.parametrize(
    "text", ["quant(measure=false)", "quant(dynamic, measure=false)"]
)
def test_integers_do_not_stand_for_such_a_gemm(text):
    model = model_of("y = Gemm <alpha = 0.5> (x, w)")
    for context in (NullContext(), CalibratedContext([feeds()])):
        outcome = outcome_of(text, model, context)
        assert [declined.reason for declined in outcome.declined] == [
            "it scales its product or its bias (alpha, beta)"
        ]


TWO_LAYERS = "h = MatMul (x, w)\n r = Relu (h)\n y = MatMul (r, v)"


class Listening(NullContext):
    """A context that remembers what it was warned of."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def warn(self, where, message):
        self.warnings.append((where, message))


@pytest.mark.parametrize(
    ("text", "width", "warned"),
    [
        ("quant(bits=4, measure=false)", 8, True),
        ("quant(binary, kernel=float)", 8, True),
        ("quant(ternary, kernel=float)", 8, True),
        ("quant(bits=4, ends=same, measure=false)", 4, False),
        ("quant(binary, ends=same)", 1, False),
        ("quant(binary, planes=3, ends=same)", 3, False),
        ("quant(ternary, ends=same)", 2, False),
        ("quant(blocked, bits=4)", 4, False),
        ("quant(measure=false)", 8, False),
    ],
)
def test_weights_are_counted_by_bits_and_none_as_asked_is_a_warning(
    text, width, warned
):
    model = model_of(TWO_LAYERS, v=normal(SIZE, SIZE, seed=3))
    context = Listening()
    outcome = outcome_of(text, model, context)
    counts = {key: n for key, n in outcome.stats.items() if key.endswith("_bit")}
    assert counts == {f"weights_{width}_bit": 2 * SIZE * SIZE}
    assert [("ends=same" in message) for _, message in context.warnings] == [
        True
    ] * warned


def test_three_layers_have_two_widths():
    three = TWO_LAYERS.replace("y = MatMul", "g = MatMul") + "\n y = MatMul (g, u)"
    model = model_of(three, v=normal(SIZE, SIZE, seed=3), u=normal(SIZE, SIZE, seed=4))
    context = Listening()
    outcome = outcome_of("quant(bits=4, measure=false)", model, context)
    assert outcome.stats["weights_8_bit"] == 2 * SIZE * SIZE
    assert outcome.stats["weights_4_bit"] == SIZE * SIZE
    assert context.warnings == []


def test_what_reads_a_single_vector_is_named():
    text = (
        "one_vector (float[n] x) => (float[3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {"
    )
    model = ir.from_proto(onnx.parser.parse_model(f"{HEAD}{text} y = MatMul (x, w) }}"))
    layers, declined = fittable_layers(model)
    assert layers == []
    assert "it reads a single vector" in declined[0].reason
