"""A run that is interrupted in the middle ends with 130 and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from onnx_opt.tools.cli import report_error

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo" / "digits_cnn.onnx"
ENDLESS = """
import pathlib, numpy as np

def batches():
    while True:
        pathlib.Path("started").touch()
        yield {"image": np.zeros((8, 1, 8, 8), np.float32)}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_130_and_no_files(tmp_path, signum):
    (tmp_path / "data.py").write_text(ENDLESS, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "onnx_opt",
        str(DEMO),
        "--data",
        "data.py:batches",
        "-o",
        "out.onnx",
        "--passes",
        "quant(samples=10000000)",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (
        not (tmp_path / "started").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signum)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "Traceback" not in words
    left = {p.name for p in tmp_path.iterdir()} - {"data.py", "started", "__pycache__"}
    assert not left


def test_an_interruption_that_kept_something_says_so(capsys):
    error = click.Abort()
    error.__cause__ = KeyboardInterrupt("the same command goes on from step 7")
    assert report_error(error) == 130
    assert "  fix: the same command goes on from step 7" in capsys.readouterr().err
