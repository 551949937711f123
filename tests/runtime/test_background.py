import threading

import pytest
from onnx_opt.runtime._worker.background import BackgroundExecutor


def fail():
    raise ValueError("bad")


def test_waiting_for_nothing_is_fine():
    executor, done = BackgroundExecutor(), []
    executor.finish()
    executor.abandon()
    executor.start(lambda: done.append(1))
    executor.finish()
    assert done == [1]


def test_a_call_goes_on_beside_the_caller_and_the_next_waits_for_it():
    executor, go, done = BackgroundExecutor(), threading.Event(), []
    executor.start(lambda: done.append(go.wait(10)))
    assert done == []
    go.set()
    executor.start(lambda: done.append("second"))
    assert done[0] is True
    executor.finish()
    assert done == [True, "second"]


def test_an_error_is_raised_once_by_whoever_waits():
    executor = BackgroundExecutor()
    executor.start(fail)
    with pytest.raises(ValueError, match="bad"):
        executor.start(lambda: None)
    executor.finish()


def test_abandoned_work_is_waited_for_but_raises_nothing():
    executor, go, done = BackgroundExecutor(), threading.Event(), []

    def fail_late():
        go.wait(10)
        done.append(1)
        fail()

    executor.start(fail_late)
    threading.Timer(0.05, go.set).start()
    executor.abandon()
    assert done == [1]
    executor.finish()
