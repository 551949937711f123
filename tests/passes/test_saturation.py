"""Pairs of weights: which they are, when they are safe, and the least error within the limit."""

import itertools

import integer_kernels
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_opt.passes._core.saturation import (
    BINS,
    FACTORS,
    LARGEST_CODE,
    NO_PAIRS,
    PAIR_LIMIT,
    add_excess,
    channel_factors,
    excess,
    keep_within,
    kernel_pairs,
    largest_sums,
    near_pairs,
    neighbours,
    offending,
)

CODES = st.integers(-LARGEST_CODE, LARGEST_CODE)


@pytest.mark.parametrize(
    ("op", "shape", "groups"),
    [
        ("Conv", (8, 1, 3, 3), 8),
        ("ConvInteger", (8, 4, 3, 3), 1),
        ("MatMul", (1, 5), 1),
        ("Conv", (4, 0, 3, 3), 1),
    ],
)
def test_weights_that_never_meet(op, shape, groups):
    assert kernel_pairs(op, shape, groups).count == 0


@pytest.mark.parametrize(
    ("op", "shape", "groups", "expected"),
    [
        ("MatMul", (5, 3), 1, [(0, 1), (2, 3)]),
        ("Gemm", (4, 3), 1, [(0, 1), (2, 3)]),
        (
            "MatMul",
            (2, 3, 7),
            1,
            [(0, 1), (3, 4)],
        ),  # the third of each batch stands alone
        ("MatMul", (2, 2, 7), 1, [(0, 1), (2, 3)]),
        (
            "Conv",
            (8, 2, 1, 2),
            1,
            [(0, 2), (1, 3)],
        ),  # channel fastest: c0k0 c1k0, c0k1 c1k1
        (
            "Conv",
            (8, 3, 2),
            1,
            [(0, 2), (4, 1), (3, 5)],
        ),  # odd: c0k0 c1k0, c2k0 c0k1, c1k1 c2k1
        (
            "Conv",
            (8, 1, 1, 3),
            4,
            [(0, 1)],
        ),  # depthwise with a multiplier pairs kernel positions
        ("Conv", (8, 1, 1, 3), 1, [(0, 1)]),
    ],
)
def test_which_weights_meet(op, shape, groups, expected):
    pairs = kernel_pairs(op, shape, groups)
    assert pairs.indices().tolist() == [list(pair) for pair in expected]
    assert pairs.count == len(expected)


@pytest.mark.parametrize(
    ("shape", "group"),
    [((6, 4, 3, 3), 1), ((6, 3, 2, 2), 2), ((4, 1, 3), 2), ((5, 7, 1, 1), 1)],
)
def test_the_order_is_that_of_the_models_of_kernels(shape, group):
    """Two implementations that know nothing of each other, the other one proved against the
    runtime.
    """
    weight = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    rows = weight.reshape(shape[0], -1)
    other = [
        integer_kernels.may_saturate(rows)
        for rows in integer_kernels.kernel_order(weight, group)
    ]
    assert offending(rows, kernel_pairs("Conv", shape, group)).sum() == np.sum(other)


@pytest.mark.parametrize(
    ("pair", "safe"),
    [
        ((64, 64), True),
        ((65, 64), False),
        ((127, 1), True),
        ((127, 2), False),
        ((-64, -64), True),
        ((-65, -64), False),
        ((127, -127), True),
        ((-128, 0), True),
        ((0, 0), True),
    ],
)
def test_the_condition(pair, safe):
    assert offending(np.array([pair], np.int8), neighbours(2)).tolist() == [[not safe]]


def test_the_condition_is_that_of_a_saturating_sum_for_the_worst_input():
    """Every pair of int8 codes against the instruction itself."""
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    highest = 255 * (np.maximum(a, 0) + np.maximum(b, 0))
    lowest = 255 * (np.minimum(a, 0) + np.minimum(b, 0))
    rows = np.stack([a.reshape(-1), b.reshape(-1)], axis=1).astype(np.int8)
    expected = (highest > 32767) | (lowest < -32768)
    assert (offending(rows, neighbours(2))[:, 0] == expected.reshape(-1)).all()


@given(st.lists(st.floats(-127, 127, width=32), min_size=2, max_size=12))
def test_cutting_takes_the_nearest_codes_that_fit(weights):
    """No two codes of the same sign within the limit are nearer, by exhaustion."""
    exact = np.array([weights])
    codes, pairs = np.rint(exact), neighbours(len(weights))
    before = codes.copy()
    keep_within(codes, exact, pairs)
    assert (largest_sums(codes, pairs) <= PAIR_LIMIT).all()
    for first, second in pairs.indices():
        x, y = np.abs(exact[0, [first, second]])
        if (
            before[0, first] * before[0, second] > 0
            and abs(before[0, first]) + abs(before[0, second]) > PAIR_LIMIT
        ):
            best = min(
                (a - x) ** 2 + (PAIR_LIMIT - a - y) ** 2
                for a in range(1, LARGEST_CODE + 1)
            )
            got = (abs(codes[0, first]) - x) ** 2 + (abs(codes[0, second]) - y) ** 2
            assert got <= best + 1e-9
        else:
            assert (codes[0, [first, second]] == before[0, [first, second]]).all()


@given(st.tuples(CODES, CODES), st.floats(0, 10), st.floats(0, 10))
def test_an_input_that_matters_more_keeps_more(pair, h, g):
    exact = np.array([pair], np.float64)
    codes = exact.copy()
    keep_within(codes, exact, neighbours(2), np.array([[h, g]]))
    cut = np.abs(exact - codes)[0]
    assert (largest_sums(codes, neighbours(2)) <= PAIR_LIMIT).all()
    if cut.any() and h > 2 * g:
        assert cut[0] <= cut[1]


@pytest.mark.parametrize(
    "weights", [[[1.0, 2.0, -3.0, 100.0]], [[127.0, -127.0, 64.0, 64.0]]]
)
def test_a_channel_without_excess_keeps_its_scale(weights):
    rows = np.array(weights)
    assert not excess(rows, neighbours(4)).any()
    assert channel_factors(excess(rows, neighbours(4)), 4.0) == [1.0]


@pytest.mark.parametrize("width", [2, 16, 128, 1024])
def test_the_factor_is_the_one_of_least_error(width):
    """The prediction against the losses by rounding and cutting with each factor, on average over
    many channels.
    """
    random = np.random.default_rng(width)
    rows = random.normal(size=(400, width))
    rows *= 127 / np.abs(rows).max(axis=1, keepdims=True)
    pairs = neighbours(width)
    lost = []
    for factor in FACTORS:
        codes = np.rint(rows / factor)
        keep_within(codes, rows / factor, pairs)
        lost.append(((rows - codes * factor) ** 2).sum(axis=1))
    factors = channel_factors(excess(rows, pairs), np.full(len(rows), float(width)))
    chosen = np.array(lost)[
        np.searchsorted(FACTORS, factors), np.arange(len(rows))
    ].sum()
    assert (
        chosen <= 1.05 * np.sum(lost, axis=1).min()
    )  # no one factor for all channels is 5 % better


@pytest.mark.parametrize("width", [2, 7, 64])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_scaled_pairs_fall_into_the_bins_of_scaled_weights(width, kind):
    """Also where a sum lies on the limit, weights cancel, and a channel has no scale."""
    random = np.random.default_rng(width)
    codes = random.integers(-127, 128, (300, width)).astype(np.float64)
    codes[::3] += random.uniform(-1e-5, 1e-5, (100, width))
    codes[1::3, :2] = 64
    factors = np.float32(10.0) ** random.integers(-2, 4, 300).astype(np.float32)
    factors[5] = 0
    weights = (codes / np.maximum(factors, 1e-2)[:, None]).astype(kind)
    pairs = neighbours(width)
    found = np.zeros((300, BINS))
    limits = PAIR_LIMIT / np.maximum(factors, np.float32(1e-30))
    add_excess(found, near_pairs(weights, limits, pairs).bins(factors))
    wide = weights.astype(np.promote_types(kind, np.float32))
    exact = wide * factors[:, None]
    assert found.tolist() == excess(exact, pairs).tolist()
    assert found.any()


def test_excess_adds_up_over_parts_of_a_row():
    rows = np.random.default_rng(0).uniform(-127, 127, (3, 64))
    whole = excess(rows, neighbours(64))
    parts = [excess(rows[:, at : at + 16], neighbours(16)) for at in range(0, 64, 16)]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-12, atol=0)


def test_no_pairs_change_nothing():
    rows = np.full((2, 4), 127.0)
    codes = rows.copy()
    keep_within(codes, rows, NO_PAIRS)
    assert (codes == rows).all()
    assert not offending(rows, NO_PAIRS).size


@pytest.mark.parametrize("pair", list(itertools.product([-127, 127], repeat=2)))
def test_the_largest_codes_are_shared_evenly(pair):
    exact = np.array([pair], np.float64)
    codes = exact.copy()
    keep_within(codes, exact, neighbours(2))
    same = pair[0] * pair[1] > 0
    assert codes.tolist() == [
        [np.sign(pair[0]) * 64, np.sign(pair[1]) * 64] if same else list(pair)
    ]
