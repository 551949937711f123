"""Engines of jobs: the same results in the same order, wherever they run."""

import pytest
from onnx_opt import UsageError
from onnx_opt.tools._jobs.engines import HereEngine, ProcessEngine, require_sendable


def scaled(factor, item):
    return factor * item


@pytest.mark.parametrize("engine", [HereEngine, lambda: ProcessEngine(2)])
def test_results_come_in_order(engine):
    running = engine()
    assert list(running.run(scaled, 3, [2, 1, 5])) == [6, 3, 15]
    assert list(running.run(scaled, 2, [])) == []
    running.close()


def test_what_cannot_be_sent_is_told():
    require_sendable({"data": "path.npz"})
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        require_sendable(lambda: None)
