"""Budgets that hold at the end, weights that stay one, and nodes that no rule was made for."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from exactness import HEADER
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels import pruning as pruning_module
from onnx_opt.passes._channels.verify import Verdict
from onnx_opt.passes._dims.table import RULES, UPDATES
from onnx_opt.passes.prune_channels import PruneChannels, channel_groups
from sample_models import model_from

TOWERS = (
    HEADER
    + """
towers (float[N, 8] a, float[N, 8] b) => (float[N, 6] p, float[N, 6] q)
<float[8, 20] w1, float[20, 6] w2>
{
    a1 = MatMul (a, w1)
    a2 = Relu (a1)
    p = MatMul (a2, w2)
    b1 = MatMul (b, w1)
    b2 = Relu (b1)
    q = MatMul (b2, w2)
}
"""
)

CONVS = (
    HEADER
    + """
convs (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
<float[32, 3, 3, 3] w1, float[32] b1, float[32, 32, 3, 3] w2, float[32] b2, float[5, 32, 1, 1] w3>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)
    d = Relu (c)
    y = Conv (d, w3)
}
"""
)

CHAIN = (
    HEADER
    + """
chain (float[N, 4] x) => (float[N, 3] y)
<float[4, 12] a, float[12, 12] b, float[12, 12] c, float[12, 3] d>
{
    h = MatMul (x, a)
    i = Relu (h)
    k = MatMul (i, b)
    l = Relu (k)
    m = MatMul (l, c)
    n = Relu (m)
    y = MatMul (n, d)
}
"""
)

FIXED = (
    HEADER
    + """
fixed (float[N, 1, 6] x) => (float[1, 3] y) <float[6, 8] w, float[8, 3] v, int64[2] s = {1, 6}>
{
    r = Reshape (x, s)
    h = MatMul (r, w)
    a = Relu (h)
    y = MatMul (a, v)
}
"""
)


def model_of(text):
    return ir.from_proto(model_from(text))


def feeds_of(text, rows, samples):
    random = np.random.default_rng(0)
    feeds = []
    for _ in range(samples):
        feed = {}
        for value in model_of(text).graph.inputs:
            shape = [d if isinstance(d, int) else rows for d in value.shape]
            feed[value.name] = random.standard_normal(shape).astype(np.float32)
        feeds.append(feed)
    return feeds


def parameters(model):
    values = model.graph.initializers.values()
    return sum(v.const_value.size for v in values if v.dtype == ir.DataType.FLOAT)


def pruned(text, context, **options):
    model = model_of(text)
    outcome = PruneChannels(**options).run(model, context)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, outcome


TURNED = (
    TOWERS.replace("float[20, 6] w2", "float[6, 20] w2")
    .replace(
        "p = MatMul (a2, w2)", "t = Transpose <perm = [1, 0]> (w2)  p = MatMul (a2, t)"
    )
    .replace(
        "q = MatMul (b2, w2)", "u = Transpose <perm = [1, 0]> (w2)  q = MatMul (b2, u)"
    )
)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("text", [TOWERS, TURNED])
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5},
        {"ratio": 0.5, "scope": "global"},
        {"macs": 0.5},
        {"macs": 0.5, "scope": "global"},
    ],
)
def test_towers_of_one_weight_stay_alike(options, text, with_data):
    feeds = feeds_of(text, 16, 8)
    context = CalibratedContext(feeds) if with_data else NullContext()
    model, outcome = pruned(text, context, **options)
    assert outcome.changed == 10
    assert outcome.stats["params_after"] == 10 * (8 + 6)
    # one fit gives both towers one weight, and one bias
    assert outcome.stats["layers"] == (2 if with_data else 0)
    assert parameters(model) == 10 * (8 + 6) + (6 if with_data else 0)
    same = feeds[0]["a"]
    p, q = run_session(model).run(None, {"a": same, "b": same})
    np.testing.assert_array_equal(p, q)


def test_one_fit_of_two_towers_lowers_the_error_of_both():
    feeds = feeds_of(TOWERS, 64, 8)
    errors = []
    whole = run_session(model_of(TOWERS))
    for recover in (False, True):
        options = {"ratio": 0.3, "importance": "l2", "recover": recover}
        model, _ = pruned(TOWERS, CalibratedContext(feeds), **options)
        session = run_session(model)
        outputs = zip(
            whole.run(None, feeds[0]), session.run(None, feeds[0]), strict=True
        )
        errors.append([float(np.square(a - b).mean()) for a, b in outputs])
    assert errors[1][0] < 0.7 * errors[0][0]
    assert errors[1][1] < 0.7 * errors[0][1]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_a_width_that_is_asked_for_is_kept_and_with_it_the_budget(fraction, scope):
    context = NullContext()
    # the wider model would always measure faster
    context.latency_ratio = lambda *_: pytest.fail("widths are as asked for")
    model, _ = pruned(CONVS, context, params=fraction, scope=scope, multiple=1)
    assert parameters(model) <= fraction * parameters(model_of(CONVS))
    assert not context.warnings


@pytest.mark.parametrize("option", ["params", "size"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_biases_that_fits_add_are_within_the_budget(option, scope):
    context = CalibratedContext(feeds_of(CHAIN, 8, 8))
    model, outcome = pruned(CHAIN, context, scope=scope, **{option: 0.6})
    assert outcome.stats["layers"] > 0
    assert parameters(model) > outcome.stats["params_after"]
    assert parameters(model) <= 0.6 * parameters(model_of(CHAIN))
    assert not context.warnings


def refuse(monkeypatch, name):
    """Let the proof fail for every removal that takes inputs of one weight."""
    real = pruning_module.verify_removal

    def verify(model, solution, channels, *rest):
        inputs = solution.slots(model.graph.initializers[name], 0)
        if np.isin(inputs, channels).any():
            return Verdict(None, "seeded")
        return real(model, solution, channels, *rest)

    monkeypatch.setattr(pruning_module, "verify_removal", verify)


def test_what_the_proof_keeps_is_taken_elsewhere(monkeypatch):
    refuse(monkeypatch, "c")
    context = NullContext()
    model, outcome = pruned(CHAIN, context, params=0.5)
    assert [d.where for d in outcome.declined if "seeded" in d.reason] == ["c:0"]
    assert parameters(model) <= 0.5 * parameters(model_of(CHAIN))
    assert not context.warnings


def test_where_nothing_else_can_go_a_warning_says_so(monkeypatch):
    refuse(monkeypatch, "c")
    context = NullContext()
    model, _ = pruned(CHAIN, context, params=0.05)
    left = parameters(model) / parameters(model_of(CHAIN))
    assert context.warnings == [
        f"prune-channels: {left:.0%} of the params stay, not 5%: "
        "the rest is in what cannot lose channels"
    ]


def test_a_budget_missed_by_little_is_told_apart():
    context = NullContext()
    least = 4 + 1 + 1 + 3
    fraction = (least - 0.01) / parameters(model_of(CHAIN))
    pruned(CHAIN, context, params=fraction)
    assert context.warnings == [
        "prune-channels: 2.419% of the params stay, not 2.417%: "
        "the rest is in what cannot lose channels"
    ]


def test_a_reshape_that_fixes_the_batch_stops_nothing():
    context = CalibratedContext(feeds_of(FIXED, 1, 4))
    _, outcome = pruned(FIXED, context, ratio=0.5, recover=False)
    assert outcome.changed == 4
    assert outcome.stats["error"] < 1e-6


def test_a_rule_that_fails_costs_its_node_alone(monkeypatch):
    def broken(node, relations):
        raise IndexError("seeded")

    monkeypatch.setitem(RULES, ("", "Relu"), broken)
    text = CHAIN.replace("l = Relu", "l = Tanh").replace("n = Relu", "n = Tanh")
    _, outcome = pruned(text, NullContext(), ratio=0.5)
    assert outcome.changed == 12
    reasons = {d.where: d.reason for d in outcome.declined}
    assert reasons["b:0"] == "Relu Relu_i: its rule failed (IndexError: seeded)"


def test_an_update_that_fails_costs_its_groups_alone(monkeypatch):
    def broken(node, surgery):
        raise IndexError("seeded")

    monkeypatch.setitem(UPDATES, ("", "Tanh"), broken)
    text = CHAIN.replace("i = Relu", "i = Tanh")
    context = CalibratedContext(feeds_of(text, 3, 2))
    _, outcome = pruned(text, context, ratio=0.5, recover=False)
    assert outcome.changed == 12
    (reason,) = [d.reason for d in outcome.declined if d.where == "b:0"]
    assert "its update failed (IndexError: seeded)" in reason


OPEN_AXES = {
    "a bias down the batch": """
open (float[?, 5] x, float[5, 1] v) => (float[?, ?] y)
<int64[2] once = {1, 1}, float[4, 1] w>
{
    t = Tile (x, once)
    y = Gemm (t, v, w)
}
""",
    "a factor down the batch": """
open (float[N, 5] x) => (float[?, ?] y)
<float[4, 5] w, float[5, 3] v>
{
    t = Mul (x, w)
    y = MatMul (t, v)
}
""",
}


@pytest.mark.parametrize("text", OPEN_AXES.values(), ids=OPEN_AXES)
def test_a_constant_as_long_as_an_open_axis_keeps_its_length(text):
    model = model_from(HEADER + text)
    groups = channel_groups(ir.from_proto(model))
    assert all(group.name != "w:0" for group in groups.groups)
    assert "w:0" in [item.where for item in groups.frozen]
