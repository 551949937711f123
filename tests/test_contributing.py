"""The worked example of CONTRIBUTING.md is a real pass: its two files are executed as they stand
there.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ADD_TO_PASSES = """
import importlib.util, sys
from pathlib import Path

root = Path({root!r})
spec = importlib.util.spec_from_file_location(
    "onnx_opt", root / "__init__.py", submodule_search_locations=[str(root)]
)
sys.modules["onnx_opt"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["onnx_opt"])

import onnx_opt.passes

onnx_opt.passes.__path__.append({folder!r})
"""


def example_files() -> dict[str, str]:
    """Path -> text of the example's files: each a path in backticks at a line's start, then a
    python block.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(
        re.findall(r"^`([\w/]+\.py)`.*?^```python\n(.*?)^```", text, re.M | re.S)
    )


@pytest.fixture
def example(tmp_path):
    """A folder with the example's two files, where `onnx_opt.passes` finds the pass."""
    for path, text in example_files().items():
        (tmp_path / Path(path).name).write_text(text, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        ADD_TO_PASSES.format(root=str(ROOT), folder=str(tmp_path)), encoding="utf-8"
    )
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_is_two_files():
    assert list(example_files()) == [
        "passes/keep_bits.py",
        "tests/passes/test_keep_bits.py",
    ]


@pytest.mark.slow
def test_the_example_passes_its_own_test(example):
    done = run(
        example,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(example),
        ".",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


@pytest.mark.slow
def test_the_example_is_found_without_registration(example):
    done = run(
        example,
        "-c",
        "import conftest\n"
        "from onnx_opt.passes._core.registry import pass_names\n"
        "print(pass_names())",
    )
    assert done.returncode == 0, done.stderr
    assert "'keep-bits'" in done.stdout


@pytest.mark.slow
def test_the_example_is_clean(example):
    (example / "conftest.py").unlink()
    done = run(
        example, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "."
    )
    assert done.returncode == 0, done.stdout
