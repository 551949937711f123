"""The examples run as a reader would run them, and do what they say."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

MEAN = """
<ir_version: 10, opset_import: ["" : 18]>
mean (float[2, 3, 4, 4] x) => (float[{out}] y)
<int64[{count}] axes = {{{axes}}}>
{{
    y = ReduceMean <keepdims = {keepdims}> (x, axes)
}}
"""


def run(name: str, *arguments: str) -> str:
    bare = (
        "import sys, conftest, runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], "
        "run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", bare, str(EXAMPLES / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mean_to_pool(out: str, axes: str, keepdims: int) -> tuple[bool, list[str]]:
    spec = importlib.util.spec_from_file_location(
        "foreign_pass", EXAMPLES / "foreign_pass.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = MEAN.format(out=out, axes=axes, count=axes.count(",") + 1, keepdims=keepdims)
    model = ir.from_proto(onnx.parser.parse_model(text))
    modified = module.MeanToPool()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return modified, [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("out", "axes"), [("2, 4, 4", "1"), ("2, 4", "1, 2"), ("2", "1, 2, 3")]
)
def test_other_means_stay(out, axes):
    assert mean_to_pool(out, axes, 0) == (False, ["ReduceMean"])


@pytest.mark.parametrize(
    ("out", "axes", "keepdims", "ops"),
    [
        ("2, 3", "2, 3", 0, ["GlobalAveragePool", "Flatten"]),
        ("2, 3", "-1, -2", 0, ["GlobalAveragePool", "Flatten"]),
        ("2, 3, 1, 1", "2, 3", 1, ["GlobalAveragePool"]),
    ],
)
def test_spatial_means_become_pools(out, axes, keepdims, ops):
    assert mean_to_pool(out, axes, keepdims) == (True, ops)


@pytest.mark.slow
def test_the_foreign_pass_is_kept_and_believed():
    out = run("foreign_pass.py")
    assert "MeanToPool: changed 1\n" in out
    assert "MeanToPool" not in "".join(
        line for line in out.splitlines() if line.startswith("warning")
    )
    assert "'GlobalAveragePool'" in out


@pytest.mark.slow
def test_the_python_example_writes_a_good_model(tmp_path):
    out = run("optimize_demo.py", str(tmp_path / "small.onnx"))
    top1 = re.search(r"^top1 +([\d.]+) -> ([\d.]+)$", out, re.M)
    assert float(top1[2]) >= float(top1[1]) - 0.01
    size = re.search(r"^bytes +(\d+) -> (\d+)$", out, re.M)
    assert int(size[2]) == (tmp_path / "small.onnx").stat().st_size < 0.4 * int(size[1])
    onnxruntime.InferenceSession(
        tmp_path / "small.onnx", providers=["CPUExecutionProvider"]
    )
