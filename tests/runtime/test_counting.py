import threading

import pytest
from onnx_opt.runtime._worker.background import Counting


def fail():
    raise ValueError("bad")


def test_waiting_for_nothing_is_fine():
    counting, done = Counting(), []
    counting.finish()
    counting.abandon()
    counting.start(lambda: done.append(1))
    counting.finish()
    assert done == [1]


def test_a_call_goes_on_beside_the_caller_and_the_next_waits_for_it():
    counting, go, done = Counting(), threading.Event(), []
    counting.start(lambda: done.append(go.wait(10)))
    assert done == []
    go.set()
    counting.start(lambda: done.append("second"))
    assert done[0] is True
    counting.finish()
    assert done == [True, "second"]


def test_an_error_is_raised_once_by_whoever_waits():
    counting = Counting()
    counting.start(fail)
    with pytest.raises(ValueError, match="bad"):
        counting.start(lambda: None)
    counting.finish()


def test_abandoned_work_is_waited_for_but_raises_nothing():
    counting, go, done = Counting(), threading.Event(), []

    def fail_late():
        go.wait(10)
        done.append(1)
        fail()

    counting.start(fail_late)
    threading.Timer(0.05, go.set).start()
    counting.abandon()
    assert done == [1]
    counting.finish()
