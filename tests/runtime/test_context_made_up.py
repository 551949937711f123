"""Feeds that a run makes up for passes that look at tensors without data."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.context import MomentRequest, Observes
from onnx_opt.passes._core.tables import token_inputs
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import Batch, StoredFeeds

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
embed (int64[N, L] ids, int64[N, L] types, float[N, L] x)
    => (float[N, L, 1] a, float[N, L, 1] b) {
    a = Gather (words, ids)
    b = Gather (kinds, types)
}
"""
FEEDS = {
    "ids": np.ones((1, 256), np.int64),
    "types": np.zeros((1, 256), np.int64),
    "x": np.zeros((1, 256), np.float32),
}


@pytest.fixture
def model():
    model = ir.from_onnx_text(MODEL)
    for name, rows in (("words", 500), ("kinds", 2)):
        value = next(
            value
            for node in model.graph
            for value in node.inputs
            if value is not None and value.name == name
        )
        array = np.arange(rows, dtype=np.float32)[:, None]
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


def context(worker, feeds=None, samples=(FEEDS,), runs=True):
    return RunContext(
        worker,
        feeds,
        "cpu",
        0,
        lambda model, path: ir.save(model, path),
        made_up=lambda has_tokens: samples,
        runs=runs,
    )


def test_inputs_that_pick_rows_are_told_with_how_many_there_are(model):
    assert token_inputs(model) == {"ids": 500, "types": 2}


def test_all_rows_of_a_table_occur(model, worker):
    whole = context(worker)
    assert isinstance(whole, Observes)
    observing = whole.on_any_feeds(token_inputs(model))
    requests = {
        "mean": MomentRequest("a", "mean"),
        "ends": MomentRequest("a", "extremes"),
    }
    found = observing.collect(model, requests, 1000)
    assert found["mean"][0] == pytest.approx(249.5, abs=10)
    assert found["ends"][:, 1].min() == 0
    assert found["ends"][:, 2].max() == 499
    # every run makes up the same
    again = whole.on_any_feeds(token_inputs(model))
    np.testing.assert_array_equal(
        again.collect(model, requests, 1000)["mean"], found["mean"]
    )


def test_few_tokens_may_be_too_few(worker):
    whole = context(worker)
    assert whole.on_any_feeds({"ids": 500}, least=16 * 256) is not None
    assert whole.on_any_feeds({"ids": 500}, least=16 * 256 + 1) is None


def test_data_of_the_user_are_taken_as_they_are(worker):
    given = context(worker, StoredFeeds([Batch(FEEDS, None)]))
    assert given.on_any_feeds({"ids": 500}) is given


def test_an_input_that_is_not_fed_is_not_made_up(worker):
    observing = context(worker).on_any_feeds({"another": 9})
    assert all(batch.feeds.keys() == FEEDS.keys() for batch in observing.feeds)


def test_images_are_varied_for_who_learns_from_them(worker):
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    sizes = np.arange(4, dtype=np.float32)
    few = context(worker, samples=({"x": image, "sizes": sizes},))
    (only,) = few.on_any_feeds({}).feeds
    assert only.feeds["x"] is image
    first, *others = few.on_any_feeds({}, least=1).feeds
    assert np.array_equal(first.feeds["x"], image)
    assert len({batch.feeds["x"].tobytes() for batch in others}) == len(others) == 15
    for batch in others:
        assert np.array_equal(np.sort(batch.feeds["x"], None), np.sort(image, None))
        # few numbers may be sizes or factors
        assert np.array_equal(batch.feeds["sizes"], sizes)


@pytest.mark.parametrize("given", [{"runs": False}, {"samples": ()}], ids=str)
def test_a_run_that_runs_nothing_observes_nothing(worker, given):
    assert context(worker, **given).on_any_feeds({"ids": 500}) is None
