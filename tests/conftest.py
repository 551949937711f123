"""Make `onnx_opt` importable in a bare checkout: the repository root is the package."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("onnx_opt") is None:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "onnx_opt", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx_opt"] = module
    spec.loader.exec_module(module)


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    """No test reads or writes the cache of who runs the suite."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_OPT_CACHE", folder)
        yield


def pytest_terminal_summary(terminalreporter):
    """Say on which CPU the suite ran: integer kernels differ from one class of CPUs to another."""
    from onnx_opt.runtime import hardware as of

    measured = of.products_saturate(of.products_model())
    machine = of.described(
        of.machine_architecture(), of.cpu_name(), of.instruction_sets(), measured
    )
    terminalreporter.write_line(f"CPU: {machine.label}")
