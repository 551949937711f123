"""Any program runs as on an AVX2 CPU without VNNI; where that is not possible, it says so."""

import subprocess
import sys
from pathlib import Path

import pytest
from onnx_opt.runtime.hardware import products_model, products_saturate

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import without_vnni

ROOT = Path(__file__).resolve().parents[3]
WHY_NOT = without_vnni.why_not()
possible = pytest.mark.skipif(
    WHY_NOT is not None, reason=f"CPUID cannot be masked: {WHY_NOT}"
)

PROBE = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from onnx_opt.runtime.hardware import hardware, products_model, products_saturate
from onnx_opt.runtime.worker import Worker
with Worker(timeout=60) as worker:
    found = hardware(worker)
print(products_saturate(products_model()), found.saturates, *found.integer)
"""
SEGMENTATION_FAULT = "import ctypes; ctypes.string_at(0)"


def masked(*words):
    script = ROOT / "tools" / "dev" / "without_vnni.py"
    command = [sys.executable, script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@possible
def test_products_saturate_in_the_program_and_in_its_child():
    done = masked(sys.executable, "-c", PROBE.format(tests=str(ROOT / "tests")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "avx2"]


@possible
def test_asking_whether_it_is_possible_changes_nothing():
    before = products_saturate(products_model())
    assert without_vnni.why_not() is None
    assert products_saturate(products_model()) is before


@possible
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(5)", 5),
        (SEGMENTATION_FAULT, 139),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_the_exit_code_is_the_commands(code, expected):
    assert masked(sys.executable, "-c", code).returncode == expected


@possible
def test_the_program_still_handles_its_own_faults():
    done = masked(sys.executable, "-X", "faulthandler", "-c", SEGMENTATION_FAULT)
    assert done.stderr.startswith("Fatal Python error: Segmentation fault")
    code = (
        "import os, signal; handle = lambda *_: print('handled');"
        "print(signal.signal(signal.SIGSEGV, handle) == signal.SIG_DFL);"
        "os.kill(os.getpid(), signal.SIGSEGV);"
        "print(signal.signal(signal.SIGSEGV, signal.SIG_IGN) is handle);"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    done = masked(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "handled", "True"])


@possible
def test_a_command_that_is_not_there():
    done = masked("no-such-command")
    assert (done.returncode, done.stderr) == (
        127,
        "without_vnni: no-such-command: No such file or directory\n",
    )


def test_where_it_is_not_possible_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(without_vnni.platform, "machine", lambda: "aarch64")
    assert without_vnni.main(["true"]) == 77
    assert capsys.readouterr().err.startswith("without_vnni: not possible here: ")


@possible
def test_without_a_compiler_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(without_vnni.shutil, "which", lambda name: None)
    assert without_vnni.main(["true"]) == 77
    assert "not possible here: no C compiler" in capsys.readouterr().err


def test_no_command_is_a_wrong_call(capsys):
    assert without_vnni.main([]) == 2
    assert capsys.readouterr().err == "usage: without_vnni.py COMMAND...\n"
