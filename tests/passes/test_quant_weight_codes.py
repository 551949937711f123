"""Codes and scales below eight bits: exact definitions, least squares against brute force, the
limits of each form.
"""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx_opt.passes._core.channel_layout import Layout
from onnx_opt.passes._quant.weight_codes import integer_codes, sign_codes, ternary_codes

RNG = np.random.default_rng(11)


def layout_of(array, axis=0):
    return Layout.of(array.shape, axis)


def restored(coded, shape, axis=0):
    """Scale * code, as float64."""
    scales = coded.scales.astype(np.float64).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    return coded.codes(coded.scales).numpy() * scales


@pytest.mark.parametrize(
    ("bits", "codes"),
    [
        (8, [-127, 64, 32, 0]),
        (7, [-63, 32, 16, 0]),
        (5, [-15, 8, 4, 0]),
        (4, [-7, 4, 2, 0]),
        (3, [-3, 2, 1, 0]),
    ],
)
def test_integers_reach_their_largest_code(bits, codes):
    weight = np.array([[-1.0, 0.505, 0.25, 0.0]], np.float32)
    coded = integer_codes(ir.Tensor(weight), layout_of(weight), bits, "mse")
    np.testing.assert_allclose(coded.scales, [1 / (2 ** (bits - 1) - 1)], rtol=1e-6)
    assert coded.codes(coded.scales).numpy().tolist() == [codes]


def test_two_bits_are_ternary():
    weight = RNG.normal(size=(3, 50)).astype(np.float32)
    one = integer_codes(ir.Tensor(weight), layout_of(weight), 2, "mse")
    other = ternary_codes(ir.Tensor(weight), layout_of(weight), "mse")
    np.testing.assert_array_equal(
        restored(one, weight.shape), restored(other, weight.shape)
    )


def test_ternary_mean_is_the_threshold_of_the_paper():
    weight = np.array(
        [[0.1, -0.2, 0.3, -1.0, 0.4]], np.float32
    )  # mean |w| = 0.4, threshold 0.28
    coded = ternary_codes(ir.Tensor(weight), layout_of(weight), "mean")
    assert coded.codes(coded.scales).numpy().tolist() == [[0, 0, 1, -1, 1]]
    np.testing.assert_allclose(coded.scales, [1.7 / 3], rtol=1e-6)


def brute_ternary_error(channel):
    """The least squared error of alpha * {-1, 0, 1}, by sorting: the k largest count, for the best
    k.
    """
    magnitudes = np.sort(np.abs(channel.astype(np.float64)))[::-1]
    sums = np.cumsum(magnitudes)
    return (magnitudes**2).sum() - (sums**2 / np.arange(1, magnitudes.size + 1)).max()


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: RNG.normal(size=(8, 300)), 1.001),
        (lambda: RNG.laplace(size=(8, 300)), 1.001),
        (lambda: RNG.uniform(-1, 1, size=(8, 300)), 1.001),
        (lambda: RNG.normal(size=(8, 300)) * (RNG.random((8, 300)) < 0.1), 1.05),
        (lambda: RNG.normal(size=(8, 300)) ** 5, 1.05),
    ],
    ids=["normal", "laplace", "uniform", "pruned", "heavy tails"],
)
def test_ternary_least_squares_is_what_sorting_finds(make, share):
    """Nearly: the search goes by a grid of scales; few large weights make steps of the error."""
    weight = make().astype(np.float32)
    got = restored(
        ternary_codes(ir.Tensor(weight), layout_of(weight), "mse"), weight.shape
    )
    error = ((weight - got) ** 2).sum(axis=1)
    best = np.array([brute_ternary_error(channel) for channel in weight])
    assert (error <= best * share + 1e-9).all()


def test_ternary_weights_come_back_exactly():
    weight = (
        RNG.integers(-1, 2, size=(4, 60)) * np.array([[0.5], [2.0], [1e-3], [7.0]])
    ).astype(np.float32)
    for fit in ("mse", "mean"):
        np.testing.assert_allclose(
            restored(
                ternary_codes(ir.Tensor(weight), layout_of(weight), fit), weight.shape
            ),
            weight,
            rtol=1e-6,
        )


def test_one_bit_scale_is_the_mean_and_already_the_least_squares():
    weight = RNG.normal(size=(2, 40)).astype(np.float32)
    for fit in ("mse", "mean"):
        coded = sign_codes(ir.Tensor(weight), layout_of(weight), 1, fit)
        np.testing.assert_allclose(coded.scales, np.abs(weight).mean(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(
            coded.codes(coded.scales).numpy(), np.where(weight >= 0, 1, -1)
        )
    error = lambda alpha: ((weight[0] - alpha * np.sign(weight[0])) ** 2).sum()  # noqa: E731
    alpha = np.abs(weight[0]).mean()
    assert error(alpha) < min(error(alpha * 0.99), error(alpha * 1.01))


def free_planes_error(weight, planes):
    """Residual binarization with scales of its own for every plane: greedy signs, least-squares
    refit (ABC-Net).
    """
    error = 0.0
    for channel in weight.astype(np.float64):
        residual, signs = channel.copy(), []
        for _ in range(planes):
            signs.append(np.where(residual >= 0, 1.0, -1.0))
            residual -= np.abs(residual).mean() * signs[-1]
        basis = np.stack(signs, axis=1)
        alphas = np.linalg.lstsq(basis, channel, rcond=None)[0]
        error += ((channel - basis @ alphas) ** 2).sum()
    return error


@pytest.mark.parametrize("planes", [2, 3])
@pytest.mark.parametrize("draw", [RNG.normal, RNG.laplace], ids=["normal", "laplace"])
def test_planes_tied_to_powers_of_two_lose_little_against_free_ones(planes, draw):
    weight = draw(size=(4, 2000)).astype(np.float32)
    tied = sign_codes(ir.Tensor(weight), layout_of(weight), planes, "mse")
    codes = tied.codes(tied.scales).numpy()
    assert set(np.unique(codes)) <= set(range(1 - 2**planes, 2**planes, 2))
    error = ((weight - restored(tied, weight.shape)) ** 2).sum()
    assert error <= 1.1 * free_planes_error(weight, planes)
    assert (
        error
        < (
            (
                weight
                - restored(
                    sign_codes(ir.Tensor(weight), layout_of(weight), planes, "mean"),
                    weight.shape,
                )
            )
            ** 2
        ).sum()
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "encode",
    [
        lambda t, layout: integer_codes(t, layout, 4, "mse"),
        lambda t, layout: ternary_codes(t, layout, "mse"),
        lambda t, layout: ternary_codes(t, layout, "mean"),
        lambda t, layout: sign_codes(t, layout, 3, "mse"),
    ],
    ids=["int4", "ternary", "twn", "planes"],
)
def test_the_channel_axis_may_be_any(encode, axis):
    weight = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    got = restored(
        encode(ir.Tensor(weight), layout_of(weight, axis)), weight.shape, axis
    )
    first = np.ascontiguousarray(np.moveaxis(weight, axis, 0))
    expected = restored(encode(ir.Tensor(first), layout_of(first)), first.shape)
    np.testing.assert_allclose(np.moveaxis(got, axis, 0), expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        (2, 7),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=True),
    )
)
def test_codes_stay_in_range_and_scales_finite(weight):
    tensor, layout = ir.Tensor(weight), layout_of(weight)
    for coded, allowed in (
        (integer_codes(tensor, layout, 4, "mse"), set(range(-7, 8))),
        (ternary_codes(tensor, layout, "mse"), {-1, 0, 1}),
        (ternary_codes(tensor, layout, "mean"), {-1, 0, 1}),
        (sign_codes(tensor, layout, 1, "mse"), {-1, 1}),
        (sign_codes(tensor, layout, 2, "mse"), {-3, -1, 1, 3}),
    ):
        assert np.isfinite(coded.scales).all()
        assert (coded.scales >= 0).all()
        usable = np.maximum(coded.scales, np.float32(1e-30))
        assert set(np.unique(coded.codes(usable).numpy())) <= allowed
