"""Facts that a run tells its passes about the models that they make: kernels, time, and what to
remember.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt.runtime.bench import paired_latency
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.session import open_session

SMALL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 8] x) => (float[N, 8] y)
{ a = Identity (x)  y = Relu (a) }
"""
LARGE = """
<ir_version: 10, opset_import: ["" : 21]>
large (float[N, 8] x) => (float[N, 8] y)
<int64[1] times = {3000}, bool go = {1}>
{
    t = Squeeze (times)
    y = Loop (t, go, x) <body = turn (int64 i, bool c, float[N, 8] v) => (bool c2, float[N, 8] w) {
        c2 = Identity (c)  s = Sin (v)  w = Add (s, v) }>
}
"""
FEEDS = [{"x": np.ones((2, 8), np.float32)}]


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def context(worker, **keywords) -> RunContext:
    return RunContext(
        worker, None, "cpu", 0, lambda model, path: ir.save(model, path), **keywords
    )


def test_kernels_are_those_of_the_optimized_graph(worker):
    nodes = context(worker, provider="cpu").kernels(model_of(SMALL))
    assert nodes is not None
    assert [(op, inputs, outputs) for op, _, inputs, outputs in nodes] == [
        ("Relu", ("x",), ("y",))
    ]


@pytest.mark.parametrize("provider", [None, "tensorrt"])
def test_no_kernels_where_the_graph_cannot_be_seen(worker, provider):
    assert context(worker, provider=provider).kernels(model_of(SMALL)) is None


@pytest.mark.parametrize(("provider", "feeds"), [(None, FEEDS), ("cpu", [])])
def test_no_ratio_where_nothing_can_be_timed(worker, provider, feeds):
    candidate = context(worker, provider=provider, latency_feeds=feeds)
    assert candidate.latency_ratio(model_of(SMALL), model_of(LARGE)) is None


def test_the_ratio_is_the_second_models_time_to_the_firsts(worker):
    timing = context(worker, provider="cpu", latency_feeds=FEEDS)
    ratio = timing.latency_ratio(model_of(SMALL), model_of(LARGE))
    assert ratio is not None
    assert ratio.low <= ratio.median <= ratio.high
    # 3,000 turns of a loop against none
    assert ratio.median > 3


def test_both_times_and_their_ratio_are_of_scripted_rounds(worker, write, monkeypatch):
    sessions = [open_session(worker, write(SMALL)) for _ in range(2)]
    asked = []

    def scripted(function, handles, feeds, seconds, least, most, timeout):
        asked.append((function, handles, feeds, seconds, least))
        return [[100.0] * 8, [200.0] * 7 + [500.0]]

    monkeypatch.setattr(worker, "call", scripted)
    found = paired_latency(*sessions, FEEDS)
    assert (found.first_ms, found.second_ms) == (100.0, 200.0)
    assert found.ratio == (2.0, 2.0, 5.0)
    handles = [session.handle() for session in sessions]
    assert asked == [("time_rounds", handles, [FEEDS, FEEDS], 0.8, 8)]


def test_the_float_form_is_a_copy(worker):
    remembering, model = context(worker), model_of(SMALL)
    remembering.remember_float(model)
    model.graph.remove(list(model.graph)[-1:], safe=False)
    assert remembering.float_form is not None
    assert len(remembering.float_form.graph) == 2


def test_two_models_are_compared_without_their_outputs_leaving_the_child(worker, write):
    first, second = (
        open_session(worker, write(SMALL, "a.onnx")),
        open_session(
            worker, write(SMALL.replace("y = Relu (a)", "y = Neg (a)"), "b.onnx")
        ),
    )
    powers, scalars, size = worker.call(
        "compare", first.handle(), second.handle(), FEEDS[0], []
    )
    assert powers == {"y": (16.0, 64.0)}
    assert (scalars, size) == ({}, 128)
