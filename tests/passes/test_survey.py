"""One pass over a weight finds what its scales follow from, block by block."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core import lazy
from onnx_opt.passes._core.channel_layout import Layout
from onnx_opt.passes._core.saturation import (
    channel_factors,
    excess,
    kernel_pairs,
    neighbours,
)
from onnx_opt.passes._quant import survey as survey_module
from onnx_opt.passes._quant.grids import Grid, scales_on
from onnx_opt.passes._quant.survey import nonzeros, survey
from onnx_opt.passes._quant.weights import channel_absmax

RANDOM = np.random.default_rng(3)
WEIGHTS = {
    "normal": RANDOM.normal(size=(96, 40)),
    # a quarter of all pairs is beyond the limit
    "uniform": RANDOM.uniform(-1, 1, (96, 40)),
    # the largest comes last: limits grow on the way
    "growing": RANDOM.normal(size=(96, 40)) * np.linspace(0.1, 3, 96)[:, None],
    "sparse": RANDOM.normal(size=(96, 40)) * (RANDOM.random((96, 40)) < 0.2),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 320)
    monkeypatch.setattr(lazy, "BATCH", 640)


@pytest.mark.parametrize("most_kept", [1.0, 1 / 8, 0.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_scales_are_those_of_the_whole_weight(kind, axis, most_kept, monkeypatch):
    monkeypatch.setattr(survey_module, "MOST_KEPT", most_kept)
    values = WEIGHTS[kind].astype(np.float32)
    rows = values if axis == 0 else values.T
    pairs = neighbours(rows.shape[1])
    highest = np.abs(rows).max(axis=1)
    scales = highest / np.float32(127)
    factors = (1 / scales).astype(np.float32)
    spread = excess(rows * factors[:, None], pairs)
    counts = np.count_nonzero(rows, axis=1)
    growth = channel_factors(spread, counts)
    layout = Layout.of(values.shape, axis)
    found = scales_on(ir.Tensor(values), layout, Grid(127, pairs))
    assert found.tolist() == (scales * growth).astype(np.float32).tolist()
    # some are enlarged, or the test could not fail
    assert (growth > 1).any()


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (64, 5, 1, 3)])
def test_a_convolution_is_surveyed_in_its_own_pairs(shape):
    values = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    pairs = kernel_pairs("Conv", shape)
    found = survey(ir.Tensor(values), Layout.of(shape, 0), pairs, 127)
    rows = values.reshape(shape[0], -1)
    near = sum(each.row.size for each in found.near)
    first, second = pairs.of(rows)
    limits = np.abs(rows).max(axis=1, keepdims=True) * 128 / 127
    beyond = np.abs(first + second) > limits
    assert beyond.sum() <= near < rows.size / 2
    assert found.highest.tolist() == np.abs(rows).max(axis=1).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_as_before(bad):
    values = np.ones((96, 40), np.float32)
    values[50, 7] = bad
    values[51, 7] = -bad
    layout = Layout.of(values.shape, 1)
    tensor = ir.Tensor(values)
    found = survey(tensor, layout, neighbours(96), 127)
    np.testing.assert_array_equal(found.highest, channel_absmax(tensor, layout))
    assert not np.isfinite(found.highest[7])


@pytest.mark.parametrize("width", [0, 1, 255, 256, 700])
@pytest.mark.parametrize("by_columns", [False, True])
def test_nonzeros_of_each_row(width, by_columns):
    rows = np.ones((3, width), np.float32)
    rows[1, ::2] = 0
    rows[2, 1:] = -0.0
    stored = np.asfortranarray(rows) if by_columns else rows
    assert nonzeros(stored).tolist() == np.count_nonzero(rows, axis=1).tolist()
