"""Drift of one model from another that shares nothing with it but inputs and outputs."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from exactness import HEADER
from onnx_opt.passes._core.output_drift import drift_between, float_outputs
from sample_models import model_from

WHOLE = """
whole (float[N, 3] x) => (float[N, 2] y, float[N, 3] z)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}>
{ h = MatMul (x, w)  y = Relu (h)  z = Neg (x) }
"""
OTHER = """
other (float[N, 3] x) => (float[N, 2] y, float[N, 3] z)
<float[3, 2] v = {1, 2, 3, 4, 5, 0}, float two = {0.5}>
{ y = MatMul (x, v)  z = Mul (x, two) }
"""
COUNTS = """
counts (float[N, 3] x) => (int64[N] y)
{ y = ArgMax <axis = 1, keepdims = 0> (x) }
"""
FEEDS = [
    {"x": np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)}
    for seed in range(3)
]


def model_of(text):
    return ir.from_proto(model_from(HEADER + text))


def drift(whole, other):
    return drift_between(model_of(whole), model_of(other), CalibratedContext(FEEDS), 15)


def test_it_is_the_mean_share_of_the_outputs():
    shares = []
    for index in range(2):
        wanted, got = (
            np.concatenate(
                [run_session(model_of(text)).run(None, each)[index] for each in FEEDS]
            )
            for text in (WHOLE, OTHER)
        )
        shares.append(np.square(wanted - got).sum() / np.square(wanted).sum())
    assert drift(WHOLE, OTHER) == pytest.approx(np.mean(shares), rel=1e-5)
    assert shares[1] == pytest.approx(2.25)


def test_a_model_does_not_drift_from_itself():
    assert drift(WHOLE, WHOLE) == 0


def test_of_outputs_that_are_no_floats_nothing_is_known():
    assert math.isnan(drift(COUNTS, COUNTS))


PRICE = """
price (float[N, 3] x) => (float[N, 1] y)
<float[3, 1] w = {1, 2, 3}, float mean = {100}>
{ h = MatMul (x, w)  y = Add (h, mean) }
"""
FORGOTTEN = """
forgotten (float[N, 3] x) => (float[N, 1] y)
<float[3, 1] w = {0, 0, 3}, float mean = {100}>
{ h = MatMul (x, w)  y = Add (h, mean) }
"""


@pytest.mark.parametrize("opset", [17, 21])
def test_of_variation_a_mean_hides_nothing(opset):
    models = []
    for text in (PRICE, FORGOTTEN):
        model = model_from(HEADER + text)
        model.opset_import[0].version = opset
        models.append(ir.from_proto(model))
    data = CalibratedContext(FEEDS)
    assert drift_between(*models, data, 15) < 1e-2
    lost = drift_between(*models, data, 15, of_variation=True)
    x = np.concatenate([each["x"] for each in FEEDS]).astype(np.float64)
    wanted = x @ [1, 2, 3]
    gone = x @ [1, 2, 0]
    assert lost == pytest.approx(np.square(gone).mean() / wanted.var(), rel=1e-3)


def test_of_variation_probabilities_count_whole():
    text = """
    p (float[N, 3] x) => (float[N, 3] y)
    <float[3] b = {8, 0, 0}>
    { h = Add (x, b)  y = Softmax <axis = -1> (h) }
    """
    other = text.replace("{8, 0, 0}", "{7, 0, 0}")
    models = [model_of(each) for each in (text, other)]
    data = CalibratedContext(FEEDS)
    whole = drift_between(*models, data, 15)
    assert drift_between(*models, data, 15, of_variation=True) == whole


SELECTING = """
selecting (float[N, 3] x) => (float[N, 3] scores, float[K] picked, float[N, 1] padded)
<float[3] b = {0, 0, 0}, float zero = {0}, int64[1] last = {1}>
{
    scores = Add (x, b)
    is_clear = Greater (scores, zero)
    places = NonZero (is_clear)
    selected = Transpose (places)
    picked = GatherND (scores, selected)
    total = ReduceSum (picked)
    first = ReduceSum <keepdims = 1> (scores, last)
    padded = Add (first, total)
}
"""


def test_outputs_of_other_numbers_of_rows_are_left_out():
    whole = model_of(SELECTING)
    other = model_of(SELECTING.replace("b = {0, 0, 0}", "b = {-1, 0, 0}"))
    # in one graph they cannot be subtracted; the others have the rows of the input
    assert list(float_outputs(whole)) == ["scores", "padded"]
    assert 0 < drift_between(whole, other, CalibratedContext(FEEDS), 15) < 1e3
