"""Activations of fewer than 8 bits: who reads them, on which codes, and that integer kernels do."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.quant import Quant
from onnx_opt.runtime._statistics.thresholds import METHODS
from quant_models import (
    dequantized,
    grid,
    kernels,
    model_of,
    normal,
    ops,
    outputs,
    session,
    sqnr,
)

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 8, 9, 9] x) => (float[N, 8, 7, 7] y)
{ a = Conv <pads = [1, 1, 1, 1]> (x, w1)  ar = Relu (a)  b = Conv <pads = [1, 1, 1, 1]> (ar,
    w2)  br = Relu (b)
  c = Conv <pads = [1, 1, 1, 1]> (br, w3)  s = Add (ar, c)  sr = Relu (s)  d = Conv (sr,
      w4)  y = Softmax (d) }
"""
WEIGHTS = {f"w{i}": normal(8, 8, 3, 3) * np.float32(0.2) for i in (1, 2, 3, 4)}
FEEDS = {"x": normal(16, 8, 9, 9)}


def quantized(calibrated, target="cpu", **options):
    model = model_of(RESIDUAL, **WEIGHTS)
    Quant(**options).run(model, calibrated([FEEDS], target=target))
    return model


def read_by(model, output):
    """The codes that the Conv with this output reads, as the runtime computes them."""
    conv = next(
        n for n in model.graph if n.op_type == "Conv" and n.outputs[0].name == output
    )
    codes = conv.inputs[0].producer().inputs[0]
    if codes.type is None:
        codes.type = ir.TensorType(ir.DataType.UINT8)
    model = model.clone()
    value = next(v for n in model.graph for v in n.outputs if v.name == codes.name)
    value.type, value.shape = (
        ir.TensorType(ir.DataType.UINT8),
        ir.Shape(["N", 8, None, None]),
    )
    model.graph.outputs[0] = value
    return outputs(model, FEEDS)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_layers_inside_read_so_many_levels(calibrated, bits):
    model = quantized(calibrated, activation_bits=bits, ends="8")
    for codes in (read_by(model, name) for name in ("b", "c")):
        assert codes.min() == 0
        assert (
            2**bits - 2 <= codes.max() <= 2**bits - 1
        )  # the range is that of the float model
    low_ends = bits <= 4
    assert (read_by(model, "d").max() > 2**bits - 1) == low_ends


def test_the_residual_keeps_its_8_bits(calibrated):
    """`ar` is read by a Conv and by an Add, `br` by a Conv alone: one value has two grids, the
    other one.
    """
    model = quantized(calibrated, activation_bits=4)
    low_bit = [
        n.inputs[0].producer().inputs[0].name
        for n in model.graph
        if n.op_type == "Clip"
    ]
    assert set(low_bit) == {dequantized(model, "ar"), "br"}
    assert len(np.unique(outputs_of(model, "s"))) > 200


def outputs_of(model, name):
    copy = model.clone()
    value = next(v for n in copy.graph for v in n.outputs if v.name == name)
    copy.graph.outputs[0] = value
    return outputs(copy, FEEDS)


def test_integer_kernels_run_them(calibrated, tmp_path):
    found = kernels(quantized(calibrated, activation_bits=4, bits=4), tmp_path)
    assert found["QLinearConv"] == 4


def test_a_relu6_goes_into_its_codes(calibrated, tmp_path):
    """Left between a Conv and its Q, it would keep both from being one integer kernel."""
    text = RESIDUAL
    for name in ("a", "b"):
        text = text.replace(
            f"{name}r = Relu ({name})", f"{name}r = Clip ({name}, none, six)"
        )
    ends = {"none": np.float32(0), "six": np.float32(6)}
    model, whole = (model_of(text, **WEIGHTS, **ends) for _ in range(2))
    Quant(activation_bits=4).run(model, calibrated([FEEDS]))
    floats = [
        n.outputs[0].name
        for n in model.graph
        if n.op_type == "Clip" and "none" in [v.name for v in n.inputs]
    ]
    assert floats == ["ar"]  # an Add reads its 8-bit form
    assert kernels(model, tmp_path)["QLinearConv"] == 4
    Quant().run(whole, calibrated([FEEDS]))
    assert sqnr(outputs(whole, FEEDS), outputs(model, FEEDS)) > 8
    assert read_by(model, "c").max() == 15


def test_more_bits_lose_less(calibrated):
    reference = session(model_of(RESIDUAL, **WEIGHTS)).run(None, FEEDS)[0]
    found = [
        outputs(quantized(calibrated, activation_bits=bits, ends="same"), FEEDS)
        for bits in (2, 4, 6, 8)
    ]
    loss = [sqnr(reference, got) for got in found]
    assert loss == sorted(loss)
    assert loss[-1] > loss[0] + 10


def test_two_sided_values_hold_zero_exactly(calibrated):
    model = quantized(
        calibrated, activation_bits=4, ends="same", layers=("w1=int8:8:4",)
    )
    scale, zero = grid(model, "x")
    assert 0 < zero < 15
    assert read_by(model, "a").max() == 15
    np.testing.assert_allclose(scale * 15, np.ptp(FEEDS["x"]), rtol=1e-5)


def test_tensorrt_clips_signed_codes_around_zero(calibrated):
    model = quantized(calibrated, target="tensorrt", activation_bits=4, ends="same")
    ends = [
        tuple(int(v.const_value.numpy()) for v in n.inputs[1:])
        for n in model.graph
        if n.op_type == "Clip"
    ]
    assert sorted(ends) == [(-8, 7), (0, 15), (0, 15), (0, 15)]
    zeros = {
        int(n.inputs[2].const_value.numpy())
        for n in model.graph
        if n.op_type == "QuantizeLinear"
    }
    assert zeros == {0}


def test_one_layer_by_an_override(calibrated):
    model = quantized(calibrated, layers=("w3=int8:4:3",))
    assert ops(model)["Clip"] == 1
    assert read_by(model, "c").max() == 7


@pytest.mark.parametrize("form", ["blocked", "int16", "dynamic", "fp16"])
def test_forms_without_static_activations_refuse(form):
    with pytest.raises(UsageError, match="activation_bits"):
        Quant(form=form, activation_bits=4)


@pytest.mark.parametrize("text", ["int8:4:1", "int8:4:4:4", "int8:4:", "int8::4"])
def test_bits_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="no number of bits"):
        Quant(layers=(f"w1={text}",)).run(model_of(RESIDUAL, **WEIGHTS), NullContext())


def test_it_trains_as_it_runs(calibrated):
    """Gradients pass what lies within the grid, and stop at what is clipped."""
    model = quantized(calibrated, activation_bits=4, bits=4)
    pytest.importorskip("torch")
    from onnx_opt.frontends.trainable import to_torch

    module = to_torch(model, qat="fixed")
    (found,) = module.run(FEEDS).values()
    assert (
        sqnr(outputs(model, FEEDS, optimize=False), found.detach().numpy()) > 25
    )  # a few codes round the other way
    found.square().mean().backward()
    assert all(bool(p.grad.any()) for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["mse", "auto", "entropy"])
def test_fewer_levels_are_cut_shorter(method):
    bins, _ = np.histogram(
        np.abs(np.random.default_rng(0).laplace(size=200_000)), 4096, (-16, 16)
    )
    edges = np.linspace(-16, 16, 4097)
    cuts = [
        METHODS[method](bins, edges, 0.0, 12.0, 99.99, levels)[1]
        for levels in (3, 15, 255)
    ]
    assert cuts == sorted(cuts)
    assert cuts[0] < 0.7 * cuts[-1]
