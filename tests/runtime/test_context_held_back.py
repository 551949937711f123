"""Calibration data in two parts: what a pass fits to, and what judges the fit."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import HoldsBack, MomentRequest
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
same (float[N, 1] x) => (float[N, 1] y) { y = Identity (x) }
"""


def context(worker, rows):
    feeds = None
    if rows:
        x = np.arange(rows, dtype=np.float32)[:, None]
        feeds = open_feeds([{"x": x}], [TensorInfo("x", "float32", ("N", 1))])
    return RunContext(worker, feeds, "cpu", 0, lambda model, path: ir.save(model, path))


def seen(context):
    """Lowest, highest and mean value that a context's data has."""
    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    requests = {
        "ends": MomentRequest("y", "extremes"),
        "mean": MomentRequest("y", "mean"),
    }
    found = context.collect(model, requests, 1000)
    return (
        found["ends"][:, 1].min(),
        found["ends"][:, 2].max(),
        found["mean"][0],
    )


def test_every_fourth_sample_judges_and_the_others_fit(worker):
    whole = context(worker, 40)
    assert isinstance(whole, HoldsBack)
    fitting, judging, samples = whole.held_back()
    assert samples == 10
    assert seen(judging) == (3, 39, np.mean(range(3, 40, 4)))
    assert seen(fitting) == (0, 38, np.mean([n for n in range(40) if n % 4 != 3]))
    assert seen(whole) == (0, 39, 19.5)


def test_both_parts_have_data(worker):
    parts = context(worker, 32).held_back()
    assert parts.fitting.has_data()
    assert parts.judging.has_data()


def test_too_few_samples_are_not_shared_out(worker):
    assert context(worker, 31).held_back() is None


def test_without_data_there_is_nothing_to_share_out(worker):
    with pytest.raises(UsageError):
        context(worker, 0).held_back()
