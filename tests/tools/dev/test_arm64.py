"""ONNX Runtime for arm64 under emulation: sums of products are exact, what is missing is told."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from integer_kernels import LARGEST_CODE, PROBE

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import arm64


@pytest.fixture(params=arm64.CPUS, ids=lambda cpu: cpu.name)
def cpu(request):
    reason = arm64.is_missing()
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.mark.slow
def test_products_of_8_bits_do_not_saturate(cpu, tmp_path):
    path = tmp_path / "probe.onnx"
    onnx.save(onnx.parser.parse_model(PROBE), path)
    feeds = {"x": np.full((1, 2), LARGEST_CODE, np.uint8)}
    (found,) = arm64.run(path, feeds, cpu)
    assert found.tolist() == [[2 * LARGEST_CODE * 127]]


@pytest.mark.slow
def test_a_model_that_does_not_load_is_an_error(cpu, tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="InvalidProtobuf"):
        arm64.run(path, {}, cpu)


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    words = "no emulator: python tools/dev/arm64.py FOLDER, and ONNX_OPT_ARM64=FOLDER"
    monkeypatch.delenv(arm64.FOLDER, raising=False)
    assert arm64.is_missing() == words
    monkeypatch.setenv(arm64.FOLDER, str(tmp_path))
    assert arm64.is_missing() == words
    (tmp_path / "site" / "onnxruntime").mkdir(parents=True)
    assert arm64.is_missing() is None


def test_a_command_that_fails_is_told_with_its_words(tmp_path):
    script = "import sys; sys.exit('no such package')"
    with pytest.raises(SystemExit, match="no such package"):
        arm64._call([sys.executable, "-c", script], tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="links and /proc are Linux's")
def test_each_cpu_sees_its_own_processor(tmp_path):
    for each in arm64.CPUS:
        arm64._make_view(tmp_path, each)
        # again: what is there stays
        arm64._make_view(tmp_path, each)
        text = (tmp_path / each.name / "proc" / "cpuinfo").read_text()
        assert f"CPU part\t: {each.part}\n" in text
        assert text.count("processor") == 1
        link = tmp_path / each.name / "usr"
        assert link.resolve() == tmp_path / "root" / "usr"
    dot = [each for each in arm64.CPUS if "asimddp" in each.features.split()]
    assert [each.name for each in dot] == ["Neoverse N1", "Armv8.6"]


def test_the_script_asks_for_a_folder():
    done = subprocess.run(
        [sys.executable, arm64.__file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "FOLDER" in done.stderr
