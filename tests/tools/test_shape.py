"""`--shape`: what is written has fixed dims, is checked as such, and the rest of the run is the
same.
"""

import json
import shlex

import numpy as np
import onnx
import onnx.parser
import onnx_opt
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import UsageError
from onnx_opt.tools.cli import main

OPEN = """
<ir_version: 8, opset_import: ["" : 17]>
open (float[batch, 8] x) => (float[batch, 4] y)
{
    h = MatMul (x, w)
    y = Relu (h)
}
"""


@pytest.fixture
def model(tmp_path):
    proto = onnx.parser.parse_model(OPEN)
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "open.onnx"
    onnx.save(proto, path)
    return path


def dims_of(path):
    graph = onnx.load(path).graph
    return [
        [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_result_has_the_shape(model, tmp_path):
    out = tmp_path / "fixed.onnx"
    # with data of other batches, which are fed as the input takes them
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32))
    words = ["-p", "prune(sparsity=0.5)", "--data", data, "--no-bench", "--json"]
    done = invoke(model, "-o", out, "--shape", "x=2,8", *words)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert dims_of(out) == [[2, 8], [2, 4]]
    assert "input x: (batch, 8) became (2, 8)" in facts["model"]["changes"]
    assert facts["passes"][0]["drift"]["sqnr_db"] > 0
    line = shlex.split(facts["command"])
    assert line[line.index("--shape") + 1] == "x=2,8"
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((2, 8), np.float32)})[0].shape == (2, 4)


def test_a_run_that_changes_nothing_else_writes_the_shape(model, tmp_path):
    out = tmp_path / "fixed.onnx"
    result = onnx_opt.optimize(model, "strip", out=out, shapes={"x": (1, None)})
    assert dims_of(out) == [[1, 8], [1, 4]]
    assert result.drift["max_abs"] == 0
    before = onnx.load(model).SerializeToString()
    assert onnx.load(model).SerializeToString() == before


def test_a_bundle_has_the_shape(model, tmp_path):
    facts = onnx_opt.package(
        model, tmp_path / "bundle", shapes=["x=1,8"], bench=False, ort="no"
    )
    assert facts.manifest["inputs"][0]["shape"] == [1, 8]
    assert dims_of(tmp_path / "bundle" / "model" / "model.onnx") == [[1, 8], [1, 4]]
    assert facts.manifest["name"] == "open"
    onnx_opt.selftest(tmp_path / "bundle", seconds=0.01)


def test_what_is_wrong_is_an_error_and_nothing_is_written(model, tmp_path):
    done = invoke(model, "-o", tmp_path / "out.onnx", "--shape", "x=1,9")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "error: --shape x=1,9: the model fixes a dim to 8, not 9: (batch, 8)",
        "  fix: write 8 there, or export the model with an open dim",
    ]
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(UsageError, match="the model has no input 'y'"):
        onnx_opt.package(model, tmp_path / "bundle", shapes=["y=1,8"])
