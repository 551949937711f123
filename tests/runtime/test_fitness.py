"""Data that tells nothing is named; masks and states may be constant."""

import numpy as np
import pytest
from onnx_opt.runtime.fitness import unfit

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
IDS = np.arange(24).reshape(6, 4)
ONES = np.ones((6, 4), np.int64)


@pytest.mark.parametrize(
    "batches",
    [
        [{"x": X}],
        [{"x": X[:1]}],  # a single sample repeats nothing
        [{"x": X[:1]}, {"x": X[1:2]}],
        [{"ids": IDS, "mask": ONES, "types": ONES - 1}],
        [{"x": X, "state": np.zeros((2, 1)), "rate": np.array(16_000)}],
        [{"x": X[:1, :2]}, {"x": X[:1, :3]}],
        [{"x": np.zeros((3, 1), np.float32)}, {"x": np.ones((1, 1), np.float32)}],
        [{"text": np.array(["a", "b"], object)}],
        [{"x": np.zeros((0, 4), np.float32)}],
        [],
    ],
)
def test_data_that_tells_something(batches):
    assert unfit(batches) is None


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([{"x": 0 * X}], "input 'x' is 0.0 everywhere"),
        ([{"x": 0 * X[:1] + 7}, {"x": 0 * X[1:] + 7}], "input 'x' is 7.0 everywhere"),
        ([{"ids": ONES, "mask": ONES}], "input 'ids' is 1 everywhere"),
        ([{"rate": np.arange(6), "x": 0 * X}], "input 'x' is 0.0 everywhere"),
        ([{"x": X[[1, 1, 1]]}], "all 3 samples of input 'x' are equal"),
        ([{"x": X[:1]}, {"x": X[:1]}], "all 2 samples of input 'x' are equal"),
    ],
)
def test_data_that_tells_nothing(batches, words):
    assert unfit(batches).startswith(words)
