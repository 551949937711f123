"""Speed of steps: kernels of convolutions in one layout, and torch's fused kernels."""

import numpy as np
import pytest
import torch
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.trainable._rounding import PairLimit, within_limit
from onnx_opt.passes._core.saturation import kernel_pairs
from trainable_models import difference, ir_model, normal

LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
layers (float[n, 1, 6, 6] x) => (float[n, 4, 6, 6] y)
<float[4, 1, 3, 3] first, float[4, 4, 3, 3] second, float[1, 4, 6, 6] table>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    y = Add (c, table)
}
"""
CODES = """
<ir_version: 10, opset_import: ["" : 21]>
codes (float[n, 2, 4, 4] x) => (float[n, 2, 4, 3] y)
<int8[2, 2, 1, 2] w = {1, -2, 3, 4, 5, -6, 7, 8}, float[2] scale = {0.5, 0.25}>
{
    d = DequantizeLinear <axis = 0> (w, scale)
    i = Identity (d)
    y = Conv (x, i)
}
"""
READ_BACK = """
<ir_version: 10, opset_import: ["" : 21]>
read_back (float[n, 4] x) => (OUTPUTS)
<float scale = {0.125}, float again = {0.125}, float wider = {0.25}, uint8 zero = {100},
    float[4, 2] w>
{
    q = QuantizeLinear (x, scale, zero)
    d = DequantizeLinear (q, READ, zero)
    y = MatMul (d, w)
}
"""
CLIP = """
<ir_version: 10, opset_import: ["" : 21]>
clip (float[n] x) => (float[n] y)
<float low = {LOW}, float high = {HIGH}>
{
    y = Clip (BOUNDS)
}
"""
BOTH = "x, low, high"
NAN = float("nan")


def is_channels_last(tensor):
    # strides, since a tensor with one channel is contiguous in both layouts
    channels = tensor.shape[1]
    return tensor.stride()[1] == 1 and tensor.stride()[3] == channels


@pytest.mark.parametrize("train", [True, False])
def test_kernels_are_channels_last_and_no_other_tensor_is(train):
    module = to_torch(ir_model(LAYERS), train=train, taps=["a", "c"])
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    layouts = [is_channels_last(t) for t in tensors.values() if t.ndim == 4]
    assert sorted(layouts) == [False, True, True]
    values = module.run({"x": normal(2, 1, 6, 6)})
    # maps have the layout of the kernels, also those of an image with one channel
    assert is_channels_last(values["a"])
    assert is_channels_last(values["c"])
    assert difference(to_torch(ir_model(LAYERS)), {"x": normal(2, 1, 6, 6)}) < 1e-6


def test_codes_of_a_kernel_are_channels_last():
    module = to_torch(ir_model(CODES))
    (codes,) = [p for p in module.parameters() if p.ndim == 4]
    assert is_channels_last(codes)
    assert difference(module, {"x": normal(2, 2, 4, 4)}) < 1e-6


def test_masks_and_gradients_have_the_layout_of_their_weights():
    model = ir_model(LAYERS)
    kept = np.ones((4, 4, 3, 3), bool)
    kept[0] = False
    module = to_torch(model, masks={"second": kept})
    module.run({"x": normal(2, 1, 6, 6)})["y"].sum().backward()
    assert module.second_kept.stride() == module.second.stride()
    assert module.second.grad.stride() == module.second.stride()
    module.constrain()
    assert not module.second[0].any()
    assert module.second[1:].all()


def test_pairs_are_limited_in_any_layout():
    codes = torch.randint(-127, 128, (4, 3, 3, 3)).float()
    limit = PairLimit.of(0, kernel_pairs("Conv", (4, 3, 3, 3)))
    expected = within_limit(codes, codes, limit)
    assert not torch.equal(expected, codes)
    other = codes.contiguous(memory_format=torch.channels_last)
    found = within_limit(other, other, limit)
    assert torch.equal(found, expected)
    assert found.stride() == other.stride()


def read_back(outputs="float[n, 2] y", read="scale", **options):
    text = READ_BACK.replace("OUTPUTS", outputs).replace("READ", read)
    return to_torch(ir_model(text), **options)


def values_and_gradient(module):
    # both ends of the grid are at 12.5 below and 19.375 above zero
    x = torch.linspace(-20, 25, 4000).reshape(1000, 4).requires_grad_()
    results = module(x)
    y = results[0] if isinstance(results, tuple) else results
    y.sum().backward()
    return y.detach(), x.grad


def test_codes_that_are_only_read_back_are_never_made():
    module = read_back()
    assert module.provenance.source.count("fake_quantize(") == 1
    assert "QuantizeLinear_" not in module.provenance.source
    assert difference(module, {"x": 20 * normal(50, 4)}, optimize=False) < 1e-5
    # asked for by name, they are made
    with_codes = read_back(taps=["q"])
    assert "fake_quantize(" not in with_codes.provenance.source
    assert with_codes.run({"x": normal(1, 4)})["q"].min() >= 0
    for found, expected in zip(
        values_and_gradient(module), values_and_gradient(with_codes), strict=True
    ):
        assert torch.equal(found, expected)
        assert found.unique().numel() > 1


@pytest.mark.parametrize(
    ("read", "at_once"), [("scale", True), ("again", True), ("wider", False)]
)
def test_codes_are_read_back_at_once_by_equal_scales_alone(read, at_once):
    module = read_back(read=read)
    assert ("fake_quantize(" in module.provenance.source) == at_once
    assert difference(module, {"x": 20 * normal(50, 4)}, optimize=False) < 1e-5


CALLED_TWICE = """
<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
called_twice (float[n, 4] x, float scale_given) => (float[n, 4] y)
<float scale = {0.125}, uint8 zero = {100}>
{
    FIRST
}
<domain: "own", opset_import: ["" : 21]>
rounded (a, s, z) => (RESULTS)
{
    q = QuantizeLinear (a, s, z)
    d = DequantizeLinear (q, s, z)
}
"""
ONE = "u = own.rounded (x, scale, zero)\n    v = own.rounded (x, scale_given, zero)\n"
TWO = "u, p = own.rounded (x, scale, zero)\n    v, r = own.rounded (x, scale_given, zero)\n"


@pytest.mark.parametrize(("calls", "results"), [(ONE, "d"), (TWO, "d, q")])
def test_each_call_of_a_function_has_its_own_grid(calls, results):
    text = CALLED_TWICE.replace("FIRST", f"{calls}    y = Add (u, v)")
    module = to_torch(ir_model(text.replace("RESULTS", results)))
    feeds = {"x": 20 * normal(50, 4), "scale_given": np.float32(0.5)}
    expected = 0.0
    for scale in (0.125, 0.5):
        steps = np.clip(np.rint(feeds["x"] / np.float32(scale)) + 100, 0, 255)
        expected = expected + (steps - 100) * scale
    found = module.run(feeds)["y"].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    source = module.provenance.source
    assert source.count(" = fake_quantize(") == (1 if results == "d" else 0)


@pytest.mark.parametrize(
    ("outputs", "mode"),
    [
        ("float[n, 2] y, uint8[n, 4] q", "fixed"),
        ("float[n, 2] y", "off"),
        ("float[n, 2] y", "learned"),
    ],
)
def test_codes_are_made_where_something_else_needs_them(outputs, mode):
    module = read_back(outputs, qat=mode)
    assert "fake_quantize(" not in module.provenance.source


@pytest.mark.parametrize(
    ("low", "high", "bounds", "kernel", "values", "gradient"),
    [
        ("0", "6", BOTH, "HardtanhBackward0", [0, 0, 3, 6, 6, NAN], [0, 0, 1, 0, 0]),
        ("0", "inf", BOTH, "ReluBackward0", [0, 0, 3, 6, 9, NAN], [0, 0, 1, 1, 1]),
        ("0", "6", "x, low", "ReluBackward0", [0, 0, 3, 6, 9, NAN], [0, 0, 1, 1, 1]),
        ("0", "6", "x, , high", "ClampBackward1", [-2, 0, 3, 6, 6, NAN], [1, 1, 1, 1, 0]),
        ("7", "5", BOTH, "ClampBackward1", [5, 5, 5, 5, 5, NAN], [0, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_constant_bounds_clip_by_one_kernel(
    low, high, bounds, kernel, values, gradient
):
    text = CLIP.replace("LOW", low).replace("HIGH", high).replace("BOUNDS", bounds)
    module = to_torch(ir_model(text))
    x = torch.tensor([-2.0, 0.0, 3.0, 6.0, 9.0, NAN], requires_grad=True)
    y = module(x)
    assert kernel.removesuffix("0").removesuffix("1") in y.grad_fn.name()
    np.testing.assert_array_equal(y.detach(), np.array(values, np.float32))
    y[:5].sum().backward()
    assert x.grad[:5].tolist() == gradient


def test_trained_bounds_have_gradients():
    text = CLIP.replace("LOW", "-1").replace("HIGH", "1").replace("BOUNDS", BOTH)
    module = to_torch(ir_model(text), train=["high"])
    module(torch.tensor([-3.0, 0.5, 2.0, 4.0])).sum().backward()
    assert module.high.grad.item() == 2.0


@pytest.mark.parametrize(
    ("shape", "slopes"),
    [
        ((2, 3, 4, 4), (3, 1, 1)),
        ((2, 3, 4, 4), (1, 3, 1, 1)),
        ((2, 3, 4, 4), (1,)),
        ((2, 3, 4, 4), (4,)),
        ((2, 3, 4, 4), (3, 4, 4)),
        ((2, 3), (3,)),
        ((5,), (1,)),
    ],
)
def test_slopes_of_every_shape(shape, slopes):
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    prelu (float{list(shape)} x) => (float{list(shape)} y)
    <float{list(slopes)} slope> {{ y = PRelu (x, slope) }}
    """
    module = to_torch(ir_model(text))
    feeds = {"x": normal(*shape)}
    assert difference(module, feeds) < 1e-6
    module.run(feeds)["y"].sum().backward()
    below = np.minimum(feeds["x"], 0)
    (slope,) = module.parameters()
    # the gradient of a slope is the sum of what it multiplies
    expected = np.broadcast_to(slope.detach().numpy(), shape)
    total = float((slope.grad * slope.detach()).sum())
    np.testing.assert_allclose(total, float((below * expected).sum()), rtol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        "HardSwish (x)",
        "HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)",
        "HardSigmoid (x)",
    ],
)
def test_gates_are_those_of_the_runtime(node):
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    gate (float[64] x) => (float[64] y) {{ y = {node} }}
    """
    assert difference(to_torch(ir_model(text)), {"x": 4 * normal(64)}) < 1e-6
