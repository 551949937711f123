"""sympy loads when symbolic dimensions are computed with, not when the tool starts."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
from sample_models import MLP, model_from

DEFERRED = """
import sys
from onnx_opt.tools.deferred_imports import defer_imports
defer_imports()
defer_imports()
import onnx_ir as ir
print("sympy.core" in sys.modules, end=" ")
print(ir.SymbolicDim("n") + 1, end=" ")
print("sympy.core" in sys.modules)
"""


def said_by(program):
    """Output of Python code in a fresh process in which `onnx_opt` can be imported."""
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", f"import conftest\n{program}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_loads_on_first_use_and_computes_the_same():
    assert said_by(DEFERRED) == "False n + 1 True"


def test_a_run_of_the_tool_does_without(tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    program = (
        "import sys\n"
        "from onnx_opt.tools.cli import main\n"
        "try:\n"
        f"    main([{str(path)!r}, '-p', 'simplify', '-q', '--no-bench'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'sympy.core' in sys.modules)\n"
    )
    assert said_by(program).splitlines()[-1] == "0 False"


def test_other_programs_import_as_they_always_did():
    program = "import sys, onnx_opt, sympy; print('sympy.core' in sys.modules)"
    assert said_by(program) == "True"
