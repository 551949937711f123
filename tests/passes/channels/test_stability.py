import dataclasses

import numpy as np
import pytest
from importance_nets import RAW, mlp
from onnx_opt.passes._channels.importance import stability as module
from onnx_opt.passes._channels.importance.data import UNREAD, variance
from onnx_opt.passes._channels.importance.stability import (
    FEW,
    removal_frequencies,
    stability,
)

RANDOM = np.random.default_rng(0)
OPTIONS = dataclasses.replace(RAW, ratio=0.5)


@pytest.fixture(autouse=True)
def forty_halves(monkeypatch):
    monkeypatch.setattr(module, "HALVES", 40)


@pytest.fixture
def net():
    """Six channels: two that never vary, two that always do, two between them that are alike."""
    w = np.diag([0.0, 0, 1, 1, 5, 5])
    return mlp(w, RANDOM.normal(size=(6, 4)) * 0 + 1, "r = Identity (h)")


def feeds(count=30):
    return [{"x": RANDOM.normal(size=(count, 6)).astype(np.float32)}]


def test_frequencies_are_those_of_a_loop_over_halves(calibrated, net):
    model, solution, groups = net
    data = feeds(21)
    data[0]["x"][:, 3] = data[0]["x"][
        ::-1, 2
    ]  # neither varies more in all: each half decides by itself
    context = calibrated(data)
    context.seed = 3
    (found,) = stability(groups, solution, model, context, OPTIONS)
    x = data[0]["x"].astype(float) * [0, 0, 1, 1, 5, 5]
    random, count = np.random.default_rng(3), np.zeros(6)
    for _ in range(20):
        order = random.permutation(21)
        for half in (order[:10], order[10:20]):
            count[np.argsort(x[half].var(0) * 4, kind="stable")[:3]] += 1
    np.testing.assert_allclose(removal_frequencies(found), count / 40)
    assert count[:2].tolist() == [40, 40]
    assert count[4:].tolist() == [0, 0]
    assert count.sum() == 3 * 40
    assert 0 < count[2] < 40


def test_the_seed_decides_and_equal_frequencies_follow_all_of_the_data(calibrated, net):
    model, solution, groups = net
    context = calibrated(feeds())
    first, again = (
        stability(groups, solution, model, context, OPTIONS)[0] for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    context.seed = 1
    other = stability(groups, solution, model, context, OPTIONS)[0]
    assert (first != other).any()
    (base,) = variance(groups, solution, model, context, RAW)
    frequencies = removal_frequencies(first)
    for one in range(6):
        for two in range(6):
            if frequencies[one] == frequencies[two] and base[one] < base[two]:
                assert first[one] < first[two]


def test_nothing_goes_at_a_ratio_of_zero(calibrated, net):
    model, solution, groups = net
    (found,) = stability(
        groups,
        solution,
        model,
        calibrated(feeds()),
        dataclasses.replace(OPTIONS, ratio=0.0),
    )
    np.testing.assert_array_equal(removal_frequencies(found), np.zeros(6))


def test_many_samples_are_drawn_in_folds(calibrated, net):
    model, solution, groups = net
    (found,) = stability(groups, solution, model, calibrated(feeds(300)), OPTIONS)
    assert removal_frequencies(found)[[0, 1, 4, 5]].tolist() == [1, 1, 0, 0]


def test_one_sample_has_no_halves(calibrated, net):
    model, solution, groups = net
    assert stability(groups, solution, model, calibrated(feeds(1)), OPTIONS) == [FEW]
    assert UNREAD not in stability(
        groups, solution, model, calibrated(feeds(1)), OPTIONS
    )
