"""`batch`: each model by itself, one summary, and nothing done twice."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError, UsageError
from onnx_opt.tools._batch import job
from onnx_opt.tools._batch.models import models_in
from onnx_opt.tools._cache.recipe import Recipe
from onnx_opt.tools._cache.results import ResultCache
from onnx_opt.tools._cache.store import ACCOUNT, Store
from onnx_opt.tools._run.provenance import sha256_of
from onnx_opt.tools.cli import main
from sample_models import CNN, MLP, model_from

CRASH = """
import os
import onnx_ir as ir

class Crash(ir.passes.InPlacePass):
    def call(self, model):
        if model.graph.name == "cnn":
            os.abort()
        return ir.passes.PassResult(model, modified=False)
"""


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two models, of which one lies deeper, and a file that is none."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "deep").mkdir()
    onnx.save(model_from(MLP), folder / "mlp.onnx")
    onnx.save(model_from(CNN), folder / "deep" / "cnn.onnx")
    (folder / "broken.onnx").write_bytes(b"\x08\x0a\x3a\x7f")
    (folder / ".hidden.onnx").write_bytes(b"")
    (folder / "mlp.opt.onnx").write_bytes(b"a result of another run")
    return folder


@pytest.fixture(scope="module")
def runs(zoo, tmp_path_factory):
    """The batch twice with one cache, into two folders: (exit code, facts, seconds) of each."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["-p", "prune(sparsity=0.5)", "-j", "2", "--no-bench", "--json"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_OPT_CACHE", str(folder / "cache"))
        for name in ("first", "second"):
            start = time.monotonic()
            done = invoke("batch", zoo, "-o", folder / name, *words)
            seconds = time.monotonic() - start
            found.append((done.exit_code, json.loads(done.stdout), seconds))
    return folder, found


def test_a_model_that_fails_hinders_no_other(zoo, runs):
    folder, ((code, facts, _), _) = runs
    assert code == 1
    assert [row["model"] for row in facts["models"]] == [
        "broken.onnx",
        "deep/cnn.onnx",
        "mlp.onnx",
    ]
    assert [row["status"] for row in facts["models"]] == ["failed", "done", "done"]
    assert facts["failed"] == ["broken.onnx"]
    assert facts["models"][0]["error"]["exit_code"] == 3
    assert facts["error"]["where"] == str(zoo)
    assert facts["error"]["problem"] == "1 of 3 models failed: broken.onnx"
    for row in facts["models"][1:]:
        assert row["output"]["nonzero"] < row["input"]["nonzero"]
        assert Path(row["output_path"]).is_file()
    written = [path.name for path in (folder / "first").rglob("*") if path.is_file()]
    assert sorted(written) == ["cnn.opt.onnx", "mlp.opt.onnx"]


def test_what_was_done_is_taken_from_the_cache(runs):
    folder, ((_, first, _), (code, second, seconds)) = runs
    assert code == 1
    statuses = [row["status"] for row in second["models"]]
    assert statuses == ["failed", "cached", "cached"]
    for name in ("mlp.opt.onnx", "deep/cnn.opt.onnx"):
        contents = [(folder / run / name).read_bytes() for run in ("first", "second")]
        assert contents[0] == contents[1]
    # all but the place of the result is as it was
    for before, after in zip(first["models"][1:], second["models"][1:], strict=True):
        assert after["output"] == before["output"]
        assert Path(after["output_path"]).parents[-1] == Path("/")
        assert after["output_path"] != before["output_path"]
        # no process: only files are read and copied
        assert after["seconds"] < before["seconds"] / 10
    assert seconds > 0


def test_the_table_names_what_failed(zoo, tmp_path):
    done = invoke("batch", zoo, "-o", tmp_path, "-p", "prune:abacus=1")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: prune.abacus: no such option")
    # one error, before any model
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_is_one_model_that_failed(zoo, tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    models = tmp_path / "models"
    models.mkdir()
    for name in ("mlp.onnx", "deep/cnn.onnx"):
        shutil.copy(zoo / name, models)
    facts = onnx_opt.batch(models, "crashing.Crash", bench=False, jobs=2)
    assert facts.failed == ["cnn.onnx"]
    first, second = facts.models
    assert first["error"]["problem"].startswith("its process was killed by SIGABRT")
    assert second["status"] == "done"
    assert facts.warnings == [
        "no result is kept or taken from the cache: nothing tells whether a pass of another "
        "package has changed"
    ]
    assert "cnn.onnx" in str(facts)


def test_a_model_that_takes_too_long_fails(zoo, tmp_path):
    shutil.copy(zoo / "mlp.onnx", tmp_path)
    facts = onnx_opt.batch(tmp_path, "simplify", timeout=0.1)
    assert facts.models[0]["error"]["problem"] == "took more than 0.1 s"
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.onnx"]


def test_a_batch_that_is_stopped_ends_its_processes():
    processes = job.Processes(None)
    threading.Timer(0.5, processes.stop).start()
    start = time.monotonic()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert processes.run(sleep).returncode != 0
    assert time.monotonic() - start < 30
    with pytest.raises(job.Stopped):
        processes.run(sleep)


# which models


def test_two_results_of_one_name_are_refused(tmp_path):
    for name in ("a.onnx", "a.ONNX"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="its result would have the name of that of"):
        models_in(tmp_path, None)


def test_a_folder_without_models_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RefusedError):
            models_in(folder, None)


# the key


def test_the_key_is_that_of_everything_a_result_depends_on(zoo, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((2, 8)))
    text = tmp_path / "recipe.txt"
    text.write_text("prune")

    def recipe(**changes):
        return Recipe(**{"passes": (f"@{text}",), "data": str(data), **changes})

    def key(**changes):
        return recipe(**changes).key(zoo / "mlp.onnx")

    first = key()
    assert key() == first
    others = {
        recipe().key(zoo / "deep" / "cnn.onnx"),
        key(seed=1),
        key(target="cpu-vnni"),
        key(passes=("prune",)),
        key(min_sqnr=10.0),
        key(bench=False),
        key(data=None),
    }
    assert len(others) == 7
    assert first not in others
    # another name for the same data is the same data
    shutil.copy(data, tmp_path / "copy")
    (tmp_path / "moved").mkdir()
    shutil.copy(data, tmp_path / "moved")
    assert key(data=str(tmp_path / "moved" / "data.npz")) == first
    text.write_text("prune(sparsity=0.9)")
    assert key() != first
    text.write_text("prune")
    np.savez(data, x=np.ones((2, 8)))
    assert key() != first


def test_what_only_code_can_tell_is_not_kept(tmp_path):
    assert Recipe(data="load.py:batches").why_not_kept is not None
    assert Recipe(passes=("prune, my.own.Pass",)).why_not_kept is not None
    assert Recipe(passes=("prune(sparsity=0.5), quant",)).why_not_kept is None
    with pytest.raises(UsageError, match="a dict cannot go to the processes"):
        Recipe(data={"x": 1})


# the store


def kept(store, key, size, model, weights=None):
    path = store.folder.parent / f"{key}.onnx"
    path.write_bytes(b"x" * size)
    store.keep(key, [path], weights or {}, {"key": key})
    return store.find(key, model)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "m.onnx"
    path.touch()
    return path


def test_what_was_used_last_is_kept(tmp_path, model):
    store = Store(tmp_path / "store", most=1000)
    for number, key in enumerate(("a", "b")):
        assert kept(store, key, 300, model).account == {"key": key}
        os.utime(store.folder / key, (number, number))
    # found: used
    assert store.find("a", model) is not None
    # with their accounts two fit, not three
    store = Store(tmp_path / "store", most=900)
    assert kept(store, "c", 300, model) is not None
    assert store.find("b", model) is None
    assert store.find("a", model) is not None
    assert kept(store, "huge", 901, model) is None
    assert sorted(path.name for path in store.folder.iterdir()) == ["a", "c"]


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"files": 1}'])
def test_a_damaged_entry_is_none(tmp_path, model, content):
    store = Store(tmp_path / "store", most=10_000)
    kept(store, "a", 10, model)
    account = store.folder / "a" / ACCOUNT
    if content is None:
        account.unlink()
    else:
        account.write_bytes(content)
    assert store.find("a", model) is None


def test_a_result_that_was_changed_is_not_taken(tmp_path, model):
    store = Store(tmp_path / "store", most=10_000)
    kept(store, "a", 10, model)
    (store.folder / "a" / "a.onnx").write_bytes(b"y" * 10)
    assert store.find("a", model) is None
    # and it gives way to a new one
    assert kept(store, "a", 10, model) is not None


def test_weights_beside_the_model_count(tmp_path, model):
    store = Store(tmp_path / "store", most=10_000)
    weights = model.parent / "w.bin"
    weights.write_bytes(b"1")
    digest = {"w.bin": sha256_of(weights)}
    assert kept(store, "a", 10, model, digest) is not None
    weights.write_bytes(b"2")
    assert store.find("a", model) is None
    weights.unlink()
    assert store.find("a", model) is None


def test_a_store_that_cannot_be_written_fails_nothing(tmp_path, model):
    (tmp_path / "store").write_text("a file")
    store = Store(tmp_path / "store", most=1000)
    assert kept(store, "a", 10, model) is None


def use(folder, model, seed):
    """Keep and find results under a few keys; returns how many were found, all of them whole."""
    random = np.random.default_rng(seed)
    store = Store(Path(folder), most=2500)
    own = Path(folder).parent / f"result{seed}.onnx"
    found = 0
    for _ in range(150):
        key = f"key{random.integers(6)}"
        entry = store.find(key, Path(model))
        if entry is None:
            own.write_bytes(key.encode() * 100)
            store.keep(key, [own], {}, {"key": key})
        else:
            assert entry.account == {"key": key}
            found += 1
    return found


def test_two_processes_may_use_one_store(tmp_path, model):
    context = multiprocessing.get_context("spawn")
    folder = str(tmp_path / "store")
    with context.Pool(2) as pool:
        counts = pool.starmap(use, [(folder, str(model), seed) for seed in (1, 2)])
    assert min(counts) > 0
    left = [path.name for path in (tmp_path / "store").iterdir()]
    assert not [name for name in left if name.startswith("tmp-")]
    assert (
        sum(
            path.stat().st_size
            for path in (tmp_path / "store").rglob("*")
            if path.is_file()
        )
        <= 2500 + 1000
    )


def test_a_result_with_weights_beside_it_comes_back_whole(tmp_path, monkeypatch):
    """As of a model beyond 1.5 GiB: written by the writer of models, under names of its own."""
    wide = model_from(MLP.replace("16", "64"))
    (tmp_path / "made").mkdir()
    out = tmp_path / "made" / "m.opt.onnx"
    onnx.save(
        wide,
        out,
        save_as_external_data=True,
        location="m.opt.onnx.data",
        size_threshold=0,
    )
    path = tmp_path / "m.onnx"
    onnx.save(model_from(MLP), path)
    store = Store(tmp_path / "store", most=10**6)
    recipe = Recipe(passes=("simplify",))
    cache = ResultCache(store, recipe)
    account = {"output_path": str(out)}
    (tmp_path / "back").mkdir()
    first, second = [
        job.BatchModel("m.onnx", path, folder / "m.opt.onnx")
        for folder in (tmp_path / "made", tmp_path / "back")
    ]
    monkeypatch.setattr(job, "_account", lambda *_: account)
    assert job.run_job(first, recipe, cache, job.Processes(None)).status == "done"
    outcome = job.from_cache(second, cache)
    assert outcome.status == "cached"
    assert outcome.account["output_path"] == str(second.out)
    names = sorted(each.name for each in second.out.parent.iterdir())
    assert names == ["m.opt.onnx", "m.opt.onnx.data"]
    for one, other in zip(
        onnx.load(out).graph.initializer,
        onnx.load(second.out).graph.initializer,
        strict=True,
    ):
        assert onnx.numpy_helper.to_array(one).tolist() == (
            onnx.numpy_helper.to_array(other).tolist()
        )


def test_ctrl_c_ends_the_processes_of_a_batch(zoo, tmp_path):
    """As a terminal does not: the signal goes to the parent alone."""
    shutil.copy(zoo / "mlp.onnx", tmp_path)
    (tmp_path / "slow.py").write_text(
        "import time, pathlib\n"
        "def batches():\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import conftest;"
        "from onnx_opt.tools.cli import main; main()"
    )
    words = ["batch", ".", "-p", "quant", "--data", "slow.py:batches"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, Path(__file__).parents[1], *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: stopped by the user" in said
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"mlp.onnx", "slow.py", "started"}


@pytest.mark.slow
# ray's own: files and sockets that it leaves to the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_runs_a_batch(zoo, tmp_path):
    pytest.importorskip("ray")
    done = onnx_opt.batch(
        zoo, "prune(sparsity=0.5)", out=tmp_path / "there", ray="local", bench=False
    )
    assert [row["status"] for row in done.models] == ["failed", "done", "done"]
    again = onnx_opt.batch(
        zoo, "prune(sparsity=0.5)", out=tmp_path / "here", bench=False
    )
    # a worker keeps what it made where the next batch finds it
    assert [row["status"] for row in again.models] == ["failed", "cached", "cached"]
    for name in ("mlp.opt.onnx", "deep/cnn.opt.onnx"):
        one, other = (tmp_path / side / name for side in ("there", "here"))
        assert one.read_bytes() == other.read_bytes()
