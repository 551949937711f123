"""A writer that dies: the old output or the new one is there, whole, and the next writer removes
what is left of it.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt import OnnxOptError
from onnx_opt.frontends._onnx_io.leftovers import OwnFiles
from onnx_opt.frontends.onnx_file import check_output, load, save
from onnx_opt.passes._core import scratch

MUTATING = ("open", "write", "replace", "unlink", "chmod", "fsync")
ROWS = 16


class Killed(BaseException):
    """The process is no more."""


def model_of(fill: float) -> ir.Model:
    weight = ir.tensor(np.full((ROWS, ROWS), fill, np.float32), name="w")
    x = ir.val("x", ir.DataType.FLOAT, ["N", ROWS])
    w = ir.val("w", const_value=weight)
    node = ir.node("MatMul", [x, w])
    y = node.outputs[0]
    y.name = "y"
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(["N", ROWS])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[w], opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def fill_of(path: Path) -> float:
    """The value of a whole model's weights."""
    weights = load(path).graph.initializers["w"].const_value.numpy()
    assert (weights == weights.flat[0]).all()
    return float(weights.flat[0])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def die_at(monkeypatch, call: int):
    """Let the process end at its n-th call that changes files: no call after it does anything."""
    count = iter(range(10_000))

    def mortal(real):
        def function(*arguments, **options):
            if next(count) >= call:
                raise Killed
            return real(*arguments, **options)

        return function

    for name in MUTATING:
        monkeypatch.setattr(os, name, mortal(getattr(os, name)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, False),
        (None, True),
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ],
    ids=lambda external: {None: "nothing", False: "one file", True: "a pair"}[external],
)
def test_death_at_every_call_leaves_the_old_or_the_new(tmp_path, before, after):
    """Both outcomes occur, and the next writer leaves its own files alone."""
    seen = []
    for call in range(100):
        folder = tmp_path / str(call)
        folder.mkdir()
        target = folder / "m.onnx"
        if before is not None:
            save(model_of(1), target, external=before)
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                die_at(monkeypatch, call)
                save(model_of(2), target, external=after)
        except Killed:
            seen.append(fill_of(target) if target.exists() else None)
            check_output(target)
            if target.exists():
                assert seen[-1] == fill_of(target)
            save(model_of(3), target, external=False)
            assert names_in(folder) == ["m.onnx"]
            assert fill_of(target) == 3
        else:
            break
    former = None if before is None else 1.0
    assert set(seen) == {former, 2.0}
    # first the one, then the other
    assert seen == sorted(seen, key=[former, 2.0].index)


def test_a_live_writers_files_stay(tmp_path):
    """Two runs on one output at the same time: the later switch stands, whole."""
    target = tmp_path / "m.onnx"
    save(model_of(1), target, external=True)

    def second(_: Path) -> None:
        save(model_of(3), target, external=True)
        check_output(target)

    save(model_of(2), target, external=True, check=second)
    assert fill_of(target) == 2
    assert len(names_in(tmp_path)) == 2


def test_a_killed_process_leaves_nothing_for_long(tmp_path):
    """The lock ends with the process, not with its cleaning up."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from onnx_opt.frontends._onnx_io.leftovers import OwnFiles
        files = OwnFiles(Path("m.onnx")).__enter__()
        files.temporary(), files.data_file()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -9
    assert len(names_in(tmp_path)) == 3
    check_output(tmp_path / "other.onnx")
    assert len(names_in(tmp_path)) == 3
    check_output(tmp_path / "m.onnx")
    assert names_in(tmp_path) == []


def dead_note(folder: Path, *names: str, target: str = "m.onnx") -> Path:
    note = folder / f".{target}.00000000.run"
    note.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in names))
    return note


def test_a_note_of_someone_else_removes_nothing_of_his(tmp_path):
    for name in ("notes.txt", "m.onnx.txt", ".m.onnx.tmpl", "n.onnx.data"):
        (tmp_path / name).write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "m.onnx.data").write_bytes(b"precious")
    before = names_in(tmp_path)
    dead_note(tmp_path, "m.onnx", *before, "folder/m.onnx.data", "../m.onnx.data", "..")
    check_output(tmp_path / "m.onnx")
    assert names_in(tmp_path) == before
    assert (tmp_path / "folder" / "m.onnx.data").exists()


def test_data_that_a_copy_of_the_model_names_stays(tmp_path):
    save(model_of(1), tmp_path / "m.onnx", external=True)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    save(model_of(2), tmp_path / "m.onnx", external=True)
    assert fill_of(tmp_path / "copy.onnx") == 1
    assert fill_of(tmp_path / "m.onnx") == 2


def test_data_that_is_still_read_goes_when_the_process_ends(tmp_path):
    program = """
        from pathlib import Path
        from onnx_opt.frontends.onnx_file import load, save
        model = load("m.onnx")
        print(save(model, "m.onnx"), model.graph.initializers["w"].const_value.numpy()[0, 0])
    """
    save(model_of(1), tmp_path / "m.onnx", external=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("] 1.0\n"), done.stderr
    assert names_in(tmp_path) == ["m.onnx", "m.onnx.1.data"]
    assert fill_of(tmp_path / "m.onnx") == 1


def test_a_full_disk_leaves_the_former_pair_and_says_so(tmp_path):
    """A limit on the size of files stands for the disk: the data file reaches it first."""
    import resource

    save(model_of(1), tmp_path / "m.onnx", external=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 5, 100, 900):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OnnxOptError, match=r"File too large|No space left"):
                save(model_of(2), tmp_path / "m.onnx", external=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["é" * 120 + ".onnx", "m" * 250, "a\nb.onnx"])
def test_long_and_odd_names(tmp_path, name):
    save(model_of(1), tmp_path / name, external=False)
    assert names_in(tmp_path) == [name]


def test_scratch_folders_of_dead_runs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "onnx-opt-notes").mkdir()
    (tmp_path / "onnx-opt-notes" / "notes.txt").write_bytes(b"precious")
    away = tmp_path / "elsewhere"
    away.mkdir()
    (away / scratch.MARK).touch()
    (tmp_path / "onnx-opt-link").symlink_to(away)
    dead = tmp_path / "onnx-opt-dead"
    dead.mkdir()
    (dead / scratch.MARK).touch()
    (dead / "model.onnx").write_bytes(bytes(100))
    with scratch.scratch_folder() as live:
        scratch.remove_dead_folders()
        assert not dead.exists()
        assert live.exists()
    assert names_in(tmp_path) == ["elsewhere", "onnx-opt-link", "onnx-opt-notes"]
    assert (away / scratch.MARK).exists()


def test_without_locks_a_day_tells(tmp_path, monkeypatch):
    """A file system that refuses locks, as some of networks do."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    save(model_of(1), tmp_path / "m.onnx", external=True)
    note = dead_note(tmp_path, "m.onnx", "m.onnx.1.data")
    (tmp_path / "m.onnx.1.data").touch()
    check_output(tmp_path / "m.onnx")
    assert note.exists()
    os.utime(note, (0, 0))
    check_output(tmp_path / "m.onnx")
    assert names_in(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_file_that_resists_at_the_switch_goes_with_the_next_writer(
    tmp_path, monkeypatch
):
    save(model_of(1), tmp_path / "m.onnx", external=True)
    unlink = Path.unlink

    def resist(path, missing_ok=False):
        if path.name == "m.onnx.data":
            raise PermissionError(13, "open elsewhere", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", resist)
        save(model_of(2), tmp_path / "m.onnx", external=True)
    (note,) = tmp_path.glob(".m.onnx.*.run")
    check_output(tmp_path / "m.onnx")
    assert not note.exists()
    assert names_in(tmp_path) == ["m.onnx", "m.onnx.1.data"]


def test_a_fifo_or_a_link_as_note_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / ".m.onnx.1.run")
    (tmp_path / "precious").write_bytes(b"m.onnx\0m.onnx.data\0")
    (tmp_path / ".m.onnx.2.run").symlink_to("precious")
    (tmp_path / "m.onnx.data").touch()
    before = names_in(tmp_path)
    with OwnFiles(tmp_path / "m.onnx"):
        pass
    assert names_in(tmp_path) == before
