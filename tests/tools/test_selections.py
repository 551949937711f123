"""Models that end in a selection, as detectors do: the data decides how many rows they give."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, optimize
from onnx_opt.tools.bisect import bisect
from onnx_opt.tools.cli import main
from sample_models import model_from

PLACES = """
    a = MatMul (x, w1)
    r = Relu (a)
    scores = MatMul (r, w2)
    is_clear = Greater (scores, zero)
    places = NonZero (is_clear)
"""
DETECTOR = f"""
<ir_version: 10, opset_import: ["" : 21]>
detector (float[n, 16] x) => (float[n, 8] scores, int64[k, 2] selected, float[k] picked)
<float[16, 64] w1, float[64, 8] w2, float zero = {{0}}>
{{
    {PLACES}
    selected = Transpose (places)
    picked = GatherND (scores, selected)
}}
"""
UNTURNED = f"""
<ir_version: 10, opset_import: ["" : 21]>
unturned (float[n, 16] x) => (int64[2, k] places)
<float[16, 64] w1, float[64, 8] w2, float zero = {{0}}>
{{ {PLACES} }}
"""
QUANT = "quant(measure=false)"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    x = np.random.default_rng(0).standard_normal((128, 16)).astype(np.float32)
    np.savez(path, x=x)
    return path


def written(tmp_path, text):
    path = tmp_path / "model.onnx"
    onnx.save(model_from(text), path)
    return path


def rows_of(path, data):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    selected = session.run(["selected"], {"x": np.load(data)["x"]})
    return len(selected[0])


def test_a_detector_is_quantized_and_judged(tmp_path, data):
    net = written(tmp_path, DETECTOR)
    out = tmp_path / "out.onnx"
    result = optimize(net, QUANT, data=data, out=out, bench=False)
    assert rows_of(out, data) != rows_of(net, data)
    assert result.passes[0].drift["sqnr_db"] > 12
    assert result.drift["word"] != "worthless"

    args = ["verify", str(net), str(out), "--data", str(data), "--json"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0
    outputs = json.loads(done.stdout)["outputs"]
    assert 0.9 < outputs["selected"]["top1_agreement"] < 1

    limited = CliRunner().invoke(main, [*args, "--atol", "0.5"])
    assert limited.exit_code == 4


def test_a_bisection_judges_it(tmp_path, data):
    net = written(tmp_path, DETECTOR)
    assert bisect(net, QUANT, data=data).number is None
    found = bisect(net, QUANT, data=data, min_sqnr=90)
    assert (found.number, "dB is below 90 dB" in found.problem) == (1, True)


def test_another_length_than_that_of_rows_is_refused_with_a_way_out(tmp_path, data):
    net = written(tmp_path, UNTURNED)
    with pytest.raises(CheckError, match="output 'places': shape") as error:
        optimize(net, "prune(sparsity=0.5, fit=false)", data=data, bench=False)
    assert "transpose the output" in error.value.fix
    assert "--verify never" in error.value.fix
