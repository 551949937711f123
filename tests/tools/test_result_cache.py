"""`--cache FOLDER` of the main job: the same question is answered once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt.tools import optimize as driver
from onnx_opt.tools.cli import main
from sample_models import MLP, model_from

SCHEMA = json.loads(
    (Path(onnx_opt.__file__).parent / "tools" / "schema" / "run-1.json").read_text()
)
PRUNE = ("-p", "prune(sparsity=0.5)", "--no-bench")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    return path


@pytest.fixture
def runs(monkeypatch):
    """Counts the runs that are made."""
    made = []
    real = driver.optimize_model

    def counted(settings):
        made.append(settings)
        return real(settings)

    monkeypatch.setattr(driver, "optimize_model", counted)
    return made


def invoke(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, done.stderr
    return done


def test_the_second_run_is_none(model, tmp_path, runs):
    cache, first, second = (tmp_path / name for name in ("c", "a.onnx", "b.onnx"))
    words = (model, "--cache", cache, *PRUNE, "--json")
    before = json.loads(invoke(*words, "-o", first).stdout)
    after = json.loads(invoke(*words, "-o", second).stdout)
    assert len(runs) == 1
    assert first.read_bytes() == second.read_bytes()
    jsonschema.validate(after, SCHEMA)
    assert "cached" not in before
    changed = {"output_path": str(second), "cached": True}
    assert after == {**before, **changed}


def test_people_are_told(model, tmp_path, runs):
    words = (model, "--cache", tmp_path / "c", *PRUNE)
    invoke(*words)
    done = invoke(*words)
    assert len(runs) == 1
    assert done.stdout == f"{tmp_path / 'mlp.opt.onnx'}\n"
    assert "the result of an earlier run, from" in done.stderr
    assert invoke(*words, "-q").stdout == done.stdout


@pytest.mark.parametrize(
    "other",
    [
        ("--no-cache",),
        ("--seed", "1"),
        ("--target", "generic"),
        ("--no-pack",),
        ("--layers",),
        ("--shape", "x=?,8"),
    ],
)
def test_another_question_is_another_run(model, tmp_path, runs, other):
    words = (model, "--cache", tmp_path / "c", *PRUNE)
    invoke(*words)
    invoke(*words, *other)
    assert len(runs) == 2


def test_what_is_read_counts(model, tmp_path, runs):
    data = tmp_path / "data.npz"
    rows = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    np.savez(data, x=rows)
    words = (model, "--cache", tmp_path / "c", "--data", data, *PRUNE)
    invoke(*words)
    shutil.copy(data, tmp_path / "moved.npz")
    invoke(*words)
    assert len(runs) == 1
    np.savez(data, x=rows + 1)
    invoke(*words)
    assert len(runs) == 2
    onnx.save(model_from(MLP.replace("16", "24")), model)
    invoke(*words)
    assert len(runs) == 3


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--dry-run",), "--dry-run: nothing is written"),
        (("--report", "page.html"), "--report: a page is made of a run itself"),
        (("--data", "feeds.py:rows"), "nothing tells whether data that code makes"),
    ],
)
def test_what_cannot_be_kept_is_said(
    model, tmp_path, monkeypatch, runs, option, reason
):
    monkeypatch.chdir(tmp_path)
    Path("feeds.py").write_text(
        "import numpy as np\n"
        "def rows():\n    yield {'x': np.ones((4, 8), np.float32)}\n"
    )
    words = (model, "--cache", tmp_path / "c", *PRUNE, *option)
    for _ in range(2):
        done = invoke(*words)
        assert f"warning: --cache: no result is kept or taken: {reason}" in done.stderr
    assert len(runs) == 2
    assert not (tmp_path / "c").exists()


def test_a_failure_is_not_kept(model, tmp_path, runs):
    words = (model, "--cache", tmp_path / "c", *PRUNE, "--min-sqnr", "90")
    for _ in range(2):
        invoke(*words, code=4)
    assert len(runs) == 2


def test_the_input_is_not_written_over_from_the_cache(model, tmp_path, runs):
    words = (model, "--cache", tmp_path / "c", *PRUNE)
    invoke(*words)
    before = model.read_bytes()
    invoke(*words, "-o", model, code=2)
    assert model.read_bytes() == before


def test_its_size_is_bounded(model, tmp_path, runs):
    rows = model_from(MLP.replace("16", "80000"))
    onnx.save(rows, model)
    assert model.stat().st_size > 2 * 10**6
    words = (model, "--cache", tmp_path / "c", "--cache-size", "1", "-p", "strip")
    for _ in range(2):
        invoke(*words, "--no-bench")
    assert len(runs) == 2


def test_two_processes_may_share_a_folder(model, tmp_path):
    code = "import conftest; from onnx_opt.tools.cli import main; main()"
    line = [sys.executable, "-c", code, str(model), "--cache", str(tmp_path / "c")]
    outs = [tmp_path / f"{number}.onnx" for number in range(2)]
    started = [
        subprocess.Popen(
            [*line, *PRUNE, "-q", "-o", str(out)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.DEVNULL,
        )
        for out in outs
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert len(list((tmp_path / "c").iterdir())) == 1
