"""A run that goes on from tensors of an earlier one."""

import gc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import MomentRequest, Resumes
from onnx_opt.runtime import kept_batches
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo

FIRST = """
<ir_version: 10, opset_import: ["" : 21]>
first (float[N, 2] x) => (float[N, 2] h, int64[2] shape)
{ h = Relu (x)  shape = Shape (x) }
"""
SECOND = """
<ir_version: 10, opset_import: ["" : 21]>
second (float[N, 2] h, float[N, 2] x, int64[2] shape) => (float[N, 2] y)
{ s = Sub (h, x)  y = Reshape (s, shape) }
"""
X = np.arange(-10, 10, dtype=np.float32).reshape(10, 2)


def model_of(text):
    return ir.from_proto(onnx.parser.parse_model(text))


def context(worker, feeds=({"x": X},)):
    opened = (
        None
        if feeds is None
        else open_feeds(list(feeds), [TensorInfo("x", "float32", ("N", 2))])
    )
    return RunContext(
        worker, opened, "cpu", 0, lambda model, path: ir.save(model, path)
    )


def test_a_run_context_resumes(worker):
    assert isinstance(context(worker), Resumes)


def test_what_follows_sees_the_tensors_of_every_batch(worker):
    resumed = context(worker).after(model_of(FIRST), ["h", "x", "shape"], 100)
    found = resumed.collect(model_of(SECOND), {"y": MomentRequest("y", "mean")}, 100)
    np.testing.assert_allclose(found["y"], np.maximum(-X, 0).mean(0), rtol=1e-6)


def test_inputs_that_were_fed_can_be_looked_at(worker):
    resumed = context(worker).after(model_of(FIRST), ["h", "x", "shape"], 100)
    request = MomentRequest("h", "regression", target="x")
    moments = resumed.collect(model_of(SECOND), {"h": request}, 100)["h"]
    h = np.maximum(X, 0)
    np.testing.assert_allclose(moments[0, :2, 3:], h.T @ X / 10, rtol=1e-5)


def test_only_so_many_samples_are_kept(worker):
    resumed = context(worker).after(model_of(FIRST), ["x"], 3)
    assert sum(len(batch.feeds["x"]) for batch in resumed.feeds) == 3


@pytest.mark.parametrize("in_memory", [0, 8, 80])
def test_what_memory_does_not_hold_waits_in_files(worker, monkeypatch, in_memory):
    monkeypatch.setattr(kept_batches, "IN_MEMORY", in_memory)
    resumed = context(worker).after(model_of(FIRST), ["h", "x", "shape"], 100)
    # as often as it is asked for
    for _ in range(2):
        x = [batch.feeds["x"] for batch in resumed.feeds]
        np.testing.assert_array_equal(np.concatenate(x), X)


def test_files_go_with_the_context(worker, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_batches, "IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    resumed = context(worker).after(model_of(FIRST), ["h"], 100)
    files = list(tmp_path.glob("*/*.batch"))
    assert len(files) == len(list(resumed.feeds))
    assert files
    del resumed
    gc.collect()
    assert list(tmp_path.glob("*/*.batch")) == []


def test_tensors_too_large_for_memory_and_files_are_not_kept(worker, monkeypatch):
    monkeypatch.setattr(kept_batches, "IN_MEMORY", 8)
    monkeypatch.setattr(kept_batches, "IN_FILES", 8)
    assert context(worker).after(model_of(FIRST), ["h"], 100) is None


def test_the_first_context_stays_as_it_was(worker):
    first = context(worker)
    first.after(model_of(FIRST), ["h"], 100)
    assert list(next(iter(first.feeds)).feeds) == ["x"]


def test_without_data_there_is_nothing_to_go_on_from(worker):
    with pytest.raises(UsageError, match="no calibration data"):
        context(worker, None).after(model_of(FIRST), ["h"], 100)
