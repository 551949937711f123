"""The performance suite: what counts as worse, and the price of one call."""

import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[3] / "tools" / "dev"


@pytest.fixture
def suite(monkeypatch):
    # a developer's script, in no package
    monkeypatch.syspath_prepend(str(DEV))
    import bench_performance

    yield bench_performance
    sys.modules.pop("bench_performance", None)


STORED = {"large: prune": {"share": 2.0, "peak_mb": 100}}


@pytest.mark.parametrize(
    ("share", "peak_mb", "worse"),
    [
        (2.0, 100, []),
        (2.59, 134, []),
        (2.61, 100, ["large: prune: CPU share 2.610, 2.000 stored"]),
        (1.0, 136, ["large: prune: peak 136 MB, 100 stored"]),
    ],
)
def test_worse_is_what_exceeds_the_baseline_beyond_noise(suite, share, peak_mb, worse):
    step = suite.Step("large", "prune", [])
    found = {step: suite.Figure(1.0, 1.0, share, peak_mb)}
    assert suite.regressions(found, STORED) == worse


def test_a_step_without_a_baseline_is_not_passed_over(suite):
    found = {suite.Step("small", "new", []): suite.Figure(1.0, 1.0, 1.0, 1.0)}
    assert suite.regressions(found, STORED) == [
        "small: new: not in performance.json; run --write"
    ]


def test_peers_and_yardsticks_have_no_baseline(suite):
    peer = suite.Step("small", "onnxslim", [], peer="onnxslim")
    copy = suite.Step("yardstick", "cp", [])
    figure = suite.Figure(9.0, 9.0, 9.0, 9.0)
    assert suite.regressions({peer: figure, copy: figure}, STORED) == []


def test_one_call_is_what_more_calls_add(suite):
    measure = suite.Measure
    figures = {
        suite.Step("yardstick", "yardstick", []): [measure(2.0, 2.0, 30.0)],
        suite.Step("small", "10 calls", []): [measure(1.5, 1.0, 80.0)],
        suite.Step("small", "50 calls", []): [
            measure(9.0, 9.0, 90.0),
            measure(5.5, 3.0, 95.0),
        ],
    }
    found = {step.name: figure for step, figure in suite.summaries(figures).items()}
    assert found["simplify, one more call"] == suite.Figure(0.1, 0.05, 0.025, 95.0)


def test_a_process_that_takes_too_long_or_fails_has_a_reason(suite):
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert suite.measured(sleeps, 0.3) == "stopped after 0.3 s"
    fails = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    assert suite.measured(fails, 60) == "no such thing"
