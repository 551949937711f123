"""Times of kernels: they add up to the time of a run, and bodies are counted once."""

import numpy as np
import onnx
import pytest
from onnx_opt.runtime.kernel_times import profiles
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[64, 64] x, bool c) => (float[64, 64] y)
{
    a = MatMul (x, x)
    b = If (c) <
        then_branch = t () => (float[64, 64] p) { p = MatMul (a, x) },
        else_branch = e () => (float[64, 64] q) { q = Add (a, x) }
    >
    y = Relu (b)
}
"""


@pytest.fixture
def session(tmp_path):
    model = onnx.parser.parse_model(BRANCHES)
    for node, name in zip(
        model.graph.node, ("product", "choice", "positive"), strict=True
    ):
        node.name = name
    path = tmp_path / "branches.onnx"
    onnx.save(model, path)
    with Worker() as worker:
        yield open_session(worker, path)


def test_kernels_add_up_to_a_run_without_their_bodies(session):
    feeds = {"x": np.eye(64, dtype=np.float32), "c": np.array(True)}
    (profile,) = profiles([session], [feeds])
    times = {kernel.name: time for kernel, time in profile.kernels}
    assert list(times) == ["product", "choice", "positive"]
    # in whole microseconds, of which a Relu may take none
    assert times["product"] > 0
    assert times["choice"] > 0
    assert sum(times.values()) == pytest.approx(profile.latency_ms)


def test_models_are_timed_in_turns(session):
    feeds = {"x": np.eye(64, dtype=np.float32), "c": np.array(False)}
    first, second = profiles([session, session], [feeds])
    assert len(first.kernels) == len(second.kernels) == 3
    assert second.latency_ms < 10 * first.latency_ms
