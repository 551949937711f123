"""One pruning from the solved model to the result: names, costs, candidates, what is remembered."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exactness import HEADER
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.pruning import Pruning
from onnx_opt.passes._dims.groups import channel_groups
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced
from sample_models import CNN, IF, MLP, model_from

CONCAT = (
    HEADER
    + """
concat (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 12] a, float[12, 2] c>
{
    h = MatMul (x, a)
    p, q = Split <axis = 1, num_outputs = 2> (h)
    r = Relu (p)
    s = Tanh (q)
    j = Concat <axis = 1> (r, s)
    y = MatMul (j, c)
}
"""
)
"""Two groups on the same axes of the same two weights."""

THREE = (
    HEADER
    + """
three (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 8] a, float[8, 6] b, float[6, 10] c, float[10, 3] d, float[8] bias>
{
    h = MatMul (x, a)
    i = Add (h, bias)
    r = Relu (i)
    k = MatMul (r, b)
    t = Tanh (k)
    m = MatMul (t, c)
    s = Relu (m)
    y = MatMul (s, d)
}
"""
)


def pruning_of(text, **options):
    return Pruning(
        ir.from_proto(model_from(text)),
        NullContext(),
        "heads",
        **{"keep_batchnorm": False, **options},
    )


def scores_of(pruning, seed=0):
    random = np.random.default_rng(seed)
    return [random.random(len(group.channels)) for group in pruning.groups]


def parameters(model):
    return sum(
        v.const_value.size
        for v in model.graph.initializers.values()
        if v.const_value.dtype.is_floating_point()
    )


def test_the_model_itself_stays_until_the_end():
    model = ir.from_proto(model_from(CNN))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    pruning = Pruning(model, NullContext(), "heads", keep_batchnorm=False)
    candidates = pruning.candidates(scores_of(pruning), 1, 1)
    pruning.verified(candidates, [4] * len(pruning.groups))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("text", [MLP, CNN, THREE, CONCAT])
def test_no_two_groups_share_a_name(text):
    names = [group.name for group in pruning_of(text).groups]
    assert len(set(names)) == len(names)


def test_groups_on_the_same_axes_are_numbered():
    pruning = pruning_of(CONCAT)
    assert sorted(group.name for group in pruning.groups) == ["c:0", "c:0#2"]
    model = ir.from_proto(model_from(CONCAT))
    assert [
        len(g.channels) for g in channel_groups(solve(relate(model, traced(model))))
    ] == [6, 6]


def test_frozen_weights_are_declined_with_their_reasons():
    assert pruning_of(IF).groups == []
    assert {d.where: d.reason for d in pruning_of(IF).declined}[
        "w:0"
    ] == "it reads the model's input 'x', whose shape stays"


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), (), ["b:0", "c:0", "d:0"]),
        (("a",), (), ["b:0"]),
        (("bias",), (), ["b:0"]),
        (("MatMul_m",), (), ["c:0", "d:0"]),
        (("*:0",), (), ["b:0", "c:0", "d:0"]),
        ((), ("b",), ["d:0"]),
        ((), ("*",), []),
        (("c:1", "a:1"), ("d",), ["b:0"]),
    ],
)
def test_patterns_match_weights_axes_and_nodes(include, exclude, left):
    pruning = pruning_of(THREE)
    pruning.limit_to(include, exclude)
    assert [group.name for group in pruning.groups] == left
    reasons = [item.reason for item in pruning.declined]
    left_out = [reason for reason in reasons if reason.startswith(("matched", "not m"))]
    assert len(left_out) == 3 - len(left)


def test_a_pattern_for_nothing_is_refused_before_anything_is_left_out():
    pruning = pruning_of(THREE)
    with pytest.raises(
        UsageError,
        match=r"prune-channels\.exclude: 'zzz' matches no layer",
    ):
        pruning.limit_to(("a",), ("b", "zzz"))
    assert len(pruning.groups) == 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=3), st.integers(0, 99))
def test_costs_are_those_of_the_model_that_comes_out(choice, seed):
    model = ir.from_proto(model_from(THREE))
    pruning = Pruning(model, NullContext(), "heads", keep_batchnorm=False)
    candidates = pruning.candidates(scores_of(pruning, seed), 1, 1)
    removed = candidates.removed(choice)
    cost = pruning.cost(choice, candidates.orders())
    pruning.finish(model, pruning.built(removed, 0, 1e-3))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert cost.params == parameters(model)
    assert cost.bytes == 4 * cost.params
    assert (
        cost.macs
        == parameters(model) - model.graph.initializers["bias"].const_value.size
    )


def test_a_group_may_lose_all_only_where_the_rest_works_without():
    pruning = pruning_of(THREE)
    candidates = pruning.candidates(scores_of(pruning), 1, 0)
    assert [int(widths[0]) for widths in candidates.widths] == [1, 1, 1]


def test_what_was_done_is_known_when_the_same_is_asked_again():
    model = ir.from_proto(model_from(THREE))
    pruning = Pruning(model, NullContext(), "heads", keep_batchnorm=False)
    assert not pruning.repeated("text")
    candidates = pruning.candidates(scores_of(pruning), 1, 1)
    removed = candidates.removed([4, 3, 5])
    pruning.finish(model, pruning.built(removed, 0, 1e-3))
    pruning.record(model, "text")
    again = Pruning(model, NullContext(), "heads", keep_batchnorm=False)
    assert again.repeated("text")
    assert not again.repeated("other text")
    assert sorted(again.was.values()) == [6, 8, 10]
    assert again.history.cost == pruning.before
