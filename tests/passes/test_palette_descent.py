"""Palettes and codes in turns: the outputs' error falls, and what was promised of codes holds."""

import dataclasses

import numpy as np
import pytest
from onnx_opt.passes._calibrated import palette_descent
from onnx_opt.passes._calibrated.palette_descent import refined
from onnx_opt.passes._quant.palette_values import HIGHEST
from onnx_opt.passes._quant.palettes import fitted


def problem(channels, width, groups=1, zeros=0.0, seed=0):
    """Weights, and the Gram matrices of inputs that depend on each other."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(channels, width)).astype(np.float32)
    rows[random.random(rows.shape) < zeros] = 0
    mixed = random.normal(size=(groups, width, width))
    inputs = random.normal(size=(groups, 4 * width, width)) @ mixed
    hessian = inputs.transpose(0, 2, 1) @ inputs / (4 * width)
    return rows, hessian + 0.01 * np.eye(width)


def error(rows, hessian, codes, scales):
    """Error of the outputs."""
    difference = (codes * scales[:, None] - rows).reshape(
        len(hessian), -1, rows.shape[1]
    )
    return float(((difference @ hessian) * difference).sum())


def nearest(rows, palettes):
    return palettes.nearest((rows / palettes.scales[:, None])[None])[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_error_of_the_outputs_falls(bits, groups):
    rows, hessian = problem(16, 70, groups)
    palettes = fitted(rows, bits)
    codes = nearest(rows, palettes)
    better, scales = refined(rows, hessian, codes, palettes)
    before = error(rows, hessian, codes, palettes.scales)
    # inputs that depend on each other leave much to gain
    assert error(rows, hessian, better, scales) < 0.7 * before


def test_what_is_best_already_stays():
    """Weights that lie on their palettes."""
    rows, hessian = problem(8, 48)
    palettes = fitted(rows, 3)
    codes = nearest(rows, palettes)
    exact = (codes * palettes.scales[:, None]).astype(np.float32)
    same, scales = refined(exact, hessian, codes, palettes)
    assert np.allclose(same * scales[:, None], exact, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 3])
def test_codes_are_few_in_reach_and_zero_where_weights_are(bits):
    rows, hessian = problem(12, 64, zeros=0.5)
    palettes = fitted(rows, bits)
    codes, scales = refined(rows, hessian, nearest(rows, palettes), palettes)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= HIGHEST
    assert (codes[rows == 0] == 0).all()
    assert (scales > 0).all()
    for row in codes:
        assert len(np.unique(row)) <= 2**bits


def test_channels_go_on_sharing_a_palette():
    rows, hessian = problem(8, 64)
    palettes = fitted(rows, 2)
    shared = np.repeat(palettes.values[::4], 4, axis=0)
    palettes = dataclasses.replace(palettes, values=shared)
    codes, _ = refined(rows, hessian, nearest(rows, palettes), palettes)
    for start in (0, 4):
        assert len(np.unique(codes[start : start + 4])) <= 4


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_inputs_of_any_size_are_fitted_alike(size):
    """Their squares have no place in single precision."""
    rows, hessian = problem(8, 48)
    palettes = fitted(rows, 3)
    codes = nearest(rows, palettes)
    expected, scales = refined(rows, hessian, codes, palettes)
    found, same = refined(rows, size * hessian, codes, palettes)
    assert (found == expected).all()
    assert np.allclose(same, scales)


def test_an_input_that_is_silent_beside_others_does_no_harm():
    rows, hessian = problem(8, 48)
    hessian[:, 5] = 0
    hessian[:, :, 5] = 0
    hessian[:, 5, 5] = 1e-60
    palettes = fitted(rows, 3)
    codes, scales = refined(rows, hessian, nearest(rows, palettes), palettes)
    assert np.isfinite(scales).all()
    assert np.isfinite(error(rows, hessian, codes, scales))


def test_palettes_of_very_large_layers_stay(monkeypatch):
    monkeypatch.setattr(palette_descent, "MOST_PRODUCTS", 0)
    rows, hessian = problem(16, 70)
    palettes = fitted(rows, 3)
    codes = nearest(rows, palettes)
    better, scales = refined(rows, hessian, codes, palettes)
    assert all(
        set(row) <= set(own) for row, own in zip(better, palettes.values, strict=True)
    )
    before = error(rows, hessian, codes, palettes.scales)
    assert error(rows, hessian, better, scales) < 0.8 * before


def test_a_palette_that_few_codes_use_stays_finite():
    """All weights of a channel alike: seven of eight values belong to nothing."""
    rows, hessian = problem(4, 32)
    rows[0] = 0.5
    rows[1] = 0
    palettes = fitted(rows, 3)
    codes, scales = refined(rows, hessian, nearest(rows, palettes), palettes)
    assert np.isfinite(scales).all()
    assert np.allclose(codes[0] * scales[0], 0.5, rtol=0.01)
    assert not codes[1].any()
