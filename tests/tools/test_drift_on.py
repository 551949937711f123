"""Drift is measured on data that no pass has seen, where there is enough of it, and the account
says which it was.
"""

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_opt import CheckError, RefusedError, optimize
from onnx_opt.passes._core.pipeline import as_pipeline
from onnx_opt.tools._run.evidence import gather_inputs
from onnx_opt.tools._run.load import load_original
from onnx_opt.tools._run.run import open_run
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools.tables import result_tables
from rich.console import Console
from sample_models import model_from

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 8] x) => (float[n, 4] y)
<float[8, 16] w1, float[16, 4] w2>
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""
WIDE = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 64] x) => (float[n, 64] y)
<float[64, 64] w1, float[64, 64] w2>
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""
QUANT = "quant(measure=false, smooth=false, rounding=nearest, calibration=minmax)"


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model_from(NET), path)
    return path


def samples(rows, loud=()):
    """Normal rows; those of the given numbers are 50 times as large."""
    x = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    x[list(loud)] *= 50
    return x


def first_words(result):
    """The account as text."""
    console = Console(file=io.StringIO(), width=200)
    for table in result_tables(result):
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("rows", "on", "words"),
    [
        (64, "held-out data", "samples held out of --data, which no pass has seen"),
        (32, "held-out data", "samples held out of --data"),
        (31, "calibration data", "the calibration data itself"),
        (None, "synthetic feeds", "synthetic feeds"),
    ],
)
def test_the_account_says_what_drift_was_measured_on(net, rows, on, words):
    result = optimize(
        net, QUANT, data=None if rows is None else {"x": samples(rows)}, bench=False
    )
    assert result.drift_on == on
    assert json.loads(result.to_json())["drift_on"] == on
    assert f"SQNR to the original, on {words}" in first_words(result)


def test_other_evaluation_data_judges_and_calibration_keeps_everything(net):
    loud = range(7, 64, 8)  # would be held out, and then leave the range
    labelled = {"x": samples(40, loud=[1]), "labels": np.zeros(40, np.int64)}
    result = optimize(
        net,
        QUANT,
        data={"x": samples(64, loud)},
        eval_data=labelled,
        metric="top1",
        bench=False,
    )
    assert result.drift_on == "evaluation data"
    assert result.passes[-1].drift["sqnr_db"] > 15  # below 3 where they were not seen


def test_evaluation_data_judges_without_a_metric_too_and_that_is_said(net):
    labelled = {"x": samples(40), "labels": np.zeros(40, np.int64)}
    result = optimize(
        net, QUANT, data={"x": samples(64)}, eval_data=labelled, bench=False
    )
    assert result.drift_on == "evaluation data"
    assert [w for w in result.warnings if w.startswith("--eval-data: ")] == [
        "--eval-data: nothing says what to measure on it: outputs are compared on it, but its "
        "labels are not used; --metric scores them"
    ]


def test_evaluation_data_that_does_not_fit_is_refused_without_a_metric_too(net):
    short = {"x": samples(40), "labels": np.zeros(39, np.int64)}
    with pytest.raises(RefusedError, match="'labels' holds 39 samples"):
        optimize(net, "simplify", eval_data=short, bench=False)


def test_without_a_run_nothing_is_measured(net):
    result = optimize(net, QUANT, data={"x": samples(64)}, verify="never", bench=False)
    assert result.drift_on is None
    assert "SQNR to the original" not in first_words(result)


def sqnr_db(net, loud, rows=64):
    return (
        optimize(net, QUANT, data={"x": samples(rows, loud)}, bench=False, floor="none")
        .passes[-1]
        .drift["sqnr_db"]
    )


def test_calibration_does_not_see_what_drift_is_measured_on(net):
    assert sqnr_db(net, loud=range(7, 64, 8)) < 3  # beyond the range of what was seen
    assert (
        sqnr_db(net, loud=range(7, 24, 8), rows=31) > 20
    )  # too few: seen, and judged by


def test_min_sqnr_is_that_figure(net):
    loud = {"x": samples(64, range(7, 64, 8))}
    with pytest.raises(
        CheckError, match=r"the result has -?[0-9.]+ dB, below the 20 dB asked for"
    ):
        optimize(net, QUANT, data=loud, min_sqnr=20, bench=False)


def test_latency_is_measured_on_batches_as_the_user_gave_them(net):
    batches = [{"x": part} for part in np.array_split(samples(64), 4)]
    settings = RunSettings(
        model=Path(net), pipeline=as_pipeline(QUANT), data=batches, bench=False
    )
    with open_run(settings) as run:
        original, model = load_original(run)
        inputs = gather_inputs(run, original, model)
        assert inputs.drift_on == "held-out data"
        (feeds,) = inputs.latency_feeds
        np.testing.assert_array_equal(feeds["x"], batches[0]["x"])


def weights_of(path):
    """Constants by name."""
    found = onnx.load(path).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found}


def test_no_pass_sees_data_that_only_judges(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(model_from(WIDE), path)
    # palettes are rounded by inputs that are made up
    passes = "quant(palette, bits=2, ends=same)"
    rows = np.random.default_rng(0).standard_normal((40, 64)) * np.arange(64)
    x = rows.astype(np.float32)
    (outputs,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    labelled = {"x": x, "labels": outputs.argmax(axis=1)}
    judged = {"eval_data": labelled, "metric": "top1"}
    written = []
    for name, given in {"alone": {}, "judged": judged}.items():
        out = tmp_path / f"{name}.onnx"
        optimize(path, passes, out=out, bench=False, pack=False, floor="none", **given)
        written.append(weights_of(out))
    alone, beside = written
    assert alone.keys() == beside.keys()
    assert any(array.dtype == np.int8 for array in alone.values())
    for name, array in alone.items():
        np.testing.assert_array_equal(array, beside[name])
