"""Text that a model writes itself, where there is none of the user's."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import Batch, StoredFeeds
from onnx_opt.runtime.own_text import PIECE, drawn

TOKENS = 40
LENGTH = 256

FORWARD = """
<ir_version: 10, opset_import: ["" : 21]>
lm (int64[N, L] ids) => (float[N, L, 40] logits) {
    logits = Gather (table, ids)
}
"""

BOTH_WAYS = """
<ir_version: 10, opset_import: ["" : 21]>
gaps (int64[N, L] ids) => (float[N, L, 40] logits)
<int64[1] axis = {1}> {
    own = Gather (table, ids)
    all = ReduceMean (own, axis)
    logits = Add (own, all)
}
"""

LAST_ALONE = """
<ir_version: 10, opset_import: ["" : 21]>
last (int64[N, L] ids) => (float[N, K, 40] logits)
<int64[1] at = {-1}> {
    end = Gather <axis = 1> (ids, at)
    logits = Gather (table, end)
}
"""


@pytest.fixture(scope="module")
def next_token():
    """The one token that follows each: no token follows itself."""
    order = np.random.default_rng(0).permutation(TOKENS)
    following = np.empty(TOKENS, np.int64)
    following[order] = np.roll(order, -1)
    return following


def model_of(text, following):
    model = ir.from_onnx_text(text)
    (table,) = {
        value
        for node in model.graph
        for value in node.inputs
        if value is not None and value.name == "table"
    }
    # a thousand: nothing else has a chance
    scores = np.eye(TOKENS, dtype=np.float32)[following] * 1000
    table.const_value = ir.Tensor(scores, name="table")
    table.shape = ir.Shape(scores.shape)
    table.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(table)
    return model


def own_text(worker, model, feeds=None, lengths=(LENGTH,)):
    made_up = [{"ids": np.ones((1, length), np.int64)} for length in lengths]
    context = RunContext(
        worker,
        feeds,
        "cpu",
        0,
        lambda model, path: ir.save(model, path),
        made_up=lambda has_tokens: made_up,
        runs=True,
    )
    found = context.on_own_text(model, {"ids": TOKENS}, 2048)
    return context, found


def windows(found):
    return np.concatenate([batch.feeds["ids"] for batch in found.feeds])


def test_tokens_of_a_piece_follow_from_each_other(worker, next_token):
    _, found = own_text(worker, model_of(FORWARD, next_token))
    ids = windows(found)
    assert ids.shape == (16, LENGTH)
    follows = next_token[ids[:, :-1]] == ids[:, 1:]
    # the first token of a piece followed from one that was drawn anew later
    inside = np.arange(1, LENGTH) % PIECE != 0
    assert follows[:, inside].all()
    # windows begin with any tokens
    assert len(np.unique(ids[:, 0])) > 5


def test_what_is_read_of_a_model_is_its_text(worker, next_token):
    model = model_of(FORWARD, next_token)
    context, found = own_text(worker, model)
    again = context.on_own_text(model, {"ids": TOKENS})
    request = {"mean": MomentRequest("logits", "mean")}
    means = found.collect(model, request, 1000)["mean"]
    counts = np.bincount(next_token[windows(found).reshape(-1)], minlength=TOKENS)
    np.testing.assert_allclose(means, counts * 1000 / counts.sum(), rtol=1e-5)
    # every run writes the same
    assert np.array_equal(windows(again), windows(found))


def test_a_window_of_one_token_stays(worker, next_token):
    model = model_of(FORWARD, next_token)
    context, found = own_text(worker, model, lengths=(LENGTH, 1))
    written = [batch.feeds["ids"] for batch in found.feeds]
    alike = [
        batch.feeds["ids"] for batch in context.on_any_feeds({"ids": TOKENS}).feeds
    ]
    same = [np.array_equal(*pair) for pair in zip(written, alike, strict=True)]
    assert same == [False, True] * 8


@pytest.mark.parametrize("text", [BOTH_WAYS, LAST_ALONE], ids=["gaps", "last"])
def test_a_model_that_does_not_say_what_comes_next_writes_nothing(
    worker, next_token, text
):
    model = model_of(text, next_token)
    context, found = own_text(worker, model)
    drawn_alike = context.on_any_feeds({"ids": TOKENS})
    assert np.array_equal(windows(found), windows(drawn_alike))


def test_an_input_that_picks_no_rows_is_not_written(worker, next_token):
    context, _ = own_text(worker, model_of(FORWARD, next_token))
    found = context.on_own_text(model_of(FORWARD, next_token), {"another": 9})
    assert (windows(found) == 1).all()


def test_data_of_the_user_are_taken_as_they_are(worker, next_token):
    data = StoredFeeds([Batch({"ids": np.zeros((1, 4), np.int64)}, None)])
    context, found = own_text(worker, model_of(FORWARD, next_token), data)
    assert found is context


def test_tokens_are_drawn_as_often_as_they_are_likely():
    chances = np.array([0.0, 0.5, 0.2, 0.3], np.float32)
    with np.errstate(divide="ignore"):
        scores = np.log(chances) + 7
    rows = np.broadcast_to(scores, (20_000, 4))
    found = drawn(rows, np.random.default_rng(0))
    shares = np.bincount(found, minlength=4) / len(found)
    np.testing.assert_allclose(shares, chances, atol=0.015)
    assert shares[0] == 0
