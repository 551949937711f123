"""Limits of each target's runtime: every row complete, every limit found with its node."""

import os
import subprocess
import sys
from pathlib import Path

import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.target_limits import LIMITS, misfits
from onnx_opt.passes._core.targets import TARGETS
from onnx_opt.passes.fuse_attention import FORMS

PLAIN = """
<ir_version: 8, opset_import: ["" : 17]>
plain (float[1, 4] x) => (float[1, 4] y) { [act] y = Relu (x) }
"""


def found(text, target):
    model = ir.from_proto(onnx.parser.parse_model(text))
    return [
        (each.where, each.problem, each.fix, each.is_fatal)
        for each in misfits(model, target)
    ]


def test_every_target_has_its_row():
    assert list(LIMITS) == list(TARGETS) == list(FORMS)
    for limits in LIMITS.values():
        assert limits.precision
        assert limits.runtime
        assert limits.source


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_model_fits_everywhere(target):
    assert found(PLAIN, target) == []


def test_versions_above_the_highest():
    text = PLAIN.replace(": 17]", ": 28]").replace("ir_version: 8", "ir_version: 14")
    assert found(text, "openvino") == found(text, "cpu") == []
    (opset, version) = found(text, "web")
    assert opset == (
        "opset",
        "28 is above 26, the highest that onnxruntime-web 1.30 takes",
        "export the model with opset 26 or a lower one",
        True,
    )
    assert version[:2] == (
        "IR version",
        "14 is above 13, the highest that onnxruntime-web 1.30 takes",
    )
    assert [each[0] for each in found(text, "qnn")] == ["opset"]


@pytest.mark.parametrize("target", ["qnn", "coreml"])
def test_open_dims_where_they_must_be_fixed(target):
    text = PLAIN.replace("float[1, 4] x", "float[batch, 4] x")
    assert found(text, target) == [
        (
            "input x",
            "has open dims (?, 4), and nodes of open dims run on the CPU",
            "fix them: --shape x=?,4, with a number for each ?",
            True,
        )
    ]
    assert found(text, "web") == []


def test_an_input_with_a_default_need_not_be_fixed():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 4] x, float[n] w) => (float[1, 4] y)
    <float[4] w = {1, 2, 3, 4}>
    { y = Mul (x, w) }
    """
    assert found(text, "qnn") == []


def test_nodes_that_a_runtime_does_not_take_are_named():
    text = PLAIN.replace(
        "[act] y = Relu (x)",
        "[look] i = NonZero (x)  [act] y = Relu (x)",
    )
    (misfit,) = found(text, "qnn")
    assert misfit == (
        "NonZero look",
        "the shape of its result depends on the data",
        "take it out of the model before the export, into the program around it",
        False,
    )
    assert found(text, "openvino") == []


def test_foreign_operators():
    text = PLAIN.replace('["" : 17]', '["" : 17, "com.microsoft" : 1]').replace(
        "y = Relu (x)", "y = com.microsoft.Gelu (x)"
    )
    for target in ("cpu", "web", "cuda", "tensorrt"):
        assert found(text, target) == []
    for target in ("generic", "openvino", "qnn", "coreml"):
        (misfit,) = found(text, target)
        assert misfit[0] == "Gelu act"
        assert misfit[1].endswith("has no operators of com.microsoft")
        assert misfit[3] is True


def test_functions_of_the_model_are_no_foreign_operators():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[4] x) => (float[4] y) { y = own.twice (x) }
    <domain: "own", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add (a, a) }
    """
    assert found(text, "generic") == []


@pytest.mark.parametrize(
    ("target", "fix"), [("coreml", "quant(fp16)"), ("qnn", "quant with --data")]
)
def test_integers_that_are_not_taken(target, fix):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[2, 4] x, int8[4, 2] w) => (int32[2, 2] y) { y = MatMulInteger (x, w) }
    """
    (misfit,) = found(text, target)
    assert misfit[0].startswith("MatMulInteger")
    assert misfit[2] == f"begin from the float model, by {fix}"


def test_the_page_of_targets_is_that_of_the_tables():
    folder = Path(__file__).resolve().parents[2] / "tools" / "dev"
    done = subprocess.run(
        [sys.executable, folder / "docs_targets.py", "--check"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
