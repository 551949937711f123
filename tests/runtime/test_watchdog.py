"""Time limits: one thread for all of them."""

import threading

import pytest
from onnx_opt.runtime._worker.watchdog import Alarm, Watchdog, time_limit


def test_acts_when_the_block_takes_too_long():
    struck = threading.Event()
    with time_limit(0.05, struck.set) as alarm:
        assert struck.wait(10)
    assert alarm.expired


def test_leaves_a_block_alone_that_ends_in_time():
    struck = threading.Event()
    with time_limit(0.2, struck.set) as alarm:
        pass
    assert not struck.wait(0.4)
    assert not alarm.expired


def test_an_error_in_the_block_calls_it_off():
    struck = threading.Event()
    with pytest.raises(KeyError), time_limit(0.2, struck.set):
        raise KeyError
    assert not struck.wait(0.4)


def test_a_shorter_limit_overtakes_a_longer_one():
    struck = threading.Event()
    with time_limit(600, lambda: None) as outer:
        with time_limit(0.05, struck.set):
            assert struck.wait(10)
        assert not outer.expired


def test_a_thousand_limits_take_one_thread():
    watchdog = Watchdog()
    before = threading.active_count()
    for _ in range(1000):
        alarm = Alarm(1e18, lambda: None)
        watchdog.add(alarm)
        watchdog.remove(alarm)
    assert threading.active_count() - before == 1
