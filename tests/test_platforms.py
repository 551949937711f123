"""Windows, as far as Linux can act it: no POSIX modules, no removal of open files, no /proc.

`WINDOWS` runs before anything else in every Python process of a run, its workers' too. Nothing here
was run on a real Windows or macOS.
"""

import multiprocessing
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx_opt
import pytest
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker, WorkerDied
from sample_models import CNN, model_from

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="acted on Linux")

WINDOWS = """
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import psutil

# these know where they run; who comes after them is told that this is Windows
if sys.orig_argv[1] == "-c":
    import onnxruntime
else:
    import click
    import onnx
    import onnx_ir
    import rich.console
    import rich.progress
sys.platform = "win32"
for name in ("fcntl", "resource", "grp", "pwd", "termios", "syslog"):
    sys.modules[name] = None
for name in (
    "fork", "register_at_fork", "geteuid", "getuid", "getpgid", "killpg", "setsid", "mkfifo",
    "sched_getaffinity", "sysconf", "posix_fadvise", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY",
):
    vars(os).pop(name, None)
shutil._use_fd_functions = False


def is_open(path):
    real = os.path.realpath(path)
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    if real in [os.readlink(link) for link in links if os.path.lexists(link)]:
        return True
    with open("/proc/self/maps") as maps:
        return any(line.rstrip().endswith(real) for line in maps)


def guarded(call):
    def guard(*paths, **options):
        for path in paths:
            if os.path.lexists(path) and is_open(path):
                raise PermissionError(13, "open in this process", os.fspath(path))
        return call(*paths, **options)
    return guard


def without_proc(path, *rest, **options):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "no such file", path)
    return open(path, *rest, **options)


# Python 3.10 has a table of its own
accessor = getattr(pathlib, "_NormalAccessor", pathlib)
for name in ("unlink", "remove", "replace", "rename"):
    setattr(os, name, guarded(getattr(os, name)))
    setattr(accessor, name, staticmethod(getattr(os, name)))
io.open = without_proc
accessor.open = staticmethod(without_proc)
"""


@pytest.fixture
def windows(tmp_path, monkeypatch):
    """Have Python processes that start from now on take this for Windows."""
    folder = tmp_path / "windows"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WINDOWS)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    # runs on the real platform would take its scratch folders, which have no locks, for dead ones'
    monkeypatch.setenv("TMPDIR", str(folder))


def python(*words, folder):
    """Output of a Python process, which must succeed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_act_is_what_it_says(windows, tmp_path):
    code = """
import os, pathlib, sys
kept = open("kept", "w")
for act in (pathlib.Path("kept").unlink, lambda: os.replace("kept", "other")):
    try:
        act()
    except PermissionError as error:
        print(error.strerror)
kept.close()
pathlib.Path("kept").unlink()
try:
    import fcntl
except ImportError:
    print(sys.platform, hasattr(os, "fork"), pathlib.Path("/proc/meminfo").exists())
"""
    lines = python("-c", code, folder=tmp_path).splitlines()
    assert lines[:2] == ["open in this process"] * 2
    assert lines[2].startswith("win32 False")


def test_the_main_job_runs_and_leaves_nothing_behind(windows, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    onnx.save(
        model_from(CNN),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=1024,
    )
    images = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calib.npz", x=images)
    run = [
        "-m",
        "onnx_opt",
        "m.onnx",
        "--passes",
        "simplify, quant(measure=false)",
        "--force",
    ]
    run += ["--data", "calib.npz", "--quiet", "--no-bench"]
    # onto a new file, and onto the model that is being read, whose data file is mapped
    for out in ("out.onnx", "m.onnx"):
        python(*run, "-o", out, folder=folder)
        model = onnx.load(folder / out)
        assert "BatchNormalization" not in [node.op_type for node in model.graph.node]
        named = set(
            re.findall(rb"(?:m|out)\.onnx[.0-9]*\.data", (folder / out).read_bytes())
        )
        data = {path.name.encode() for path in folder.glob(f"{out}*.data")}
        assert data == named
    left = {path.suffix for path in folder.iterdir()}
    assert left <= {".npz", ".onnx", ".data"}


FILL = """
<ir_version: 10, opset_import: ["" : 21]>
fill (int64[N] shape) => (float[M] y)
{ y = ConstantOfShape <value: tensor = float[1] {1}> (shape) }
"""


def test_memory_is_limited_where_the_system_does_not(windows, tmp_path):
    onnx.save(model_from(FILL), tmp_path / "fill.onnx")
    with Worker(timeout=60, memory_bytes=1 << 30) as worker:
        session = open_session(worker, tmp_path / "fill.onnx")
        assert session.run({"shape": np.array([2])})["y"].shape == (2,)
        with pytest.raises(WorkerDied, match=r"needs more than the 1\.0 GiB allowed"):
            session.run({"shape": np.array([2 << 30])})


def optimized(path):
    """Run in a process that was spawned."""
    return onnx_opt.optimize(path, "simplify", bench=False).output.nodes


def test_a_spawned_process_optimizes(tmp_path):
    onnx.save(model_from(CNN), tmp_path / "m.onnx")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        nodes = pool.apply(optimized, [str(tmp_path / "m.onnx")])
    assert 0 < nodes < len(model_from(CNN).graph.node)
