"""Without labels classes must stay: of outputs that choose among some, and not always the same."""

import numpy as np
import onnx
import onnx_opt
import pytest
from onnx_opt import UsageError
from onnx_opt.tools import tune as tune_module
from onnx_opt.tools._tune.goal import Goal
from sample_models import model_from

SCALED = """
<ir_version: 10, opset_import: ["" : 21]>
scaled (float[n, 3] x) => (float[n, 3] y)
<float[3] scales>
{ y = Mul (x, scales) }
"""
TARGETS = np.array([1e-3, 1, 2e4], np.float32)
CLASSES = np.ones(3, np.float32)


class Asked(Exception):
    """The goal of a search that is not made."""


@pytest.fixture(autouse=True)
def _only_asked(monkeypatch):
    def end(task, goal):
        raise Asked(goal)

    monkeypatch.setattr(tune_module, "warnings_of_precision", end)


def goal_of(tmp_path, scales, rare=0, **asked):
    """The goal of a search; `rare`: how many of 200 rows are not of class 2."""
    path = tmp_path / "scaled.onnx"
    model = model_from(SCALED)
    (initializer,) = model.graph.initializer
    initializer.CopyFrom(onnx.numpy_helper.from_array(scales, "scales"))
    onnx.save(model, path)
    x = np.random.default_rng(0).uniform(0.5, 0.6, (200, 3)).astype(np.float32)
    places = np.full(200, 2)
    places[:rare] = np.arange(rare) % 2
    x[np.arange(200), places] += 1
    with pytest.raises(Asked) as caught:
        onnx_opt.tune(path, data={"x": x}, **asked)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("scales", "rare", "goal"),
    [
        (CLASSES, 100, Goal("latency", max_drop=0.02)),
        (CLASSES, 6, Goal("latency", max_drop=0.02)),
        (CLASSES, 4, Goal("latency", min_sqnr=20.0)),
        (CLASSES, 0, Goal("latency", min_sqnr=20.0)),
        (TARGETS, 100, Goal("latency", min_sqnr=20.0)),
    ],
)
def test_an_aim_bears_no_drop_that_one_answer_for_everything_keeps(
    tmp_path, scales, rare, goal
):
    assert goal_of(tmp_path, scales, rare, aim="speed") == goal


@pytest.mark.parametrize(
    ("scales", "rare", "share"), [(TARGETS, 0, "100.0%"), (CLASSES, 20, "90.0%")]
)
def test_such_a_budget_is_refused(tmp_path, scales, rare, share):
    with pytest.raises(UsageError) as caught:
        goal_of(tmp_path, scales, rare, max_drop=0.1)
    error = caught.value
    assert error.where == "--max-drop"
    assert f"the same place in {share} of its rows" in error.problem
    assert "--min-sqnr" in error.fix


def test_a_budget_that_such_an_answer_misses_is_one(tmp_path):
    assert goal_of(tmp_path, CLASSES, rare=20, max_drop=0.05).max_drop == 0.05
