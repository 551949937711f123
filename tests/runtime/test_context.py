import contextlib
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.passes._base import MomentRequest
from onnx_opt.passes._core.infer import infer_types
from onnx_opt.runtime.batching import (
    RowLimit,
    batch_is_symbolic,
    micro_batches,
)
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, -1, 1, 1}>
{
    h = MatMul (x, w)
    r = Relu (h)
    s = Shape (r)
    y = Sqrt (r)
}
"""
BRANCH = """
<ir_version: 10, opset_import: ["" : 21]>
branch (bool c, float[2] x) => (float[2] y)
{
    y = If (c) <
        then_branch = yes () => (float[2] a) { a = Abs (x) },
        else_branch = no () => (float[2] b) { b = Neg (x) }
    >
}
"""
INPUTS = [TensorInfo("x", "float32", ("N", 2))]


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def context(worker, data, inputs=INPUTS, **keywords) -> RunContext:
    feeds = None if data is None else open_feeds(data, inputs)
    return RunContext(
        worker, feeds, "cpu", 0, lambda model, path: ir.save(model, path), **keywords
    )


DATA = {"x": np.array([[1, 2], [3, 4], [-8, 1]], np.float32)}


@pytest.mark.needs("onnxruntime", "1.21", "older ones round the last bit otherwise")
def test_ranges_of_inner_tensors_inputs_and_outputs(worker):
    names = ["x", "h", "r", "y", "s", "none"]
    ranges = context(worker, DATA).activation_ranges(
        model_of(MODEL), names, "minmax", 100, 64
    )
    assert ranges == {"x": (-8, 4), "h": (-7, 9), "r": (0, 9), "y": (0, 3)}


def test_at_most_the_samples_asked_for(worker):
    ranges = context(worker, DATA).activation_ranges(
        model_of(MODEL), ["h"], "minmax", 100, 2
    )
    assert ranges == {"h": (0, 7)}


def test_the_model_is_not_touched(worker):
    model = model_of(MODEL)
    before = ir.to_proto(model).SerializeToString()
    context(worker, DATA).activation_ranges(model, ["h", "r"], "percentile", 99, 64)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_branch_that_is_not_taken_has_no_ranges(worker):
    inputs = [TensorInfo("c", "bool", ()), TensorInfo("x", "float32", (2,))]
    data = [{"c": np.array(True), "x": np.array([-1, 2], np.float32)}]
    model = model_of(BRANCH)
    # the values of branches have no types in text
    infer_types(model, data_prop=True)
    ranges = context(worker, data, inputs).activation_ranges(
        model, ["y:then_branch:a", "y:else_branch:b", "y"], "minmax", 100, 8
    )
    assert ranges == {"y": (0, 2), "y:then_branch:a": (0, 2)}


def test_tensors_of_unknown_type_are_observed_where_they_are_float(worker):
    model = model_of(MODEL)
    for node in model.graph:
        if node.outputs[0].name != "y":
            node.outputs[0].type = node.outputs[0].shape = None
    ranges = context(worker, DATA).activation_ranges(
        model, ["h", "s"], "minmax", 100, 64
    )
    assert ranges == {"h": (-7, 9)}


def test_overflow_in_the_model_names_the_tensor(worker):
    data = {"x": np.array([[1, 2], [3e38, 3e38]], np.float32)}
    with pytest.raises(RefusedError, match="tensor 'h': is NaN or infinite"):
        context(worker, data).activation_ranges(
            model_of(MODEL), ["h"], "minmax", 100, 64
        )


def test_without_data_says_what_to_give(worker):
    run = context(worker, None)
    assert not run.has_data()
    with pytest.raises(UsageError, match="no calibration data"):
        run.activation_ranges(model_of(MODEL), ["h"], "minmax", 100, 64)


def test_nothing_is_left_on_disk(worker, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    context(worker, DATA).activation_ranges(model_of(MODEL), ["h"], "minmax", 100, 64)
    assert list(tmp_path.iterdir()) == []


def test_progress_and_warnings_reach_the_caller(worker):
    steps, said = [], []

    @contextlib.contextmanager
    def progress(label, total):
        steps.append((label, total))
        yield steps.append

    run = context(
        worker,
        DATA,
        progress=progress,
        warn=lambda where, what: said.append((where, what)),
    )
    run.activation_ranges(model_of(MODEL), ["h"], "minmax", 100, 64)
    run.warn("h", "odd")
    assert steps == [("calibrating", 64), 1, 2]
    assert said == [("h", "odd")]
    assert run.warnings == ["h: odd"]


def test_micro_batches_cover_every_row_once():
    x = np.arange(46, dtype=np.float32).reshape(23, 2)
    limit, parts = RowLimit(), []
    for feeds, rows in micro_batches(
        open_feeds([{"x": x[:9]}, {"x": x[9:]}], INPUTS), INPUTS, 20, limit
    ):
        assert len(feeds["x"]) == rows <= limit.rows
        limit.adapt(4 << 20, 1)
        parts.append(feeds["x"])
    np.testing.assert_array_equal(np.concatenate(parts), x[:20])
    assert [len(p) for p in parts] == [1, 8, 8, 3]


@pytest.mark.parametrize(
    ("size", "rows", "expected"),
    [
        (0, 1, 8),
        (1, 1, 8),
        (8 << 20, 1, 4),
        (64 << 20, 8, 4),
        (256 << 20, 1, 1),
    ],
)
def test_rows_follow_the_memory_of_the_outputs(size, rows, expected):
    limit = RowLimit()
    limit.adapt(size, rows)
    assert limit.rows == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("N", 3)], True),
        ([(None, 3), ("N", 5)], True),
        ([("N", 3), ("M", 5)], False),
        ([(1, 3)], False),
        ([("N", 3), ()], False),
        ([], False),
    ],
)
def test_only_one_symbolic_batch_is_cut(shapes, expected):
    assert (
        batch_is_symbolic(
            [TensorInfo(f"i{n}", "float32", s) for n, s in enumerate(shapes)]
        )
        is expected
    )


def test_fixed_batches_stay_whole():
    inputs = [TensorInfo("x", "float32", (4, 2))]
    feeds = open_feeds({"x": np.zeros((12, 2), np.float32)}, inputs)
    assert [rows for _, rows in micro_batches(feeds, inputs, 6, RowLimit())] == [4, 4]


def test_satisfies_the_protocol_that_passes_declare():
    from onnx_opt.passes._base import Context

    wanted = {name for name in vars(Context) if not name.startswith("_")} | set(
        Context.__annotations__
    )
    source = Path(RunContext.activation_ranges.__code__.co_filename).read_text()
    assert all(
        hasattr(RunContext, name) or re.search(rf"self\.{name}\b", source)
        for name in wanted
    )


def test_moments_of_inner_tensors_and_inputs(worker):
    requests = {
        "a": MomentRequest("h", "absmax"),
        "m": MomentRequest("x", "mean"),
        "g": MomentRequest("r", "gram"),
        "none": MomentRequest("none", "mean"),
        "shape": MomentRequest("s", "mean"),
    }
    found = context(worker, DATA).collect(model_of(MODEL), requests, 64)
    assert set(found) == {"a", "m", "g"}
    np.testing.assert_array_equal(found["a"], [7, 9])
    np.testing.assert_allclose(found["m"], [-4 / 3, 7 / 3])
    h = np.maximum(DATA["x"] @ np.array([[1, -1], [1, 1]]), 0)
    z = np.concatenate([h, np.ones((3, 1))], axis=1)
    np.testing.assert_allclose(found["g"][0], z.T @ z / 3, rtol=1e-6)


def test_moments_without_data_say_what_to_give(worker):
    with pytest.raises(UsageError, match="no calibration data"):
        context(worker, None).collect(
            model_of(MODEL), {"a": MomentRequest("h", "absmax")}, 64
        )


FIXED_INSIDE = """
<ir_version: 10, opset_import: ["" : 21]>
fixed (float[N, 6] x) => (float[4, 2, 3] y)
<int64[3] shape = {4, 2, 3}>
{
    r = Reshape (x, shape)
    y = Relu (r)
}
"""


def test_a_batch_that_is_fixed_inside_the_model_stays_whole(worker):
    data = {"x": np.arange(24, dtype=np.float32).reshape(4, 6)}
    inputs = [TensorInfo("x", "float32", ("N", 6))]
    found = context(worker, data, inputs)
    model = model_of(FIXED_INSIDE)
    ranges = found.activation_ranges(model, ["r"], "minmax", 100.0, 4)
    assert ranges == {"r": (0, 23)}
    request = MomentRequest("r", "mean")
    means = found.collect(model, {"mean": request}, 4)
    assert np.mean(means["mean"]) == pytest.approx(11.5)
    resumed = found.after(model, ["y"], 4)
    (batch,) = resumed.feeds
    assert batch.feeds["y"].shape == (4, 2, 3)
