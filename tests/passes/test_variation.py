"""Shares of what varies in an output that errors take, column by column where units differ."""

import math

import numpy as np
import pytest
from onnx_opt.passes._core.variation import ColumnSums, column_axis, lost_variation

RANDOM = np.random.default_rng(0)


def lost(y, z):
    sums = ColumnSums()
    sums.update(y, z)
    return sums.lost()


@pytest.mark.parametrize(
    ("rank", "axis"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 1), (5, 1)]
)
def test_columns_are_the_last_axis_or_the_channels_of_maps(rank, axis):
    assert column_axis(rank) == axis


@pytest.mark.parametrize("offset", [0.0, 5.0, -100.0])
def test_what_all_samples_have_alike_does_not_count(offset):
    y = RANDOM.normal(size=(1000, 3))
    z = y + 0.1 * RANDOM.normal(size=y.shape)
    expected = np.square(y - z).sum() / np.square(y - y.mean(0)).sum()
    assert lost(y + offset, z + offset) == pytest.approx(expected, rel=1e-6)
    # a mean that is off is lost, too
    assert lost(y + offset, z + offset + 1) > 0.9


def test_columns_of_one_unit_are_one_sum():
    y = RANDOM.normal(size=(1000, 3)) * [1.0, 3.0, 5.0]
    z = y.copy()
    z[:, 0] = y[:, 0].mean()
    assert lost(y, z) == pytest.approx(1 / 35, rel=0.2)


@pytest.mark.parametrize("scales", [[1e-3, 1.0, 2e4], [1.0, 1e3, 1.0]])
def test_columns_of_other_units_count_alike(scales):
    y = RANDOM.normal(size=(1000, 3)) * scales
    z = y.copy()
    z[:, 0] = 0.0
    assert lost(y, z) == pytest.approx(1 / 3, rel=0.01)
    # once at most: a column is not more than lost
    z[:, 0] = 1e3 * y[:, 0]
    assert lost(y, z) >= 1 / 3


def test_what_never_varies_has_nothing_to_lose():
    y = np.full((100, 2), 7.0)
    assert math.isnan(lost(y, y + 1))
    assert math.isnan(ColumnSums().lost())
    # beside a column that varies its errors count
    y[:, 0] = RANDOM.normal(size=100)
    z = y.copy()
    z[:, 1] += 10
    assert lost(y, z) > 1


def test_batches_add_up_whatever_their_size():
    y = RANDOM.normal(size=(70_000, 3, 1, 2)).astype(np.float32) + 3
    z = y + 0.1
    whole = lost(y, z)
    sums = ColumnSums()
    for start in (0, 10, 5000):
        stop = {0: 10, 10: 5000, 5000: 70_000}[start]
        sums.update(y[start:stop], z[start:stop])
    assert sums.lost() == pytest.approx(whole, rel=1e-9)


def test_lost_variation_by_hand():
    found = lost_variation(
        errors=np.array([0.1, 0.3]),
        squares=np.array([5.0, 2.0]),
        means=np.array([2.0, 1.0]),
    )
    assert found == pytest.approx(0.4 / 2.0)
