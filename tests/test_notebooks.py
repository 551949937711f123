"""The notebooks under examples/ run from the first cell to the last, and show pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def run(tmp_path):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    # the package is this tree, installed or not
    (tmp_path / "onnx_opt").symlink_to(ROOT, target_is_directory=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def executed(path):
        out = tmp_path / path.name
        done = subprocess.run(
            [sys.executable, "-c", EXECUTE, str(path), str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return cells(out)

    return executed


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["notebook.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    assert all(not cell.get("outputs") for cell in cells(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_its_pages(path, run):
    pages = 0
    for cell in run(path):
        source = "".join(cell["source"])
        shown = json.dumps(cell.get("outputs", []))
        if ".report()" in source:
            assert "<iframe" in shown
            assert "Content-Security-Policy" in shown
            pages += 1
    assert pages == 2
