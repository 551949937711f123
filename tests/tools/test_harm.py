"""A result that lost too much is told of, with the pass that lost it."""

import onnx
import pytest
from onnx_opt import optimize
from onnx_opt.runtime.compare import Drift
from onnx_opt.tools._run.harm import Judgement, harm_of
from onnx_opt.tools._run.result import Step
from sample_models import CNN, model_from


def drift(sqnr_db, same=None):
    return Drift(
        sqnr_db=sqnr_db,
        cosine=0.9,
        max_abs=1.0,
        max_rel=1.0,
        top1_agreement=same,
        nonfinite=0,
    )


def step(name, sqnr_db):
    return Step(name, name, drift={"sqnr_db": sqnr_db, "cosine": 0.9, "max_abs": 1.0})


def metric(before, after):
    return {"name": "top1", "before": before, "after": after}


STEPS = [step("simplify", 120.0), step("prune", 6.0), step("quant", 5.0)]


@pytest.mark.parametrize(
    "judgement",
    [
        Judgement(drift(12.4, 0.9), None),
        Judgement(None, None),
        # a metric that holds outweighs the drift: training may move outputs far
        Judgement(drift(3.0), metric(0.9, 0.895)),
        Judgement(drift(3.0), metric(40.0, 39.0), higher_is_better=False),
    ],
)
def test_what_holds_is_not_told(judgement):
    assert harm_of(judgement, STEPS) is None


def test_drift_names_the_pass_that_lost_most_and_how_many_samples_agree():
    words = harm_of(Judgement(drift(5.0, 0.25), None), STEPS)
    assert "5.0 dB of SQNR" in words
    assert "the same for 25% of samples" in words
    assert "lost by prune" in words


@pytest.mark.parametrize(
    ("before", "after", "higher"),
    [
        (0.9, 0.88, True),
        (40.0, 41.0, False),
        (0.9, float("nan"), True),
        (40.0, float("inf"), False),
    ],
)
def test_a_metric_that_fell_is_told_whatever_the_drift(before, after, higher):
    words = harm_of(Judgement(drift(30.0), metric(before, after), higher), STEPS)
    assert words.startswith(f"top1 went from {before:.4g} to {after:.4g}")


def test_a_run_warns_of_an_explicit_sparsity_that_breaks_the_model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model_from(CNN), path)
    broken = optimize(path, "prune(sparsity=0.95)", bench=False)
    (words,) = [w for w in broken.warnings if w.startswith("result: ")]
    assert "dB of SQNR" in words
    assert "prune" in words
    kept = optimize(path, "prune", bench=False)
    assert not [w for w in kept.warnings if w.startswith("result: ")]
