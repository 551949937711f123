"""Targets at work: what a runtime cannot take is told before the file is deployed."""

import json

import numpy as np
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, RefusedError
from onnx_opt.passes._core.target_limits import Misfit
from onnx_opt.tools._run.misfits import grouped
from onnx_opt.tools.cli import main
from sample_models import MLP, model_from


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "mlp.onnx"
    proto = model_from(MLP)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, path)
    return path


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_run_on_a_target_without_integers_does_float16(model, tmp_path):
    out = tmp_path / "half.onnx"
    done = run(model, "--target", "coreml", "-o", out, "--no-bench", "--json")
    assert done.exit_code == 0, done.stderr
    warnings = json.loads(done.stdout)["warnings"]
    assert [each for each in warnings if "quant(fp16) was done instead" in each]
    assert [each for each in warnings if "--shape" in each]
    types = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_strict_makes_an_error_of_what_a_target_cannot_take(model, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(CheckError, match="has open dims") as caught:
        onnx_opt.optimize(model, "simplify", out=out, target="qnn", strict=True)
    assert caught.value.where == "target qnn"
    assert "--shape" in caught.value.fix
    assert not out.exists()


def test_a_bundle_that_cannot_run_is_not_made(model, tmp_path):
    place = tmp_path / "bundle"
    with pytest.raises(RefusedError, match="has open dims"):
        onnx_opt.package(model, place, target="qnn", bench=False)
    assert not place.exists()
    name, width = "x", 8
    facts = onnx_opt.package(
        model, place, target="qnn", bench=False, shapes={name: (1, width)}
    )
    assert facts.manifest["target"] == "qnn"
    assert not [each for each in facts.warnings if "open dims" in each]


def test_misfits_of_one_kind_are_one_line():
    found = [Misfit(f"NonZero {n}", "depends", "take it out", False) for n in range(5)]
    found.append(Misfit("opset", "too high", "export", True))
    groups = grouped(found)
    assert [group.problem for group in groups] == [
        "opset: too high",
        "NonZero 0, NonZero 1, NonZero 2 and 2 more: depends",
    ]
    assert groups[0].is_fatal


@pytest.mark.parametrize("target", ["openvino", "web", "qnn"])
def test_int8_for_other_runtimes_is_checked_here(model, target, tmp_path):
    rows = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    out = tmp_path / "out.onnx"
    result = onnx_opt.optimize(
        model,
        "quant",
        out=out,
        target=target,
        data={"x": rows},
        bench=False,
        force=True,
    )
    assert result.drift["sqnr_db"] > 15
    # nothing is timed here: this is not where it will run
    assert not [each for each in result.warnings if "timing" in each]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}
