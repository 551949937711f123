import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx_opt import RefusedError
from onnx_opt.runtime import worker as worker_module
from onnx_opt.runtime._worker import child as child_module
from onnx_opt.runtime._worker import ipc
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import RemoteError, Worker, WorkerDied, signal_name

FILL = """
<ir_version: 10, opset_import: ["" : 21]>
fill (int64[N] shape) => (float[M] y)
{ y = ConstantOfShape <value: tensor = float[1] {1}> (shape) }
"""


def test_messages_carry_arrays_of_every_layout():
    read, write = os.pipe()
    message = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "b": np.array(["x", "é"]),
        "c": np.zeros((0, 3), np.int8),
        "d": 7,
    }
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
        ipc.send(writer, message)
        got = ipc.receive(reader)
    assert got.keys() == message.keys()
    for key in "abc":
        np.testing.assert_array_equal(got[key], message[key])
    got["a"][0, 0] = 5  # received arrays are writable


def test_a_cut_message_is_an_end_of_file(tmp_path):
    path = tmp_path / "message"
    with path.open("wb") as file:
        ipc.send(file, np.arange(1000))
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(EOFError):
        ipc.receive(file)


def test_calls_return_and_the_child_is_another_process(worker):
    assert worker.call("peak_memory") > 10 << 20
    assert worker._process.pid != os.getpid()


def test_the_child_starts_without_onnx_ir():
    """It takes a second to import, and values that cross the pipe do not need it."""
    root = Path(child_module.__file__).parents[2]
    script = worker_module._BOOTSTRAP.partition("child.serve(")[0]
    script += "print('onnx_ir' in sys.modules)"
    command = [sys.executable, "-c", script, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_death_names_the_signal_and_the_next_call_restarts(sleepy):
    with Worker(timeout=30) as worker:
        with pytest.raises(WorkerDied, match="SIGABRT") as error:
            worker.call("abort")
        assert not worker.alive
        assert error.value.exit_code == 1
        assert worker.call("sleep", 0) is None
        assert worker.generation == 2


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_child_killed_by_the_system_is_told_apart(sleepy):
    with Worker(timeout=30) as worker:
        worker.start()
        timer = threading.Timer(0.3, lambda process: process.kill(), [worker._process])
        timer.start()
        with pytest.raises(WorkerDied, match="SIGKILL") as error:
            worker.call("sleep", 60)
        assert "memory" in error.value.fix


def test_a_call_past_its_time_is_stopped(sleepy):
    with Worker(timeout=0.6) as worker:
        worker.call("sleep", 0, timeout=30)
        start = time.monotonic()
        with pytest.raises(WorkerDied, match=r"ran past 0\.6 s"):
            worker.call("sleep", 60)
        assert time.monotonic() - start < 10
        assert worker.call("sleep", 0, timeout=30) is None


def test_a_session_is_opened_again_after_the_child_died(write, sleepy):
    with Worker(timeout=30) as worker:
        session = open_session(worker, write(FILL))
        with pytest.raises(WorkerDied):
            worker.call("abort")
        np.testing.assert_array_equal(
            session.run({"shape": np.array([3])})["y"], np.ones(3, np.float32)
        )


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits")
def test_memory_limit_is_an_error_of_its_own(write):
    with Worker(timeout=30, memory_bytes=3 << 30) as worker:
        session = open_session(worker, write(FILL))
        with pytest.raises(WorkerDied, match=r"needs more than the 3\.0 GiB allowed"):
            session.run({"shape": np.array([2 << 30])})
        assert session.run({"shape": np.array([2])})["y"].shape == (2,)


def test_errors_of_the_child_come_back_as_they_were_raised(worker):
    with pytest.raises(RefusedError, match="provider cuda"):
        worker.call(
            "open_session",
            "m.onnx",
            "cuda",
            [("NoSuchProvider", {})],
            "install it",
            0,
            True,
        )
    with pytest.raises(RemoteError) as error:
        worker.call("close_session")
    assert error.value.kind == "TypeError"


def test_keyboard_interrupt_ends_the_child(monkeypatch):
    worker = Worker(timeout=30)
    worker.start()
    process = worker._process

    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(ipc, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.call("sleep", 60)
    assert process.poll() is not None


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_the_child_ends_with_a_killed_parent(sleepy):
    root = Path(child_module.__file__).parents[2]
    script = textwrap.dedent(f"""
        import importlib.util, sys, threading, time
        spec = importlib.util.spec_from_file_location(
            "onnx_opt", {str(root / "__init__.py")!r}, submodule_search_locations=[{str(root)!r}])
        sys.modules["onnx_opt"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from onnx_opt.runtime import worker as module
        module._BOOTSTRAP = {sleepy!r}
        worker = module.Worker()
        worker.call("sleep", 0)
        print(worker._process.pid, flush=True)
        worker.call("sleep", 120)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while _runs(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_workers_are_independent(sleepy):
    with Worker(timeout=30) as one, Worker(timeout=30) as two:
        threads = [
            threading.Thread(target=w.call, args=("sleep", 0.1)) for w in (one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.close()
        assert two.call("sleep", 0) is None


@pytest.mark.parametrize(
    ("message", "short"),
    [
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from x "
            "failed:Protobuf parsing failed.",
            "Load model from x failed:Protobuf parsing failed.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while "
            "running If node. Name:'if' Status Message: "
            "Non-zero status code returned while running Pad node. Name:'pad' Status "
            "Message: too short",
            "Pad node 'pad': too short",
        ),
        ("first\nsecond", "first"),
        ("/x/onnxruntime_src/core/a.cc:1 bad", "bad"),
        ("", ""),
    ],
)
def test_messages_are_one_short_line(message, short):
    assert child_module.shortened(message) == short


def test_signal_names():
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(250) == "signal 250"
