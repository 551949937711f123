"""Smoothing on samples that it has not seen: it never takes a channel for quieter than it may
be.
"""

import functools

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt.passes._calibrated.levels import expected_levels, largest
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.quant import Quant
from onnx_opt.passes.smooth import LEAST_FACTOR, Smooth, _factors

MARGIN_DB = 1.0
"""What smoothing may lose: a few samples cannot tell how rare rare values are. Measured on 12 draws
of each: 0.05.
"""

WIDTH, HIDDEN, UNSEEN = 48, 64, 2000
LAYERS = """<ir_version: 8, opset_import: ["": 17]> net (float[n, 48] x) => (float[n, 10] y) {
  d = Mul (x, scale)
  h1 = Gemm (d, w1, b1)
  r1 = Relu (h1)
  h2 = Gemm (r1, w2, b2)
  r2 = Relu (h2)
  y = Gemm (r2, w3, b3)
}"""
NORMALIZED = """<ir_version: 8, opset_import: ["": 17]> net (float[n, 24, 48] x) => (float[n,
    24, 48] y) {
  h = LayerNormalization (x, gamma, beta)
  a = MatMul (h, w1)
  s = Sigmoid (a)
  m = Mul (a, s)
  o = MatMul (m, w2)
  y = Add (o, x)
}"""


def net(text, **arrays):
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        )
    model = ir.from_proto(proto)
    normalize(model)
    return model


def layers(random, bias, spread=0.3):
    """Three layers whose inputs' channels differ in size, and so do their weights."""

    def weight(inputs, outputs):
        return (
            random.standard_normal((inputs, outputs))
            / inputs**0.5
            * 10 ** (spread * random.standard_normal((inputs, 1)))
        )

    return net(
        LAYERS,
        scale=10 ** (0.5 * random.standard_normal(WIDTH)),
        w1=weight(WIDTH, HIDDEN),
        b1=0.3 * random.standard_normal(HIDDEN) + bias,
        w2=weight(HIDDEN, HIDDEN),
        b2=0.3 * random.standard_normal(HIDDEN) + bias / 2,
        w3=weight(HIDDEN, 10),
        b3=np.zeros(10),
    )


def normal(random, rows):
    return random.standard_normal((rows, WIDTH))


def woken(random, rows, share, size, rest):
    """A third of the channels stands still but for a share of the samples."""
    x, still = normal(random, rows), WIDTH // 3
    awake = random.random((rows, still)) < share
    x[:, :still] = np.where(awake, size * (0.5 + random.random((rows, still))), rest)
    return x


NETS = {
    "rarely active behind Relu": (functools.partial(layers, bias=-1.5), normal),
    "constant, then active": (
        functools.partial(layers, bias=0.0),
        functools.partial(woken, share=0.01, size=20, rest=-0.06),
    ),
    "silent, then active": (
        functools.partial(layers, bias=0.0),
        functools.partial(woken, share=0.05, size=10, rest=0),
    ),
    "heavy-tailed": (
        functools.partial(layers, bias=0.0),
        lambda random, rows: random.standard_t(3, (rows, WIDTH)),
    ),
    "lognormal": (
        functools.partial(layers, bias=0.0),
        lambda random, rows: np.exp(1.2 * normal(random, rows)),
    ),
}


def decibels(want, got):
    return 10 * np.log10(
        np.square(want, dtype=float).sum() / np.square(want.astype(float) - got).sum()
    )


def quantized_db(model, seen, unseen):
    """SQNR on unseen samples of `quant` calibrated on those seen, with and without smoothing."""
    (want,) = run_session(model).run(None, {"x": unseen})
    found = []
    for smooth in (True, False):
        candidate = model.clone()
        Quant(measure=False, smooth=smooth).run(
            candidate, CalibratedContext([{"x": seen}])
        )
        found.append(decibels(want, run_session(candidate).run(None, {"x": unseen})[0]))
    return found


@pytest.mark.parametrize("samples", [4, 16, 64])
@pytest.mark.parametrize("kind", NETS)
def test_quant_never_loses_by_smoothing(kind, samples):
    for seed in range(2):
        random = np.random.default_rng([seed, 1])
        made, draw = NETS[kind]
        model = made(random)
        seen, unseen = (
            draw(random, rows).astype(np.float32) for rows in (samples, UNSEEN)
        )
        smooth, plain = quantized_db(model, seen, unseen)
        assert smooth > plain - MARGIN_DB


@pytest.mark.parametrize(("samples", "gain"), [(16, 10.0), (64, 14.0)])
def test_outlier_channels_of_transformers_still_gain(samples, gain):
    random = np.random.default_rng(0)
    gamma = 1 + 0.2 * random.standard_normal(WIDTH)
    gamma[[3, 30]] *= 30
    model = net(
        NORMALIZED,
        gamma=gamma,
        beta=0.3 * random.standard_normal(WIDTH),
        w1=random.standard_normal((WIDTH, 192))
        / (WIDTH * np.abs(gamma[:, None])) ** 0.5,
        w2=random.standard_normal((192, WIDTH)) / 192**0.5,
    )
    seen, unseen = (
        random.standard_normal((rows, 24, WIDTH)).astype(np.float32)
        for rows in (samples, 100)
    )
    smooth, plain = quantized_db(model, seen, unseen)
    assert smooth > plain + gain


@pytest.mark.parametrize("samples", [4, 8, 16, 64])
def test_equal_channels_that_are_rarely_active_are_left_alone(samples):
    random = np.random.default_rng(0)
    model = net(
        """<ir_version: 8, opset_import: ["": 13]> net (float[n, 64] x) => (float[n, 10] y) {
      h = Gemm (x, w1, b1)
      r = Relu (h)
      y = Gemm (r, w2, b2)
    }""",
        w1=random.standard_normal((64, 256)) / 16,
        b1=np.full(256, -1.0),
        w2=random.standard_normal((256, 10)) / 10**0.5,
        b2=np.zeros(10),
    )
    seen = np.random.default_rng(1).standard_normal((samples, 64)).astype(np.float32)
    outcome = Smooth().run(model, CalibratedContext([{"x": seen}]))
    assert outcome.stats["smoothed"] == 0


@st.composite
def folds(draw):
    """Extremes of channels in folds, any: silent ones, constants, outliers; and the largest weight
    of each.
    """
    count, channels = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    value = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    ends = np.array(
        draw(
            st.lists(
                value, min_size=2 * count * channels, max_size=2 * count * channels
            )
        )
    )
    ends = np.sort(ends.reshape(count, 2, channels), axis=1)
    weights = draw(
        st.lists(
            st.floats(0, 1e6, width=32, allow_subnormal=False),
            min_size=channels,
            max_size=channels,
        )
    )
    return np.concatenate([np.full((count, 1, channels), 3.0), ends], axis=1), np.array(
        weights
    )


@settings(max_examples=100, deadline=None)
@given(folds(), st.floats(0, 1))
def test_the_range_stays_and_no_channel_reaches_beyond_it(case, alpha):
    seen, weights = case
    factors = _factors(seen, weights, alpha)
    highest, levels = largest(seen), expected_levels(seen)
    assert (factors <= 1).all()
    assert (factors > 0).all()
    assert (factors[levels == np.inf] == 1).all()
    assert (highest / factors).max() <= highest.max() * (1 + 1e-12)
    louder = (factors < 1) & (factors > LEAST_FACTOR)
    assert (levels[louder] / factors[louder] <= highest.max() * (1 + 1e-12)).all()
