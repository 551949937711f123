"""Samples too quiet for the grid that the loudest ones need: layers that go on reading floats."""

import numpy as np
import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes.quant import Quant
from quant_models import model_of, normal, ops, outputs, sqnr

SPECTRUM = """
<ir_version: 8, opset_import: ["" : 17]>
spectrum (float[N, 32, 40] x) => (float[N, 32, 40] y) {
    a = Abs (x)
    h = Conv <pads = [1, 1]> (a, w1)
    r = Relu (h)
    y = Conv <pads = [1, 1]> (r, w2)
}
"""

BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
branch (float[N, 32, 40] x, bool c) => (float[N, 32, 40] y) {
    y = If (c) <
        then_branch = yes () => (float[N, 32, 40] a) {
            s = Abs (x)
            h = Conv <pads = [1, 1]> (s, w1)
            r = Relu (h)
            a = Conv <pads = [1, 1]> (r, w2)
        },
        else_branch = no () => (float[N, 32, 40] b) {
            b = Neg (x)
        }
    >
}
"""

LOUDNESS = [0.001, 0.001, 0.001, 1.0]


def weights():
    return {"w1": normal(32, 32, 3), "w2": normal(32, 32, 3)}


def feeds_of(loudness, **others):
    return [{"x": normal(1, 32, 40) * np.float32(each), **others} for each in loudness]


def quantized(text, feeds, **options):
    before = model_of(text, **weights())
    after = before.clone()
    quant = Quant(measure=False, smooth=False, rounding="nearest", **options)
    outcome = quant.run(after, CalibratedContext(feeds))
    return before, after, outcome


def test_what_reads_quiet_samples_keeps_floats():
    before, after, outcome = quantized(SPECTRUM, feeds_of(LOUDNESS))
    assert outcome.stats["outliers"] == 1
    reasons = [each.reason for each in outcome.declined]
    assert any("too quiet" in reason for reason in reasons)
    # the other layer gives an output, and stays float in any case
    assert outcome.stats["weights_8_bit"] == 32 * 32 * 3
    quiet = feeds_of(LOUDNESS[:1])[0]
    ignoring = quantized(SPECTRUM, feeds_of(LOUDNESS), outliers="ignore")[1]
    kept, lost = (
        sqnr(outputs(before, quiet), outputs(each, quiet)) for each in (after, ignoring)
    )
    assert kept > lost + 6


def test_samples_that_are_alike_take_integers():
    _, after, outcome = quantized(SPECTRUM, feeds_of([1.0] * 4))
    assert "outliers" not in outcome.stats
    assert ops(after)["QuantizeLinear"] >= 2


@pytest.mark.parametrize("options", [{"outliers": "ignore"}, {"layers": ("*=int8:8",)}])
def test_a_user_may_choose_integers(options):
    _, _, outcome = quantized(SPECTRUM, feeds_of(LOUDNESS), **options)
    assert "outliers" not in outcome.stats


def test_silent_samples_lose_nothing():
    _, _, outcome = quantized(SPECTRUM, feeds_of([0.0, 0.0, 0.0, 1.0]))
    assert "outliers" not in outcome.stats


def test_a_few_silences_are_nobodys_concern():
    _, _, outcome = quantized(SPECTRUM, feeds_of([1e-5] + [1.0] * 31))
    assert "outliers" not in outcome.stats


def test_branches_of_the_same_names_are_told_apart():
    text = BRANCH.replace(
        "b = Neg (x)",
        """
            s = Tanh (x)
            h = Conv <pads = [1, 1]> (s, w1)
            r = Relu (h)
            b = Conv <pads = [1, 1]> (r, w2)
        """,
    )
    feeds = feeds_of(LOUDNESS, c=np.array(True))
    feeds += feeds_of([1.0] * 4, c=np.array(False))
    _, _, outcome = quantized(text, feeds)
    assert outcome.stats["outliers"] == 1
    quiet = [each for each in outcome.declined if "too quiet" in each.reason]
    assert len(quiet) == 1


def test_branches_are_looked_at():
    feeds = feeds_of(LOUDNESS, c=np.array(True))
    _, _, outcome = quantized(BRANCH, feeds)
    assert outcome.stats["outliers"] == 1


def test_a_branch_that_no_sample_enters_stays_as_it_is():
    feeds = feeds_of(LOUDNESS, c=np.array(False))
    _, _, outcome = quantized(BRANCH, feeds)
    assert "outliers" not in outcome.stats
