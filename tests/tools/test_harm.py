"""A result that lost too much is told of, with the pass and the layers that lost it."""

import re

import onnx
import pytest
from onnx_opt import optimize
from onnx_opt.runtime.compare import Drift
from onnx_opt.tools._run.harm import Judgement, harm_of, is_kept
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


def metric(before, after):
    return {"name": "top1", "before": before, "after": after}


@pytest.mark.parametrize(
    "judgement",
    [
        Judgement(drift(12.4, 0.9), None),
        Judgement(None, None),
        Judgement(drift(3.0), metric(0.9, 0.895), weak="output 'y' keeps little"),
        # a metric that holds outweighs the drift: training may move outputs far
        Judgement(drift(3.0), metric(0.9, 0.895)),
        Judgement(drift(3.0), metric(40.0, 39.0), higher_is_better=False),
    ],
)
def test_what_holds_is_not_told(judgement):
    assert harm_of(judgement) is None


def test_a_poor_output_is_told_though_all_together_are_fine():
    assert harm_of(Judgement(drift(30.0), None, weak="output 'y' keeps little")) == (
        "output 'y' keeps little"
    )


def test_drift_tells_how_many_samples_agree():
    words = harm_of(Judgement(drift(5.0, 0.25), None))
    assert "5.0 dB of SQNR" in words
    assert "the same for 25% of samples" in words


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
    words = harm_of(Judgement(drift(30.0), metric(before, after), higher))
    assert words.startswith(f"top1 went from {before:.4g} to {after:.4g}")


@pytest.mark.parametrize(
    ("before", "after", "higher", "kept"),
    [
        (0.9, 0.45, True, True),
        (0.9, 0.44, True, False),
        (40.0, 80.0, False, True),
        (40.0, 81.0, False, False),
        (0.9, float("nan"), True, False),
    ],
)
def test_a_metric_that_keeps_half_of_its_value_is_kept(before, after, higher, kept):
    assert is_kept(Judgement(drift(-3.0), metric(before, after), higher)) == kept


def test_drift_alone_keeps_nothing():
    assert not is_kept(Judgement(drift(30.0), None))


def test_a_run_names_the_pass_and_the_layers_of_an_explicit_sparsity(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model_from(CNN), path)
    poor = optimize(path, "simplify, prune(sparsity=0.7)", bench=False)
    (words,) = [w for w in poor.warnings if w.startswith("result: ")]
    assert re.search(
        r"keep \d+\.\d dB of SQNR.*; most was lost by prune, at \w+, \w+, \w+: choose gentler "
        r"passes, .* --passes 'simplify, prune\(sparsity=0.7, exclude=\[\w+, \w+, \w+\]\)' spares",
        words,
    )
    kept = optimize(path, "prune", bench=False)
    assert not [w for w in kept.warnings if w.startswith("result: ")]
