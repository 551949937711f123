"""A sample of what the scripts try at length: hostile input, a fuzzed reader, killed runs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[3] / "tools" / "dev"
sys.path.insert(0, str(DEV))
from hostile import Outcome, faults_of  # noqa: E402
from hostile_cases.case import Case  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")

REFUSAL = Outcome(3, "", "error: m.onnx: is empty\n  fix: fetch it again\n", 0.1, 1)


def run(script: str, *options: str, folder: Path) -> str:
    """Output of a script, which must succeed."""
    done = subprocess.run(
        [sys.executable, str(DEV / script), *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hostile_input_is_refused_or_done(tmp_path):
    """Every 101st case, one of them as a process of its own."""
    printed = run("hostile.py", "--every", "101", "--processes", "1", folder=tmp_path)
    assert "hostile inputs, 0 with faults" in printed


def test_the_reader_is_fuzzed(tmp_path):
    printed = run("fuzz_reader.py", "--plain", "--runs", "200", folder=tmp_path)
    assert printed.startswith("200 inputs")
    assert printed.endswith("0 faults\n")


def test_killed_runs_damage_nothing(tmp_path):
    printed = run("kill_runs.py", "--runs", "8", folder=tmp_path)
    assert printed.startswith("8 runs, 0 with a damaged output or files left")


def test_a_refusal_is_no_fault(tmp_path):
    assert faults_of(Case("a: b"), REFUSAL, set(), tmp_path) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": 1}, "exit code 1"),
        ({"code": -11}, "exit code -11"),
        ({"stderr": "Traceback (most recent call last)"}, "a traceback"),
        ({"stderr": REFUSAL.stderr + "more\n"}, "not one error and one fix"),
        ({"stderr": "error: \x1b[31m\n  fix: x\n"}, "control characters"),
        ({"seconds": 21}, "s of CPU"),
        ({"memory": 2 << 30}, "MiB of memory"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, change, fault):
    outcome = dataclasses.replace(REFUSAL, **change)
    assert fault in "; ".join(faults_of(Case("a: b"), outcome, set(), tmp_path))


def test_files_that_are_left_or_changed_are_found(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"after")
    (tmp_path / "left").touch()
    case = Case("a: b", {"m.onnx": b"before"})
    found = faults_of(case, REFUSAL, {"m.onnx"}, tmp_path)
    assert found == ["files left: ['left']", "m.onnx was changed"]
