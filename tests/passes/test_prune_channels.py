"""Channel pruning: what stays, which channels go, budgets, refusals, and models of odd kinds."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from exactness import HEADER
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.importance.criteria import CRITERIA
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes.prune_channels import PruneChannels
from sample_models import model_from

SIX = """
six (float[batch, 2] x) => (float[batch, 2] y)
<float[2, 6] w1 = {5, 1, 4, 2, 6, 3, 0, 0, 0, 0, 0, 0}, float[6] b1 = {10, 20, 30, 40, 50, 60},
 float[6, 2] w2 = {1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0}>
{
    h = MatMul (x, w1)
    b = Add (h, b1)
    r = Relu (b)
    y = MatMul (r, w2)
}
"""
"""The size of channel i is what w1's first row says; b1 tells which channel is where."""

PAIR = """
pair (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 8] a, float[8, 4] b, float[4, 2] c>
{
    h = MatMul (x, a)
    r = Relu (h)
    g = MatMul (r, b)
    s = Relu (g)
    y = MatMul (s, c)
}
"""

RESIDUAL = """
residual (float[batch, 3, 8, 8] x) => (float[batch, 5] y)
<float[16, 3, 3, 3] stem, float[16] sb, float[32, 16, 3, 3] k1, float[32] b1,
 float[16, 32, 3, 3] k2, float[16] b2, float[16, 5] w, int64[2] flat = {0, -1}>
{
    s = Conv <pads = [1, 1, 1, 1]> (x, stem, sb)
    r = Relu (s)
    c1 = Conv <pads = [1, 1, 1, 1]> (r, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, b2)
    a = Add (c2, r)
    p = GlobalAveragePool (a)
    f = Reshape (p, flat)
    y = Gemm (f, w)
}
"""

PLAIN = {"ratio": 0.5, "importance": "l2", "recover": False}


def model_of(text, seed=0):
    return ir.from_proto(model_from(HEADER + text, seed))


def array(model, name):
    return model.graph.initializers[name].const_value.numpy()


def shapes(model):
    return {
        name: list(v.const_value.shape.numpy())
        for name, v in model.graph.initializers.items()
    }


def as_bytes(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def pruned(text, context=None, seed=0, **options):
    """(model, outcome), of half of the channels unless told otherwise; whatever came out is a valid
    file.
    """
    model = model_of(text, seed)
    outcome = PruneChannels(**{"ratio": 0.5, **options}).run(
        model, context or NullContext()
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, outcome


def feeds_of(model, rows=(3, 2), seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            v.name: random.standard_normal(
                [d if isinstance(d, int) else n for d in v.shape]
            ).astype(np.float32)
            for v in model.graph.inputs
        }
        for n in rows
    ]


def proving(text):
    """A context that runs both models of a proof."""
    return CalibratedContext(feeds_of(model_of(text)))


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.0},
        {"ratio": 0.1},
        {"least": 6},
        {"params": 1.0},
        {"exclude": ("*",)},
    ],
)
def test_options_that_ask_for_nothing_change_nothing(options):
    model = model_of(SIX)
    before = as_bytes(model)
    outcome = PruneChannels(**options).run(model, NullContext())
    assert outcome.changed == 0
    assert as_bytes(model) == before


def test_what_stays_has_a_reason():
    model = model_of(
        "fixed (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w> { y = MatMul (x, w) }"
    )
    before = as_bytes(model)
    outcome = PruneChannels().run(model, NullContext())
    assert (outcome.changed, outcome.stats) == (0, {})
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("w:0", "it reads the model's input 'x', whose shape stays"),
        ("w:1", "it gives the model's output 'y', whose shape stays"),
    ]
    assert as_bytes(model) == before


@pytest.mark.parametrize(
    ("options", "biases"),
    [
        ({}, [10, 30, 50]),
        ({"ratio": 0.34}, [10, 30, 50, 60]),
        ({"ratio": 0.99}, [50]),
        ({"ratio": 0.99, "least": 2}, [10, 50]),
        ({"importance": "l1"}, [10, 30, 50]),
        ({"scope": "global"}, [10, 30, 50]),
        ({"scope": "isomorphic"}, [10, 30, 50]),
        ({"include": ("w2",), "ratio": 0.2}, [10, 30, 40, 50, 60]),
        ({"multiple": 4}, [10, 30, 50, 60]),
    ],
)
def test_the_least_important_go_from_every_tensor(options, biases):
    model, outcome = pruned(SIX, proving(SIX), **{**PLAIN, **options})
    stays = [b // 10 - 1 for b in biases]
    assert array(model, "b1").tolist() == biases
    np.testing.assert_array_equal(
        array(model, "w1"), array(model_of(SIX), "w1")[:, stays]
    )
    np.testing.assert_array_equal(array(model, "w2"), array(model_of(SIX), "w2")[stays])
    assert outcome.changed == outcome.stats["channels"] == 6 - len(biases)
    assert outcome.stats["groups"] == 1
    assert outcome.stats["error"] < 1e-6


def test_figures_are_those_of_the_model():
    model, outcome = pruned(RESIDUAL, proving(RESIDUAL), **PLAIN)
    before, after = shapes(model_of(RESIDUAL)), shapes(model)
    for found, counted in ((before, "params_before"), (after, "params_after")):
        assert outcome.stats[counted] == sum(
            np.prod(s) for name, s in found.items() if name != "flat"
        )
    assert after["stem"] == [8, 3, 3, 3]
    assert after["k1"] == [16, 8, 3, 3]
    assert after["k2"] == [8, 16, 3, 3]
    assert outcome.stats["macs_before"] == 64 * 9 * (3 * 16 + 2 * 16 * 32) + 16 * 5
    assert outcome.stats["macs_after"] == 64 * 9 * (3 * 8 + 2 * 8 * 16) + 8 * 5
    assert outcome.stats["error"] < 1e-5


def test_a_layer_without_rivals_is_ranked_with_all():
    text = (
        PAIR.replace("float[3, 8] a", f"float[3, 8] a = {{{', '.join(['9'] * 24)}}}")
        .replace("float[8, 4] b", f"float[8, 4] b = {{{', '.join(['1'] * 32)}}}")
        .replace("float[4, 2] c", f"float[4, 2] c = {{{', '.join(['0.1'] * 8)}}}")
    )
    model, _ = pruned(text, scope="global", normalise="none", ratio=0.25)
    assert shapes(model) == {"a": [3, 8], "b": [8, 1], "c": [1, 2]}
    model, _ = pruned(text, ratio=0.25)
    assert shapes(model) == {"a": [3, 6], "b": [6, 3], "c": [3, 2]}


def test_groups_of_one_shape_are_ranked_together():
    blocks = "\n".join(
        f"""
        p{i} = MatMul (h{i}, up{i})
        r{i} = Relu (p{i})
        d{i} = MatMul (r{i}, down{i})
        h{i + 1} = Add (h{i}, d{i})"""
        for i in range(2)
    )
    text = f"""
    twins (float[batch, 4] h0) => (float[batch, 4] h2)
    <float[4, 8] up0 = {{{", ".join(["1"] * 32)}}}, float[8, 4] down0,
     float[4, 8] up1 = {{{", ".join(["9"] * 32)}}}, float[8, 4] down1>
    {{ {blocks} }}
    """
    model, outcome = pruned(
        text, scope="isomorphic", normalise="none", aggregate="max", ratio=0.25
    )
    assert outcome.stats["channels"] == 4
    assert shapes(model)["up0"] == [4, 4]
    assert shapes(model)["up1"] == [4, 8]


@pytest.mark.parametrize("scope", ["layer", "global", "isomorphic"])
@pytest.mark.parametrize("budget", ["macs", "params", "size"])
def test_budgets_are_met_and_not_by_far(budget, scope):
    _, outcome = pruned(RESIDUAL, scope=scope, **{budget: 0.6, "multiple": 1})
    figure = "params" if budget == "size" else budget
    left = outcome.stats[f"{figure}_after"] / outcome.stats[f"{figure}_before"]
    assert 0.5 < left <= 0.6


def test_a_budget_out_of_reach_is_met_as_far_as_possible_with_a_warning():
    context = NullContext()
    model, outcome = pruned(PAIR, context, params=0.05)
    assert shapes(model) == {"a": [3, 1], "b": [1, 1], "c": [1, 2]}
    (warning,) = context.warnings
    assert (
        warning
        == "prune-channels: 9% of the params stay, not 5%: the rest is in what cannot lose channels"
    )
    assert outcome.stats["params_after"] == 6


@pytest.mark.parametrize(
    ("target", "multiple", "width"),
    [
        ("cpu", None, 16),
        ("generic", None, 16),
        ("cpu", 1, 13),
        ("cpu", 4, 12),
        ("cpu", 8, 16),
    ],
)
def test_convolutions_keep_widths_that_run_well(target, multiple, width):
    model, _ = pruned(
        RESIDUAL, NullContext(target), ratio=0.6, multiple=multiple, include=("k1:0",)
    )
    assert shapes(model)["k1"] == [width, 16, 3, 3]
    assert shapes(model)["k2"] == [16, width, 3, 3]


def test_matrices_are_not_rounded():
    model, _ = pruned(PAIR, ratio=0.4)
    assert shapes(model)["b"] == [5, 3]


@pytest.mark.parametrize(
    ("options", "where", "problem"),
    [
        ({"ratio": 1.0}, "prune-channels.ratio", "1.0 is outside [0.0, 0.99]"),
        (
            {"macs": 0.5, "params": 0.5},
            "prune-channels.params",
            "macs and params are set",
        ),
        (
            {"size": 0.5, "drift": 0.1, "importance": "drift"},
            "prune-channels.drift",
            "size and drift are set",
        ),
        ({"drift": 0.1}, "prune-channels.drift", "importance is auto"),
        (
            {"frequency": 0.9, "importance": "l2"},
            "prune-channels.frequency",
            "importance is l2",
        ),
        ({"importance": "l3"}, "prune-channels.importance", "'l3' is not one of"),
        ({"least": -1}, "prune-channels.least", "-1 is outside"),
    ],
)
def test_options_that_contradict_are_refused(options, where, problem):
    with pytest.raises(UsageError) as caught:
        PruneChannels(**options)
    assert caught.value.where == where
    assert caught.value.problem.startswith(problem)
    assert caught.value.fix


@pytest.mark.parametrize(
    "importance", ["activation", "variance", "drift", "stability", "taylor", "fisher"]
)
def test_a_criterion_of_data_without_data_is_refused(importance):
    with pytest.raises(UsageError) as caught:
        pruned(SIX, importance=importance)
    assert caught.value.where == "prune-channels.importance"
    assert caught.value.problem == f"{importance} ranks by calibration data"
    assert "--data" in caught.value.fix


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    with pytest.raises(UsageError) as caught:
        pruned(SIX, **{option: ("w1", "layer3*")})
    assert caught.value.where == f"prune-channels.{option}"
    assert caught.value.problem == "'layer3*' matches no layer"
    assert "inspect MODEL --groups" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"include": ("a",)}, {"a": [3, 4], "b": [4, 4], "c": [4, 2]}),
        ({"include": ("b:1",)}, {"a": [3, 8], "b": [8, 2], "c": [2, 2]}),
        ({"include": ("b",)}, {"a": [3, 4], "b": [4, 2], "c": [2, 2]}),
        ({"exclude": ("b:0",)}, {"a": [3, 8], "b": [8, 2], "c": [2, 2]}),
        (
            {"include": ("b",), "exclude": ("c",)},
            {"a": [3, 4], "b": [4, 4], "c": [4, 2]},
        ),
    ],
)
def test_patterns_name_weights_and_axes(options, wanted):
    model, outcome = pruned(PAIR, **options)
    assert shapes(model) == wanted
    reasons = [item.reason for item in outcome.declined]
    left = [r for r in reasons if r in ("not matched by include", "matched by exclude")]
    assert len(left) == 2 - outcome.stats["groups"]


def test_a_layer_keeps_one_channel():
    model, outcome = pruned(PAIR, proving(PAIR), **{**PLAIN, "ratio": 0.99})
    assert shapes(model) == {"a": [3, 1], "b": [1, 1], "c": [1, 2]}
    assert outcome.stats["error"] < 1e-6


def test_the_page_names_every_criterion_and_its_source():
    page = (Path(__file__).resolve().parents[2] / "docs" / "channels.md").read_text(
        encoding="utf-8"
    )
    for name, criterion in CRITERIA.items():
        (row,) = [
            line
            for line in page.splitlines()
            if line.startswith("| `") and f"`{name}`" in line.split("|")[1]
        ]
        assert ("data" in row.split("|")[3]) is criterion.needs_data
        assert criterion.source.split(",")[0].split(" ")[0] in row


def test_text_round_trips():
    text = (
        'prune-channels(ratio=0.25, scope=global, include=["a b", k*], recover=false)'
    )
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "option", ["macs", "params", "size", "drift", "frequency", "multiple"]
)
def test_zero_in_stored_text_means_not_set(option):
    plain = PruneChannels()
    zero = parse(f"prune-channels({option}=0)").passes[0]
    assert zero == plain == PruneChannels(**{option: 0})
    assert str(zero) == "prune-channels"
    assert parse(f"prune-channels({option}=none)").passes[0] == plain


def test_a_name_that_reads_as_a_pattern_is_found():
    text = PAIR.replace("MatMul (x, a)", 'MatMul (x, "a[0]")')
    text = text.replace("[3, 8] a", '[3, 8] "a[0]"')
    model, _ = pruned(text, include=("a[0]",))
    assert shapes(model) == {"a[0]": [3, 4], "b": [4, 4], "c": [4, 2]}


def test_stats_go_into_json():
    _, outcome = pruned(SIX, proving(SIX))
    assert json.loads(json.dumps(outcome.stats)).keys() == {
        "channels",
        "groups",
        "layers",
        "params_before",
        "params_after",
        "macs_before",
        "macs_after",
        "error",
        "measured_sqnr",
    }


DYNAMIC = """
dynamic (float[n, c, h, w] x) => (float[n, k] y)
<float[8, 3, 3, 3] k1, float[8, 8, 3, 3] k2, float[8, 4] m, int64[2] flat = {0, -1}>
{
    a = Conv <auto_pad = "SAME_UPPER"> (x, k1)
    r = Relu (a)
    b = Conv <strides = [2, 2]> (r, k2)
    p = GlobalAveragePool (b)
    f = Reshape (p, flat)
    y = MatMul (f, m)
}
"""

SHARED_ZEROS = """
zeros (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 6] a, float[6] none = {0, 0, 0, 0, 0, 0}, float[6, 6] b, float[6, 2] c>
{
    h = Gemm (x, a, none)
    r = Relu (h)
    g = Gemm (r, b, none)
    s = Relu (g)
    y = MatMul (s, c)
}
"""

TIED = """
tied (int64[batch, length] ids) => (float[batch, length, 9000] logits)
<float[9000, 8] table, float[8, 16] up, float[16, 8] down>
{
    e = Gather (table, ids)
    h = MatMul (e, up)
    r = Relu (h)
    d = MatMul (r, down)
    s = Add (e, d)
    t = Transpose <perm = [1, 0]> (table)
    logits = MatMul (s, t)
}
"""

ALBERT = """
albert (float[batch, 4] x) => (float[batch, 4] y)
<float[4, 8] up, float[8, 4] down>
{
    a = MatMul (x, up)
    b = Relu (a)
    c = MatMul (b, down)
    d = Add (x, c)
    e = MatMul (d, up)
    f = Relu (e)
    g = MatMul (f, down)
    y = Add (d, g)
}
"""

CASES = {
    "six": (SIX, {}),
    "pair": (PAIR, {}),
    "residual": (RESIDUAL, {"multiple": 1}),
    "albert": (ALBERT, {}),
    "shared zeros": (SHARED_ZEROS, {}),
    "odd names": (
        PAIR.replace("MatMul (x, a)", 'MatMul (x, "a/ü:0 b")').replace(
            "[3, 8] a", '[3, 8] "a/ü:0 b"'
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("importance", ["l2", "random", "geometric-median"])
def test_what_is_left_computes_the_masked_reference(case, importance):
    text, options = CASES[case]
    model, outcome = pruned(
        text, proving(text), importance=importance, recover=False, **options
    )
    assert outcome.stats["error"] < 1e-5
    assert outcome.stats["params_after"] < 0.7 * outcome.stats["params_before"]
    before = model_of(text)
    assert [str(v) for v in model.graph.inputs] == [str(v) for v in before.graph.inputs]
    assert [str(v) for v in model.graph.outputs] == [
        str(v) for v in before.graph.outputs
    ]


def test_tied_embeddings_stay_tied():
    ids = [
        {"ids": np.random.default_rng(i).integers(0, 9000, (2, 5))} for i in range(2)
    ]
    model, outcome = pruned(TIED, CalibratedContext(ids), **PLAIN)
    assert shapes(model) == {"table": [9000, 4], "up": [4, 8], "down": [8, 4]}
    assert outcome.stats["error"] < 1e-6
    assert outcome.stats["params_after"] == 9000 * 4 + 2 * 32


@pytest.mark.parametrize(("order", "biases"), [(1, 1), (-1, 2)])
def test_equal_biases_of_two_layers_do_not_tie_them_and_are_one_again_of_the_same_channels(
    order, biases
):
    model = model_of(SHARED_ZEROS)
    growing = np.arange(1, 7, dtype=np.float32)
    for name, sizes in {
        "a": growing,
        "b": growing[::order],
        "c": np.ones(2, np.float32),
    }.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(
            np.ones_like(value.const_value.numpy()) * sizes, name=name
        )
    assert PruneChannels(**PLAIN).run(model, NullContext()).stats["groups"] == 2
    assert sorted(shapes(model).values()) == [[3]] * biases + [[3, 2], [3, 3], [3, 3]]
    kept = growing[3:]
    np.testing.assert_array_equal(array(model, "a")[0], kept)
    np.testing.assert_array_equal(array(model, "b")[0], kept[::order])
    zeros = [v for v in model.graph.initializers.values() if len(v.shape) == 1]
    assert [len(v.uses()) for v in zeros] == [2 // biases] * biases


def test_dims_may_all_be_open():
    images = [
        {"x": np.random.default_rng(i).standard_normal((2, 3, 9, 7)).astype(np.float32)}
        for i in range(2)
    ]
    model, outcome = pruned(DYNAMIC, CalibratedContext(images), multiple=1, **PLAIN)
    assert shapes(model)["k2"] == [4, 4, 3, 3]
    assert outcome.stats["error"] < 1e-5
    assert not any("proof" in d.reason for d in outcome.declined)


@pytest.mark.parametrize(
    "text",
    [
        "empty (float[0, 4] x) => (float[0, 2] y) <float[4, 6] a, float[6, 2] b>",
        "none (float[n, 4] x) => (float[n, 0] y) <float[4, 6] a, float[6, 0] b>",
        "no (float[n, 4] x) => (float[n, 2] y) <float[4, 0] a, float[0, 2] b>",
    ],
)
def test_axes_without_slots_break_nothing(text):
    text += " { h = MatMul (x, a)  y = MatMul (h, b) }"
    model, _ = pruned(text, proving(text), **PLAIN)
    (got,) = run_session(model).run(None, feeds_of(model)[0])
    assert got.shape[1] == model.graph.outputs[0].shape[1]


def test_a_branch_that_lost_all_its_channels_goes():
    text = RESIDUAL.replace(
        "float[16, 32, 3, 3] k2",
        f"float[16, 32, 3, 3] k2 = {{{', '.join(['0'] * 4608)}}}",
    )
    context = proving(text)
    model, outcome = pruned(
        text, context, least=0, include=("k1:0",), **{**PLAIN, "ratio": 0.99}
    )
    assert outcome.stats["error"] < 1e-5
    assert [n.op_type for n in model.graph].count("Conv") == 1
    assert "k1" not in shapes(model)
    assert "k2" not in shapes(model)
    want = [run_session(model_of(text)).run(None, feeds)[0] for feeds in context.feeds]
    got = [run_session(model).run(None, feeds)[0] for feeds in context.feeds]
    for a, b in zip(want, got, strict=True):  # what went multiplied by zero
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_ratios_count_from_the_first_width():
    model, first = pruned(PAIR, ratio=0.25)
    assert shapes(model)["b"] == [6, 3]
    second = PruneChannels(ratio=0.5).run(model, NullContext())
    assert shapes(model)["b"] == [4, 2]
    assert second.stats["params_before"] == first.stats["params_after"]
    at_once, _ = pruned(PAIR, ratio=0.5)
    for name in ("a", "b", "c"):
        assert array(model, name).shape == array(at_once, name).shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"params": 0.5},
        {"scope": "global"},
        {"scope": "isomorphic", "macs": 0.4},
        {"ratio": 0.99},
        {"least": 0},
    ],
)
def test_the_same_text_twice_changes_nothing_more(options):
    options = {"ratio": 0.5, **options}
    model, _ = pruned(RESIDUAL, **options)
    once = as_bytes(model)
    assert PruneChannels(**options).run(model, NullContext()).changed == 0
    assert as_bytes(model) == once


def test_a_budget_counts_from_the_first_pruning_too():
    model, first = pruned(RESIDUAL, params=0.7, multiple=1)
    second = PruneChannels(params=0.5, multiple=1).run(model, NullContext())
    assert second.stats["params_after"] <= 0.5 * first.stats["params_before"]
    assert second.stats["params_after"] > 0.35 * first.stats["params_before"]


def test_weights_are_described_not_copied(tmp_path):
    random = np.random.default_rng(0)
    proto = model_from(
        HEADER
        + """
    wide (float[batch, 64] x) => (float[batch, 64] y)
    <float[64, 2048] a, float[2048, 1024] b, float[1024, 64] c>
    { h = MatMul (x, a)  r = Relu (h)  g = MatMul (r, b)  s = Relu (g)  y = MatMul (s, c) }
    """
    )
    ir.save(ir.from_proto(proto), tmp_path / "m.onnx", external_data="m.data")
    model = ir.load(tmp_path / "m.onnx")
    original = ir.load(tmp_path / "m.onnx").graph.initializers["b"].const_value.numpy()
    PruneChannels(ratio=0.5, importance="random").run(
        model, NullContext(seed=int(random.integers(9)))
    )
    tensor = model.graph.initializers["b"].const_value
    while not isinstance(tensor, ir.ExternalTensor):
        tensor = tensor.source
    assert tensor.shape == (2048, 1024)
    left = model.graph.initializers["b"].const_value.numpy()
    assert left.shape == (1024, 512)
    rows = np.flatnonzero(np.isin(original[:, :], left).sum(1) > 500)
    assert len(rows) == 1024
    ir.save(model, tmp_path / "out.onnx", external_data="out.data")
    np.testing.assert_array_equal(
        ir.load(tmp_path / "out.onnx").graph.initializers["b"].const_value.numpy(), left
    )
