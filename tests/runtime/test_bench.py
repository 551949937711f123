import numpy as np
import pytest
from onnx_opt import UsageError
from onnx_opt.runtime import bench
from onnx_opt.runtime.bench import Latency, brief_latency, interleaved, peak_memory
from onnx_opt.runtime.feeds import synthetic_feeds
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import RemoteError, Worker

STACK = """
<ir_version: 10, opset_import: ["" : 21]>
stack (float[N, 256] x) => (float[N, 256] y)
{
    t = Transpose (x)
    %BODY%
}
"""
LIGHT = STACK.replace("%BODY%", "y = Relu (x)")
HEAVY = STACK.replace(
    "%BODY%", "a = MatMul (x, t) b = MatMul (a, x) c = MatMul (b, t) y = MatMul (c, x)"
)


def feeds(session, rows):
    return list(synthetic_feeds(session.inputs, 0, overrides={"N": rows}))


def test_the_heavier_model_takes_longer(worker, write):
    light = open_session(worker, write(LIGHT, "light.onnx"), threads=1)
    heavy = open_session(worker, write(HEAVY, "heavy.onnx"), threads=1)
    one, two = interleaved(
        [light, heavy], [feeds(light, 512)] * 2, seconds=0.1, min_rounds=9
    )
    assert one.ratio_to_first == 1
    assert two.ratio_to_first > 1
    assert one.runs == two.runs >= 9
    for latency in (one, two):
        assert 0 < latency.min_ms <= latency.median_ms <= latency.p90_ms


def test_rounds_bound_the_runs(worker, write):
    session = open_session(worker, write(LIGHT))
    (latency,) = interleaved([session], [feeds(session, 1)], seconds=60, rounds=7)
    assert latency.runs == 7


def test_each_model_may_have_its_own_feeds(worker, write):
    session = open_session(worker, write(LIGHT))
    with pytest.raises(RemoteError):
        interleaved([session], [[{"x": np.zeros((2, 3), np.float32)}]], seconds=0.01)
    assert isinstance(
        interleaved([session], [iter(feeds(session, 3))], seconds=0.01)[0], Latency
    )


def test_nothing_to_time_is_nothing():
    assert interleaved([], []) == []


def test_misuse(worker, write):
    session = open_session(worker, write(LIGHT))
    with pytest.raises(UsageError, match="has no feeds"):
        interleaved([session], [[]])
    with (
        Worker(timeout=30) as other,
        pytest.raises(UsageError, match="different processes"),
    ):
        interleaved([session, open_session(other, session.path)], [[], []])


def test_peak_memory_is_that_of_the_child(worker, write):
    assert peak_memory(open_session(worker, write(LIGHT))) > 20 << 20


def test_a_brief_timing_has_figures_and_no_ratio(worker, write):
    light = open_session(worker, write(LIGHT, "light.onnx"), threads=1)
    heavy = open_session(worker, write(HEAVY, "heavy.onnx"), threads=1)
    (batch,) = feeds(light, 512)[:1]
    found = brief_latency(light, heavy, [batch.feeds])
    assert 0 < found.first_ms < found.second_ms
    assert found.ratio is None


def test_large_models_are_timed_with_one_in_memory(worker, write, monkeypatch):
    monkeypatch.setattr(bench, "LARGE", 0)
    light = open_session(worker, write(LIGHT, "light.onnx"), threads=1)
    heavy = open_session(worker, write(HEAVY, "heavy.onnx"), threads=1)
    open_at_once = []
    timed = bench._timed

    def watched(*arguments):
        open_at_once.append([light._is_open(), heavy._is_open()])
        return timed(*arguments)

    monkeypatch.setattr(bench, "_timed", watched)
    batches = [batch.feeds for batch in feeds(light, 512)]

    found = bench.paired_latency(light, heavy, batches)

    assert found.ratio is not None
    assert found.ratio.verdict() == "slower"
    assert found.first_ms < found.second_ms
    assert [True, True] not in open_at_once
    assert {(True, False), (False, True)} == {tuple(each) for each in open_at_once}


def test_weights_in_files_beside_it_make_a_model_large(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "LARGE", 1000)
    path = tmp_path / "model[1].onnx"
    path.write_bytes(b"x" * 400)
    assert not bench.is_large(path)

    (tmp_path / "model[1].onnx.data").write_bytes(b"x" * 700)

    assert bench.is_large(path)


def test_a_link_to_nothing_beside_a_model_does_not_matter(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    (tmp_path / "model.onnx.old").symlink_to(tmp_path / "gone")

    assert not bench.is_large(path)
