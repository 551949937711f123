"""onnxruntime as people have it: too old, twice in one folder, in part, or not at all."""

import sys
from types import ModuleType

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError, UsageError, optimize
from onnx_opt.passes._core.requirements import Requirements
from onnx_opt.runtime import session as session_module
from onnx_opt.runtime._worker import installed as child_module
from onnx_opt.runtime._worker.ipc import Installed
from onnx_opt.runtime.installed import conflict, installed, too_old
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run import evidence
from onnx_opt.tools.cli import main
from sample_models import MLP, model_from

TWO = Installed("1.20.1", {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.20.1"})
TOLD = (
    "onnxruntime 1.32.0, onnxruntime-gpu 1.20.1 are installed, all wheels of one module, of "
    "which 1.20.1 is imported: they overwrite each other's files (pip uninstall -y onnxruntime "
    "onnxruntime-gpu && pip install onnxruntime-gpu)"
)


def needs(release):
    return Requirements(21, 10, release, "opset 99")


@pytest.mark.parametrize("release", [None, "1.15", "1.20"])
def test_a_release_that_will_do_is_no_news(release):
    assert too_old(TWO, needs(release)) is None


def test_a_release_that_is_too_old_names_the_one_needed_and_the_wheel_to_get():
    assert too_old(Installed("1.9.0", {"onnxruntime-gpu": "1.9.0"}), needs("1.20")) == (
        "needs onnxruntime-gpu >= 1.20 (opset 99); 1.9.0 is installed",
        'pip install -U "onnxruntime-gpu>=1.20"',
    )


def test_a_development_version_has_a_release():
    assert too_old(Installed("1.24.0.dev20260101", {}), needs("1.24")) is None


@pytest.mark.parametrize("wheels", [{}, {"onnxruntime": "1.32.0"}])
def test_one_wheel_is_no_conflict(wheels):
    assert conflict(Installed("1.32.0", wheels)) is None


def test_two_wheels_are_told_with_what_to_do():
    assert conflict(TWO) == TOLD


def test_a_run_tells_of_two_wheels_once(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "installed", lambda worker: TWO)
    onnx.save(model_from(MLP), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", "simplify, prune", bench=False)
    assert result.warnings.count(f"onnxruntime: {TOLD}") == 1


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Have a module of given facts imported as onnxruntime, beside wheels of given names."""

    def put(facts, *wheels):
        module = ModuleType("onnxruntime")
        vars(module).update(
            facts, __file__=str(tmp_path / "onnxruntime" / "__init__.py")
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        for name in wheels:
            info = tmp_path / f"{name}-1.9.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.9.0\n")
            module = "onnxruntime_genai" if "genai" in name else "onnxruntime"
            (info / "top_level.txt").write_text(f"{module}\n")
        child_module.installed.cache_clear()

    yield put
    child_module.installed.cache_clear()


def test_wheels_of_the_module_are_found_and_no_others(imported):
    whole = {"__version__": "1.9.0", "InferenceSession": object}
    imported(whole, "onnxruntime", "onnxruntime_openvino", "onnxruntime_genai")
    assert child_module.installed() == Installed(
        "1.9.0", {"onnxruntime": "1.9.0", "onnxruntime_openvino": "1.9.0"}
    )


def test_a_module_in_part_is_told(imported):
    imported({})
    with pytest.raises(UsageError, match="is installed in part") as caught:
        child_module.installed()
    assert "--force-reinstall" in caught.value.fix


def test_a_missing_module_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="onnxruntime: cannot be imported") as caught:
        child_module.onnxruntime_module()
    assert caught.value.fix.startswith("pip install onnxruntime")


def test_the_worker_says_what_it_imports():
    with Worker(timeout=60) as worker:
        assert installed(worker).version == onnxruntime.__version__


def test_a_model_that_is_too_new_is_refused_by_version(tmp_path, monkeypatch):
    proto = model_from(MLP)
    # no release knows it
    proto.graph.node[0].op_type = "MatMulOfTomorrow"
    onnx.save(proto, tmp_path / "m.onnx")
    old = Installed("1.9.0", {"onnxruntime": "1.9.0"})
    monkeypatch.setattr(session_module, "installed", lambda worker: old)
    with Worker(timeout=60) as worker, pytest.raises(RefusedError) as caught:
        open_session(worker, tmp_path / "m.onnx")
    assert str(caught.value).splitlines() == [
        "m.onnx: needs onnxruntime >= 1.18 (opset 21); 1.9.0 is installed",
        '  fix: pip install -U "onnxruntime>=1.18"',
    ]


def test_without_the_module_the_command_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "onnxruntime.py").write_text(
        "raise ImportError('no such file')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    onnx.save(model_from(MLP), tmp_path / "m.onnx")
    done = CliRunner().invoke(main, ["bench", str(tmp_path / "m.onnx")])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "error: onnxruntime: cannot be imported: no such file",
        "  fix: pip install onnxruntime, or the build of it for your hardware",
    ]
