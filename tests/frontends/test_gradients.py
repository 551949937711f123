"""Gradients of a loss by initializers, against numbers made by hand and by finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.frontends.gradients import loss_gradients

pytest.importorskip("torch")

LINEAR = """
<ir_version: 10, opset_import: ["" : 18]>
linear (float[n, 2] x) => (float[n, 1] y)
<float[2, 1] w = {3, -1}, float[2, 1] unused = {1, 1}>
{ y = MatMul (x, w) }
"""
CLASSES = """
<ir_version: 10, opset_import: ["" : 18]>
classes (float[n, 2] x) => (float[n, 3] y)
<float[2, 3] w = {1, 0, -1, 0.5, 2, -0.5}>
{ y = MatMul (x, w) }
"""
X = np.array([[1, 2], [0, -1], [3, 1]], np.float32)


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def _cross_entropy(w: np.ndarray, x: np.ndarray, label: int) -> float:
    y = x.astype(np.float64) @ w
    return float(np.log(np.exp(y).sum()) - y[label])


def test_half_the_square_of_what_is_no_class():
    found = loss_gradients(_model(LINEAR), [({"x": X}, None)], ["w", "unused"], 8)["w"]
    each = (X @ [[3], [-1]]) * X
    np.testing.assert_allclose(found.mean[:, 0], each.mean(0))
    np.testing.assert_allclose(found.square[:, 0], np.square(each).mean(0))


def test_a_weight_that_the_loss_does_not_see_is_absent():
    assert set(
        loss_gradients(_model(LINEAR), [({"x": X}, None)], ["w", "unused"], 8)
    ) == {"w"}


@pytest.mark.parametrize("labels", [np.array([2, 0, 1]), None])
def test_cross_entropy_against_the_label_or_the_own_choice(labels):
    w = np.array([[1, 0, -1], [0.5, 2, -0.5]])
    wanted = labels if labels is not None else (X @ w).argmax(1)
    found = loss_gradients(
        _model(CLASSES),
        [
            ({"x": X[:2]}, None if labels is None else labels[:2]),
            ({"x": X[2:]}, None if labels is None else labels[2:]),
        ],
        ["w"],
        8,
    )["w"]
    numeric = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[index] = 1e-6
        numeric[index] = np.mean(
            [
                (_cross_entropy(w + step, x, c) - _cross_entropy(w - step, x, c)) / 2e-6
                for x, c in zip(X, wanted, strict=True)
            ]
        )
    np.testing.assert_allclose(found.mean, numeric, atol=1e-6)


def test_no_more_samples_than_asked():
    few = loss_gradients(_model(LINEAR), [({"x": X}, None)], ["w"], 1)["w"]
    np.testing.assert_allclose(few.mean[:, 0], (X[:1] @ [[3], [-1]] * X[:1])[0])


def test_a_weight_that_is_not_there():
    with pytest.raises(UsageError, match="no weight 'v'"):
        loss_gradients(_model(LINEAR), [({"x": X}, None)], ["v"], 8)
