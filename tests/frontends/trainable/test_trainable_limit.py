"""Training within the limit of pairs: what no CPU's kernels saturate before, none does
afterwards.
"""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_opt.frontends.trainable import to_torch, write_back
from onnx_opt.frontends.trainable._rounding import PairLimit, on_grid, within_limit
from onnx_opt.passes._core.saturation import (
    keep_within,
    kernel_pairs,
    neighbours,
    offending,
)
from trainable_models import conv_of_codes, ir_model, matmul_of_codes, normal

LAYERS = {
    "Conv": (conv_of_codes(3), (4, 3, 3, 3), 0, (2, 3, 5, 5)),
    "MatMul": (matmul_of_codes(9), (9, 4), 1, (2, 9)),
}


def model_with(kind, limited):
    """A layer of large codes, and the (channels, width) rows of them; `limited`: no pair of them
    saturates.
    """
    text, shape, axis, feed = LAYERS[kind]
    codes = np.random.default_rng(0).integers(-127, 128, shape).astype(np.float64)
    rows = np.moveaxis(codes, axis, 0).reshape(shape[axis], -1)
    pairs = kernel_pairs(kind, shape)
    if limited:
        keep_within(rows, rows.copy(), pairs)
        first = (shape[axis], *(d for i, d in enumerate(shape) if i != axis))
        codes = np.moveaxis(rows.reshape(first), 0, axis)
    model = ir_model(text)
    model.graph.initializers["w_q"].const_value = ir.Tensor(
        np.ascontiguousarray(codes).astype(np.int8), name="w_q"
    )
    return model, normal(*feed)


def trained_rows(model, x, kind):
    """The rows of the codes after latents moved far, wherever an optimizer might take them."""
    module = to_torch(model)
    with torch.no_grad():
        module.w_q += torch.from_numpy(normal(*module.w_q.shape)) * 60
        module.constrain()
    before = model.graph.initializers["w_q"].const_value.numpy().copy()
    with torch.no_grad():
        forward = module(torch.from_numpy(x)).numpy()
    codes = write_back(module).graph.initializers["w_q"].const_value.numpy()
    assert (codes != before).any()
    np.testing.assert_allclose(
        to_torch(model)(torch.from_numpy(x)).detach().numpy(),
        forward,
        rtol=1e-5,
        atol=1e-4,
    )
    axis = LAYERS[kind][2]
    return np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_within_the_limit_stay_there(kind):
    model, x = model_with(kind, limited=True)
    rows = trained_rows(model, x, kind)
    assert not offending(rows, kernel_pairs(kind, LAYERS[kind][1])).any()


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_of_the_whole_range_keep_it(kind):
    model, x = model_with(kind, limited=False)
    rows = trained_rows(model, x, kind)
    assert offending(rows, kernel_pairs(kind, LAYERS[kind][1])).any()


@pytest.mark.parametrize("width", [2, 7, 40])
def test_codes_are_cut_as_passes_cut_them(width):
    exact = (
        np.random.default_rng(width).uniform(-127, 127, (5, width)).astype(np.float32)
    )
    expected, pairs = np.rint(exact), neighbours(width)
    keep_within(expected, exact, pairs)
    x = torch.from_numpy(exact).requires_grad_()
    got = within_limit(x, on_grid(x, -127.0, 127.0), PairLimit.of(0, pairs))
    np.testing.assert_array_equal(got.detach().numpy(), expected)
    got.sum().backward()
    assert (x.grad == 1).all()
