"""The memory of a pruned model, under any order of prunings, and its handling of a memory that is
broken.
"""

import json

import onnx_ir as ir
import pytest
from exactness import HEADER
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.history import KEY, PruningHistory
from onnx_opt.passes.prune_channels import PruneChannels
from sample_models import MLP, model_from

BESIDE = """
beside (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 8] a, float[3, 8] b, float[16, 2] c>
{
    g = MatMul (x, a)
    h = MatMul (x, b)
    r = Relu (h)
    j = Concat <axis = 1> (g, r)
    y = MatMul (j, c)
}
"""

ATTENTION = """
attention (float[batch, length, 4] x) => (float[batch, length, 4] y)
<float[4, 32] q, float[4, 32] k, float[4, 32] v, float[32, 4] o, int64[4] split = {0, 0, 4, 8},
 int64[3] join = {0, 0, -1}, float[4, 8] up, float[8, 4] down>
{
    u = MatMul (x, up)  w = Relu (u)  z = MatMul (w, down)
    q1 = MatMul (z, q)  q2 = Reshape (q1, split)  q3 = Transpose <perm = [0, 2, 1, 3]> (q2)
    k1 = MatMul (z, k)  k2 = Reshape (k1, split)  k3 = Transpose <perm = [0, 2, 3, 1]> (k2)
    v1 = MatMul (z, v)  v2 = Reshape (v1, split)  v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
    s = MatMul (q3, k3)  p = Softmax (s)  m = MatMul (p, v3)
    m2 = Transpose <perm = [0, 2, 1, 3]> (m)  m3 = Reshape (m2, join)
    y = MatMul (m3, o)
}
"""


def model_of(text):
    return ir.from_proto(
        model_from(text if text.lstrip().startswith("<") else HEADER + text)
    )


def prune(model, **options):
    return PruneChannels(**{"ratio": 0.5, **options}).run(model, NullContext())


def shape(model, name):
    return tuple(model.graph.initializers[name].const_value.shape.numpy())


def test_an_unpruned_model_remembers_nothing():
    assert PruningHistory.of(model_of(MLP)) == PruningHistory()


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"widths": {}}',
        '{"widths": [], "cost": {}, "last": "", "now": {}}',
        '{"widths": {"w2:0×1": "many"}, "cost": {"params": 1, "bytes": 1, "macs": 1}, '
        '"last": "", "now": {}}',
        '{"widths": {}, "cost": {"params": "x", "bytes": 1, "macs": 1}, "last": "", "now": {}}',
        '{"widths": {}, "cost": {"params": 1}, "last": "", "now": {}}',
        '{"widths": {}, "cost": {"params": 1, "bytes": 1, "macs": 1}, '
        '"last": "", "now": {"w1": 8}}',
    ],
)
def test_a_memory_that_cannot_be_read_counts_as_none(broken):
    model = model_of(MLP)
    model.metadata_props[KEY] = broken
    assert PruningHistory.of(model) == PruningHistory()
    prune(model)
    assert shape(model, "w1") == (8, 8)


def test_it_is_stored_with_the_model():
    model = model_of(MLP)
    prune(model, ratio=0.25)
    found = json.loads(model.metadata_props[KEY])
    assert found["widths"] == {"w1:1×1": 16, "w2:0×1": 16}
    assert found["now"] == {"w1": [8, 12], "w2": [12, 4]}
    assert found["last"] == "prune-channels(ratio=0.25)"
    assert found["cost"] == {"params": 192, "bytes": 768, "macs": 192}


@pytest.mark.parametrize(
    "ratios",
    [
        (0.25, 0.5),
        (0.25, 0.25, 0.5),
        (0.5, 0.25),
        (0.1, 0.2, 0.3, 0.4, 0.5),
        (0.5, 0.5),
    ],
)
def test_the_largest_ratio_is_what_went_in_all(ratios):
    model = model_of(MLP)
    for ratio in ratios:
        prune(model, ratio=ratio)
    assert shape(model, "w1") == (8, 8)


def test_groups_side_by_side_on_one_axis_are_told_apart():
    model = model_of(BESIDE)
    prune(model, ratio=0.5, include=("a",))
    assert (shape(model, "a"), shape(model, "b"), shape(model, "c")) == (
        (3, 4),
        (3, 8),
        (12, 2),
    )
    prune(model, ratio=0.25)
    assert (shape(model, "a"), shape(model, "b"), shape(model, "c")) == (
        (3, 4),
        (3, 6),
        (10, 2),
    )
    prune(model, ratio=0.5)
    assert (shape(model, "a"), shape(model, "b"), shape(model, "c")) == (
        (3, 4),
        (3, 4),
        (8, 2),
    )


def test_heads_and_dimensions_of_heads_count_by_themselves():
    model = model_of(ATTENTION)
    prune(model, ratio=0.5)
    assert [shape(model, name)[1] for name in ("q", "k", "v", "up")] == [16, 16, 16, 4]
    prune(model, ratio=0.5, attention="dims")
    assert shape(model, "q")[1] == 8
    assert shape(model, "up")[1] == 4
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    for attention in ("dims", "heads", "dims"):
        prune(model, ratio=0.25, attention=attention)
        assert [shape(model, name)[1] for name in ("q", "k", "v", "up")] == [8, 8, 8, 4]
    assert (
        len(ir.to_proto(model).SerializeToString(deterministic=True)) <= len(once) + 600
    )


def test_a_layer_of_one_channel_is_left_alone_when_repeated():
    model = model_of(MLP)
    prune(model, ratio=0.99, scope="global")
    assert shape(model, "w1") == (8, 1)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert prune(model, ratio=0.99, scope="global").changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_channels_that_only_appear_afterwards_wait_for_another_text():
    """The dimensions of the one head that is left are a group of their own, which there was none
    before.
    """
    model = model_of(ATTENTION)
    assert prune(model, ratio=0.9).changed > 0
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert shape(model, "q")[1] == 8
    assert prune(model, ratio=0.9).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    assert prune(model, ratio=0.5).changed > 0
    assert shape(model, "q")[1] == 4
