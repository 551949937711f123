"""Training on palettes: a channel's codes move among the few that it has, and among no others."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_opt.frontends.trainable import to_torch, write_back
from onnx_opt.frontends.trainable._latents import find_latents
from onnx_opt.frontends.trainable._palettes import ChannelValues
from onnx_opt.frontends.trainable._rounding import on_palette
from trainable_models import conv_of_codes, ir_model, matmul_of_codes, normal

LAYERS = {
    "Conv": (conv_of_codes(16), (4, 16, 3, 3), 0),
    "MatMul": (matmul_of_codes(144), (144, 4), 1),
}


def model_with(kind, count, kept=1.0):
    """A layer whose channels have `count` codes of their own; `kept`: share of nonzeros."""
    text, shape, axis = LAYERS[kind]
    random = np.random.default_rng(count)
    rows = []
    for _ in range(4):
        pool = random.choice(np.arange(-64, 65), count, False)
        rows.append(random.choice(pool, 144) * (random.random(144) < kept))
    first = (4, *(dim for index, dim in enumerate(shape) if index != axis))
    codes = np.moveaxis(np.reshape(rows, first), 0, axis).astype(np.int8)
    model = ir_model(text)
    weight = model.graph.initializers["w_q"]
    weight.const_value = ir.Tensor(np.ascontiguousarray(codes), name="w_q")
    return model


def rows_of(model, kind):
    codes = model.graph.initializers["w_q"].const_value.numpy()
    return np.moveaxis(codes, LAYERS[kind][2], 0).reshape(4, -1)


def dequantizer(model):
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    (found,) = (node for node in nodes if node.inputs[0].name == "w_q")
    return found


def scales_of(model):
    return dequantizer(model).inputs[1].const_value.numpy()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("count", [4, 8, 16])
def test_codes_stay_among_those_of_their_channel(kind, count):
    model = model_with(kind, count)
    before = rows_of(model, kind).copy()
    module = to_torch(model)
    x = torch.from_numpy(normal(*list(model.graph.inputs[0].shape)))
    with torch.no_grad():
        module.w_q += torch.from_numpy(normal(*module.w_q.shape)) * 30
        module.constrain()
        forward = module(x).numpy()
    after = rows_of(write_back(module), kind)
    assert (after != before).mean() > 0.3
    for own, trained in zip(before, after, strict=True):
        assert set(trained) <= set(own)
    again = to_torch(module.model)(x).detach().numpy()
    np.testing.assert_allclose(again, forward, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_changes_without_training(kind):
    model = model_with(kind, 16)
    before = rows_of(model, kind).copy()
    assert np.array_equal(rows_of(write_back(to_torch(model)), kind), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_latents_near_the_original_keep_their_codes(kind):
    model = model_with(kind, 8)
    codes = model.graph.initializers["w_q"].const_value.numpy()
    shape = [1] * codes.ndim
    shape[LAYERS[kind][2]] = 4
    scales = np.array([0.5, 0.25, 0.5, 1.0]).reshape(shape)
    original = codes * scales + normal(*codes.shape)
    module = to_torch(model, originals={"w": original.astype(np.float32)})
    assert not np.array_equal(module.w_q.detach().numpy(), codes)
    assert np.array_equal(rows_of(write_back(module), kind), rows_of(model, kind))


def test_many_codes_or_few_weights_are_no_palette():
    for model in (model_with("Conv", 100), model_with("Conv", 16, kept=0.05)):
        (latent,) = find_latents(model, None).values()
        assert latent.palette is None


def test_gradients_pass_straight_through():
    values = torch.tensor([[-3.0, 0.0, 5.0], [-1.0, 1.0, 1.0]])
    x = torch.tensor([[-9.0, -1.4, 2.6], [0.4, 0.9, -0.1]]).T.requires_grad_()
    codes = on_palette(x, values, 1)
    assert codes.T.tolist() == [[-3.0, 0.0, 5.0], [1.0, 1.0, -1.0]]
    codes.sum().backward()
    assert x.grad.tolist() == torch.ones_like(x).tolist()


def test_values_learn_from_all_that_take_them():
    # not in order, and one of them between two codes
    values = torch.tensor([[5.0, -2.6, 0.0]], requires_grad=True)
    x = torch.tensor([[-9.0, 4.0], [6.0, 7.0]])
    codes = on_palette(x, values, 0)
    assert codes.tolist() == [[-3.0, 5.0], [5.0, 5.0]]
    (codes * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert values.grad.tolist() == [[9.0, 1.0, 0.0]]


@pytest.mark.parametrize("kind", LAYERS)
def test_palettes_train_with_the_scales(kind):
    model = model_with(kind, 8, kept=0.6)
    before = rows_of(model, kind).copy()
    module = to_torch(model, qat="weights")
    x = torch.from_numpy(normal(*list(model.graph.inputs[0].shape)))
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
        module.constrain()
    with torch.no_grad():
        forward = module(x).numpy()
    after = rows_of(write_back(module), kind)
    bounds = before.min(), before.max()
    for own, trained in zip(before, after, strict=True):
        assert 0 in own
        assert not set(trained) <= set(own)
        assert len(set(trained)) <= len(set(own))
        assert bounds[0] <= trained.min() <= trained.max() <= bounds[1]
    scales = scales_of(module.model)
    # they were of half precision, and so they are written
    assert np.array_equal(scales.astype(np.float16), scales)
    assert not np.array_equal(scales, np.rint(scales))
    again = to_torch(module.model)(x).detach().numpy()
    np.testing.assert_allclose(again, forward, rtol=1e-3, atol=1e-4)


def test_scales_of_more_digits_are_written_with_them():
    model = model_with("Conv", 8)
    scale = dequantizer(model).inputs[1]
    exact = scales_of(model) / np.float32(3)
    scale.const_value = ir.Tensor(exact, name=scale.name)
    module = to_torch(model, qat="weights")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.shape == (4,):
                parameter *= 1.001
    written = scales_of(write_back(module))
    assert not np.array_equal(written, exact)
    assert not np.array_equal(written.astype(np.float16), written)


@pytest.mark.parametrize(("count", "qat"), [(8, "fixed"), (32, "weights")])
def test_palettes_are_held_where_scales_are(count, qat):
    module = to_torch(model_with("Conv", count), qat=qat)
    assert not module.w_q_palette.requires_grad


def test_zeros_of_palettes_do_not_move():
    module = to_torch(model_with("Conv", 8, kept=0.6), qat="weights")
    assert module.w_q_palette.requires_grad
    assert not module.masks()


def test_the_two_values_beside_a_number():
    palette = ChannelValues(1, np.array([[-3.0, 0.0, 5.0], [-1.0, 1.0, 1.0]]))
    numbers = np.array([[-9.0, 0.4], [1.0, 3.0], [0.0, -0.2]])
    below, above = palette.beside(numbers)
    assert below.tolist() == [[-3.0, -1.0], [0.0, 1.0], [-3.0, -1.0]]
    assert above.tolist() == [[-3.0, 1.0], [5.0, 1.0], [0.0, 1.0]]
