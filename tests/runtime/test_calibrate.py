import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_opt import RefusedError
from onnx_opt.runtime import calibrate
from onnx_opt.runtime._statistics.thresholds import _divergences
from onnx_opt.runtime.calibrate import BINS, ClippedObserver, RangeObserver

METHODS = ("minmax", "percentile", "entropy", "mse", "auto")
VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
)


def observed(*arrays: np.ndarray) -> RangeObserver:
    observer = RangeObserver()
    for array in arrays:
        observer.update(array)
    return observer


def merged(one: RangeObserver, two: RangeObserver) -> RangeObserver:
    total = RangeObserver()
    total.merge(one)
    total.merge(two)
    return total


def state(observer: RangeObserver) -> tuple:
    return (
        observer.low,
        observer.high,
        observer.count,
        observer.exponent,
        observer.bins.tolist(),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 0)),
        ([0.0, 0.0], (0, 0)),
        ([3.0, 3.0], (0, 3)),
        ([-2.0], (-2, 0)),
    ],
)
def test_nothing_to_cut(method, values, expected):
    assert observed(np.array(values, np.float32)).range(method) == expected


@pytest.mark.parametrize("size", [5000, 300_000])
def test_bins_hold_exactly_what_lies_between_their_edges(size):
    values = (
        np.random.default_rng(1).normal(size=size).clip(-3.9, 3.9).astype(np.float32)
    )
    values[0] = 2.5
    observer = observed(values)
    expected, _ = np.histogram(values.astype(np.float64), observer.edges)
    np.testing.assert_array_equal(observer.bins, expected)
    assert observer.edges[-1] == 4.0


def test_a_range_that_grows_within_an_array_loses_no_counts():
    values = (
        np.random.default_rng(11).normal(size=4 * calibrate.BLOCK).astype(np.float32)
    )
    values *= np.repeat(np.float32([0.01, 1, 0.1, 50]), calibrate.BLOCK)
    observer = observed(values)
    expected, _ = np.histogram(values.astype(np.float64), observer.edges)
    np.testing.assert_array_equal(observer.bins, expected)
    assert observer.count == values.size


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_batches_and_merging_change_nothing(arrays, random):
    together = state(observed(np.concatenate(arrays)))
    shuffled = list(arrays)
    random.shuffle(shuffled)
    assert state(observed(*shuffled)) == together
    half = random.randrange(len(arrays) + 1)
    left, right = observed(*arrays[:half]), observed(*arrays[half:])
    assert state(merged(left, right)) == together
    assert state(merged(right, left)) == together


@given(VALUES, VALUES, VALUES)
@settings(max_examples=40, deadline=None)
def test_merging_is_associative(a, b, c):
    one, two, three = observed(a), observed(b), observed(c)
    assert state(merged(merged(one, two), three)) == state(
        merged(one, merged(two, three))
    )


@given(VALUES, st.sampled_from(METHODS))
@settings(max_examples=100, deadline=None)
def test_ranges_hold_zero_and_stay_within_what_was_seen(values, method):
    low, high = observed(values).range(method)
    assert (
        min(0.0, float(values.min()))
        <= low
        <= 0
        <= high
        <= max(0.0, float(values.max()))
    )


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_agrees_with_numpy_within_a_bin(percentile):
    """A bin further out fewer values lie beyond, a bin further in more."""
    values = np.random.default_rng(2).laplace(size=200_000).astype(np.float32)
    observer = observed(values)
    tail, one = (100 - percentile) / 200, 1 / values.size
    low, high = observer.range("percentile", percentile)
    width = 2 * 2**observer.exponent / BINS
    for side, end in ((values, low), (-values, -high)):
        assert (
            np.mean(side < end - width) - one
            <= tail
            <= np.mean(side < end + width) + one
        )


def test_entropy_cuts_an_outlier_and_spares_a_uniform():
    random = np.random.default_rng(3)
    outlier = observed(np.append(random.normal(size=100_000), 100).astype(np.float32))
    assert 3 < outlier.range("entropy")[1] < 20
    low, high = observed(random.uniform(-1, 1, 200_000).astype(np.float32)).range(
        "entropy"
    )
    assert low < -0.98
    assert high > 0.98


def divergence(counts: np.ndarray, end: int, levels: int) -> float:
    reference = counts[:end].astype(np.float64)
    quantized = np.zeros(end)
    for level in range(levels):
        part = slice(level * end // levels, (level + 1) * end // levels)
        held = counts[part] > 0
        quantized[part][held] = counts[part].sum() / max(held.sum(), 1)
    reference[-1] += counts[end:].sum()
    seen = reference > 0
    p, q = (
        reference[seen] / reference.sum(),
        np.maximum(quantized[seen] / quantized.sum(), 1e-12),
    )
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("seed", range(4))
def test_entropy_finds_the_divergence_of_its_definition(seed):
    random = np.random.default_rng(seed)
    counts = np.histogram(np.abs(random.standard_t(3 + seed, 20_000)), 600, (0, 12))[0]
    counts[random.random(600) < 0.1] = 0
    ends = np.array([255, 256, 300, 431, 599, 600])
    expected = [divergence(counts, int(end), 255) for end in ends]
    np.testing.assert_allclose(
        _divergences(counts, ends, 255), expected, rtol=1e-9, atol=1e-12
    )


def test_entropy_is_not_drawn_to_the_zeros_of_a_relu():
    normal = np.random.default_rng(4).normal(size=200_000).astype(np.float32)
    assert observed(np.maximum(normal, 0)).range("entropy")[1] > 3
    low, high = observed(np.minimum(normal, 0)).range("entropy")
    assert low < -3
    assert high == 0


def error(values: np.ndarray, low: float, high: float, clip_weight: float) -> float:
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    grid = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    weights = np.where((values < low) | (values > high), clip_weight, 1.0)
    return float(np.sum(weights * (values - grid) ** 2))


SHAPES = [
    lambda r: r.laplace(size=50_000),
    lambda r: np.maximum(r.normal(size=50_000), 0),
    lambda r: r.standard_t(3, size=50_000),
    lambda r: -np.abs(r.normal(size=50_000)),
]


@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize(("method", "clip_weight"), [("mse", 1.0), ("auto", 4.0)])
def test_least_error_is_as_good_as_trying_every_cut(make, method, clip_weight):
    values = make(np.random.default_rng(5)).astype(np.float32)
    found = error(values, *observed(values).range(method), clip_weight)
    fractions = np.linspace(0.05, 1, 60)
    lows = [0.0] if values.min() >= 0 else values.min() * fractions
    highs = [0.0] if values.max() <= 0 else values.max() * fractions
    best = min(
        error(values, low, high, clip_weight)
        for low in lows
        for high in highs
        if high > low
    )
    assert found <= 1.05 * best


def test_auto_keeps_what_is_not_worth_cutting():
    values = np.random.default_rng(8).uniform(-1, 3, 100_000).astype(np.float32)
    low, high = observed(values).range("auto")
    np.testing.assert_allclose([low, high], [-1, 3], atol=0.02)


@pytest.mark.parametrize("make", SHAPES)
def test_auto_cuts_between_mse_and_everything(make):
    values = make(np.random.default_rng(9)).astype(np.float32)
    observer = observed(values)
    widths = [
        high - low
        for low, high in (observer.range(m) for m in ("mse", "auto", "minmax"))
    ]
    assert widths[0] < widths[1] < widths[2]


def test_auto_cuts_a_lone_outlier_where_rounding_and_clipping_balance():
    values = np.append(np.random.default_rng(10).normal(size=1_000_000), 200.0).astype(
        np.float32
    )
    low, high = observed(values).range("auto")
    rounding = len(values) / (
        12 * 255**2
    )  # minimum of rounding * (high - low)^2 + 4 * (200 - high)^2
    assert high == pytest.approx((4 * 200 + rounding * low) / (rounding + 4), rel=0.05)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_takes_floats_of_every_width_and_layout(dtype):
    values = np.arange(-6, 6, dtype=dtype).reshape(3, 4).T
    observer = observed(values)
    assert (observer.low, observer.high, observer.count) == (-6, 5, 12)
    assert observer.bins.sum() == 12


def test_longer_than_a_block_counts_the_same(monkeypatch):
    values = np.random.default_rng(6).normal(size=1000).astype(np.float32)
    whole = state(observed(values))
    monkeypatch.setattr(calibrate, "BLOCK", 7)
    assert state(observed(values)) == whole


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    observer = RangeObserver("conv1_out")
    with pytest.raises(RefusedError, match="tensor 'conv1_out': is NaN or infinite"):
        observer.update(np.array([1, bad, 2], np.float32))


def test_memory_does_not_grow_with_the_samples():
    observer, batch = (
        RangeObserver(),
        np.random.default_rng(7).normal(size=100_000).astype(np.float32),
    )
    observer.update(batch)
    tracemalloc.start()
    for factor in range(1, 40):
        observer.update(batch * np.float32(factor))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000


@given(
    st.lists(VALUES, min_size=1, max_size=3),
    st.sampled_from([0.0, -0.5, -3.0, -np.inf]),
    st.sampled_from([0.0, 0.25, 6.0, np.inf]),
    st.sampled_from([1, 3000]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_clipped_is_counted_as_if_it_had_been_seen(arrays, low, high, repeats):
    arrays = [np.tile(array, repeats) for array in arrays]
    source, clipped = RangeObserver(), RangeObserver()
    for array in arrays:
        source.update(array, [ClippedObserver(clipped, low, high)])
    assert state(source) == state(observed(*arrays))
    assert state(clipped) == state(
        observed(
            *(np.clip(array, np.float32(low), np.float32(high)) for array in arrays)
        )
    )


def test_a_narrow_clip_of_wide_values_keeps_its_own_bins():
    values = np.random.default_rng(12).normal(size=50_000).astype(np.float32) * 1000
    source, relu6 = RangeObserver(), RangeObserver()
    source.update(values, [ClippedObserver(relu6, 0.0, 6.0)])
    assert (source.exponent, relu6.exponent) == (13, 3)
    assert relu6.bins[BINS // 2 + 6 * BINS // 16] == np.count_nonzero(values >= 6)


def test_zeros_do_not_coarsen_the_bins_of_small_values():
    observer = observed(np.array([0.0, 0.001, 0.002], np.float32))
    assert observer.exponent == -8
    assert np.count_nonzero(observer.bins) == 3
