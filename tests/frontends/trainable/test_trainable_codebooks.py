"""Training on codebooks: neighbouring weights stay one of few vectors, which layers share."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_opt.frontends.trainable import coarsest_grid, to_torch, write_back
from onnx_opt.frontends.trainable._latents import find_latents
from onnx_opt.frontends.trainable._palettes import ChannelValues, VectorValues
from onnx_opt.frontends.trainable._rounding import on_codebook
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.vector_codebooks import codebook_of, merged
from onnx_opt.passes.pack import Pack
from trainable_models import conv_of_codes, ir_model, matmul_of_codes, normal

LAYERS = {
    "Conv": (conv_of_codes(64), (4, 64, 3, 3), 0, 9),
    "MatMul": (matmul_of_codes(800), (800, 4), -1, 8),
}

TWO = """
<ir_version: 10, opset_import: ["" : 21]>
two (float[2, 288] x) => (float[2, 48] y)
<float sv = {0.5}, float sw = {0.25}, int8[288, 96] v_q, int8[96, 48] w_q>
{
    v = DequantizeLinear (v_q, sv)
    a = MatMul (x, v)
    w = DequantizeLinear (w_q, sw)
    y = MatMul (a, w)
}
"""


def vectors_of(count, length, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(-64, 65, (count, length)).astype(np.int8)


def codes_of(vectors, shape, axis, seed=1):
    """Codes whose channels along `axis` are made of vectors."""
    random = np.random.default_rng(seed)
    chosen = random.choice(vectors, int(np.prod(shape)) // vectors.shape[1])
    first = [shape[axis], *(n for i, n in enumerate(shape) if i != axis % len(shape))]
    return np.ascontiguousarray(np.moveaxis(chosen.reshape(first), 0, axis))


def with_codes(model, name, codes):
    model.graph.initializers[name].const_value = ir.Tensor(codes, name=name)


def model_with(kind, count=60):
    text, shape, axis, length = LAYERS[kind]
    model = ir_model(text)
    with_codes(model, "w_q", codes_of(vectors_of(count, length), shape, axis))
    return model


def stored(model, name="w_q"):
    return model.graph.initializers[name].const_value


def shifted(module, size=20.0):
    """Move latents so far that many take other vectors."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("palette"):
                parameter += torch.from_numpy(normal(*parameter.shape)) * size


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_stay_vectors_of_the_codebook(kind):
    model = model_with(kind)
    before = codebook_of(stored(model))
    module = to_torch(model)
    x = torch.from_numpy(normal(*list(model.graph.inputs[0].shape)))
    shifted(module)
    with torch.no_grad():
        forward = module(x).numpy()
    changed = write_back(module)
    after = codebook_of(stored(changed))
    assert not np.array_equal(before.index.numpy(), after.index.numpy())
    assert len(merged([before.vectors, after.vectors])) == len(before.vectors)
    again = to_torch(changed)(x).detach().numpy()
    np.testing.assert_allclose(again, forward, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_changes_without_training(kind):
    model = model_with(kind)
    before = stored(model).numpy().copy()
    changed = write_back(to_torch(model, qat="weights"))
    assert np.array_equal(stored(changed).numpy(), before)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("noise", [3.0, 300.0])
def test_latents_near_the_original_keep_their_vectors(kind, noise):
    model = model_with(kind)
    codes = stored(model).numpy()
    shape = [1] * codes.ndim
    shape[LAYERS[kind][2]] = 4
    scales = np.array([0.5, 0.25, 0.5, 1.0]).reshape(shape)
    original = codes * scales + noise * normal(*codes.shape)
    module = to_torch(model, originals={"w": original.astype(np.float32)})
    latents = module.w_q.detach().numpy()
    assert np.abs(latents - codes).max() > 1
    assert np.array_equal(stored(write_back(module)).numpy(), codes)


def test_gradients_pass_and_vectors_learn_from_all_that_take_them():
    values = torch.tensor([[0.0, 0.0], [4.0, -2.4], [-5.0, 5.0]], requires_grad=True)
    x = torch.tensor([[3.0, -3.0, 1.0, 0.0], [9.0, -9.0, -1.0, 9.0]]).requires_grad_()
    codes = on_codebook(x, values, 0)
    assert codes.tolist() == [[4.0, -2.0, 0.0, 0.0], [4.0, -2.0, -5.0, 5.0]]
    factors = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    (codes * factors).sum().backward()
    assert x.grad.tolist() == factors.tolist()
    assert values.grad.tolist() == [[3.0, 4.0], [6.0, 8.0], [7.0, 8.0]]


def test_channels_of_any_axis_have_their_own_vectors():
    values = torch.from_numpy(vectors_of(40, 4)).float()
    x = torch.from_numpy(normal(8, 6) * 30)
    by_rows = on_codebook(x.T.contiguous(), values, 0)
    assert torch.equal(on_codebook(x, values, 1), by_rows.T)
    assert torch.equal(on_codebook(x, values, -1), by_rows.T)


@pytest.mark.parametrize("kind", LAYERS)
def test_vectors_train_with_the_scales_and_zeros_stay(kind):
    model = model_with(kind)
    _, shape, axis, length = LAYERS[kind]
    vectors = vectors_of(60, length)
    vectors[0] = 0
    with_codes(model, "w_q", codes_of(vectors, shape, axis))
    before = codebook_of(stored(model)).vectors
    module = to_torch(model, qat="weights")
    x = torch.from_numpy(normal(*list(model.graph.inputs[0].shape)))
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        module.constrain()
    with torch.no_grad():
        forward = module(x).numpy()
    changed = write_back(module)
    after = codebook_of(stored(changed))
    assert len(after.vectors) <= len(before)
    assert len(merged([before, after.vectors])) > len(before) + 5
    assert (module.w_q_palette.detach().numpy() == 0).all(axis=1).sum() == 1
    again = to_torch(changed)(x).detach().numpy()
    # scales are written in half precision
    np.testing.assert_allclose(again, forward, rtol=2e-3, atol=1e-2)


def two_layers(first, second):
    model = ir_model(TWO)
    with_codes(model, "v_q", codes_of(first, (288, 96), -1))
    with_codes(model, "w_q", codes_of(second, (96, 48), -1))
    return model


def test_layers_train_one_codebook():
    vectors = vectors_of(80, 8)
    module = to_torch(two_layers(vectors, vectors), qat="weights")
    names = [name for name, _ in module.named_parameters() if "palette" in name]
    assert len(names) == 1
    shifted(module)
    x = torch.from_numpy(normal(2, 288))
    module(x).square().mean().backward()
    assert module.get_parameter(names[0]).grad.abs().sum() > 0
    changed = write_back(module)
    found = [codebook_of(stored(changed, name)).vectors for name in ("v_q", "w_q")]
    assert len(merged(found)) <= 80


def test_codebooks_that_differ_train_apart():
    module = to_torch(two_layers(vectors_of(200, 8), vectors_of(200, 8, seed=7)))
    names = [name for name, _ in module.named_parameters() if "palette" in name]
    assert len(names) == 2


def test_few_values_of_channels_are_palettes_though_vectors_repeat():
    """Three values: 243 vectors of five make a codebook, but take more bits."""
    random = np.random.default_rng(0)
    model = ir_model(matmul_of_codes(800))
    with_codes(model, "w_q", random.choice([-9, 0, 9], (800, 4)).astype(np.int8))
    (latent,) = find_latents(model, None).values()
    assert isinstance(latent.palette, ChannelValues)
    (latent,) = find_latents(model_with("MatMul"), None).values()
    assert isinstance(latent.palette, VectorValues)


def test_codebooks_count_as_few_bits():
    assert coarsest_grid(model_with("Conv")) < 1
    assert coarsest_grid(model_with("MatMul")) == 1


def test_a_codebook_stays_where_some_of_its_weights_do():
    vectors = vectors_of(80, 8)
    model = two_layers(vectors, vectors)
    for train, learns in ((["v_q"], False), (["v_q", "w_q"], True)):
        module = to_torch(model, train=train, qat="weights")
        (palette,) = (n for n in module.provenance.origins if "palette" in n)
        assert module.get_parameter(palette).requires_grad == learns


def test_pruned_weights_of_few_values_keep_their_zeros():
    random = np.random.default_rng(0)
    codes = random.choice([-9, 9], (4, 1000, 3, 3)) * (
        random.random((4, 1000, 3, 3)) > 0.95
    )
    model = ir_model(conv_of_codes(1000))
    with_codes(model, "w_q", codes.astype(np.int8))
    (latent,) = find_latents(model, None).values()
    assert not isinstance(latent.palette, VectorValues)


def test_kernels_that_repeat_in_plain_codes_are_no_codebook():
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (4, 32, 3, 3)).astype(np.int8)
    model = ir_model(conv_of_codes(96))
    with_codes(model, "w_q", np.repeat(codes, 3, axis=1))
    (latent,) = find_latents(model, None).values()
    assert not isinstance(latent.palette, VectorValues)


def test_vectors_as_long_as_a_channel_are_a_codebook():
    model = ir_model(matmul_of_codes(9))
    codes = codes_of(vectors_of(200, 9), (9, 1200), -1)
    with_codes(model, "w_q", codes)
    (latent,) = find_latents(model, None).values()
    assert isinstance(latent.palette, VectorValues)


def test_a_decoder_of_vectors_is_no_table_of_digits():
    model = model_with("Conv")
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["codebook"] == 1
    assert coarsest_grid(model) == np.inf
