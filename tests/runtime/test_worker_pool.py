"""Workers that stay warm between runs: reused, cleared, renewed, and ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx.parser
import onnx_opt
import pytest
from onnx_opt.runtime import worker_pool
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker_pool import WorkerPool

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
sum (float[2] x) => (float[2] y)
{
    i = Identity (x)
    y = Add (i, x)
}
"""


@pytest.fixture
def pool():
    pool = WorkerPool()
    yield pool
    pool.close()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "sum.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), file)
    return file


def borrowed_child(pool):
    with pool.borrowed() as worker:
        worker.start()
        return worker._process


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_next_run_has_the_same_child(pool):
    first = borrowed_child(pool)
    assert borrowed_child(pool) is first


def test_nothing_is_started_for_a_run_that_needs_no_model(pool):
    with pool.borrowed() as worker:
        assert not worker.alive
    assert not worker.alive


def test_a_prestarted_child_serves_the_next_run(pool):
    pool.prestart()
    with pool.borrowed() as worker:
        assert worker.generation == 1
        assert worker.alive


def test_sessions_of_a_run_are_gone_in_the_next(pool, path):
    with pool.borrowed() as worker:
        handle = open_session(worker, path).handle()
    with pool.borrowed() as worker, pytest.raises(onnx_opt.OnnxOptError):
        worker.call("run", handle, {})


def test_runs_at_the_same_time_have_workers_of_their_own(pool):
    with pool.borrowed() as first, pool.borrowed() as second:
        assert first is not second


def test_a_child_that_died_is_replaced(pool):
    first = borrowed_child(pool)
    first.kill()
    first.wait()
    second = borrowed_child(pool)
    assert second is not first
    assert second.poll() is None


def test_a_child_whose_gpu_lifted_its_limits_is_not_used_again(pool, monkeypatch):
    with pool.borrowed() as worker:
        worker.start()
        child = worker._process
        monkeypatch.setattr(worker, "call", lambda function: False)
    assert child.poll() is not None


def test_it_ends_after_a_while_without_a_run():
    pool = WorkerPool(idle_seconds=0.2)
    child = borrowed_child(pool)
    assert child.wait(timeout=20) == -signal.SIGKILL


def test_a_run_in_time_keeps_it():
    pool = WorkerPool(idle_seconds=0.6)
    with pool.borrowed() as worker:
        worker.start()
        child = worker._process
    with pool.borrowed() as worker:
        # longer than it may be idle: it is not
        time.sleep(0.9)
        assert worker._process is child
        assert worker.alive
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# Python warns of every fork with threads; that it works all the same is what is tested
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_own(path):
    onnx_opt.optimize(path, "simplify", bench=False)
    mine = worker_pool.pool()._idle[0]._process.pid
    pid = os.fork()
    if pid == 0:
        # nothing may be raised into the test runner's copy
        code = 1
        try:
            onnx_opt.optimize(path, "simplify", bench=False)
            own = worker_pool.pool()._idle[0]._process.pid
            code = 0 if own != mine else 2
            worker_pool.pool().close()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert is_running(mine)
    onnx_opt.optimize(path, "simplify", bench=False)
    assert worker_pool.pool()._idle[0]._process.pid == mine


def test_threads_may_optimize_at_the_same_time(path):
    results = []

    def run():
        results.append(onnx_opt.optimize(path, "simplify", bench=False).output.nodes)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1, 1, 1]


def test_it_ends_with_the_process(path):
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), os.environ.get("PYTHONPATH", "")]
    program = (
        "import conftest, onnx_opt\n"
        "from onnx_opt.runtime.worker_pool import pool\n"
        f"onnx_opt.optimize({str(path)!r}, 'simplify', bench=False)\n"
        "print(pool()._idle[0]._process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not is_running(int(done.stdout))
