"""Images in two terms: what gets them, the numbers they hold, and what the runtime makes of
them.
"""

import numpy as np
import onnx_ir as ir
import pytest
from integer_graphs import run_integers
from integer_kernels import ARITHMETICS
from onnx_opt.passes.quant import Quant
from quant_models import (
    CHAIN,
    CHAIN_WEIGHTS,
    grid,
    initial,
    kernels,
    model_of,
    normal,
    ops,
    outputs,
    session,
    sqnr,
)

ONE = """
<ir_version: 10, opset_import: ["" : 17]>
one (float[N, {channels}, 8, 8] x) => (float[N, 8, 6, 6] y) {{ c = Conv <{group}> (x,
    w)  y = Softmax (c) }}
"""


def one(channels, group=1):
    text = ONE.format(channels=channels, group=f"group = {group}")
    return model_of(text, w=normal(8, channels // group, 3, 3)), {
        "x": normal(4, channels, 8, 8)
    }


@pytest.mark.parametrize(("channels", "group"), [(5, 1), (4, 4), (4, 2)])
def test_many_channels_and_groups_are_read_once(calibrated, channels, group):
    model, feeds = one(channels, group)
    Quant().run(model, calibrated([feeds]))
    assert initial(model, "w_q").shape == (8, channels // group, 3, 3)
    assert not {"Sub", "Concat", "Pad"} & set(ops(model))


@pytest.mark.parametrize("target", ["tensorrt", "generic"])
def test_other_targets_read_once(calibrated, target):
    model, feeds = one(3)
    Quant().run(model, calibrated([feeds], target=target))
    assert ops(model)["QuantizeLinear"] == 2


def test_values_of_int8_layers_and_of_two_readers_are_read_once(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 8, 9, 9] x, float[N, 3, 9, 9] z) => (float[N, 4, 7, 7] y)
    { a = Conv (x, w1)  b = Conv (a, w2)  c = Conv (z, w3)  d = Conv (z, w4)  cd = Add (c, d)
      bc = Add (b, cd)  y = Softmax (bc) }
    """
    weights = {
        "w1": normal(3, 8, 1, 1),
        "w2": normal(4, 3, 3, 3),
        "w3": normal(4, 3, 3, 3),
        "w4": normal(4, 3, 3, 3),
    }
    model = model_of(text, **weights)
    Quant(include=("w*",)).run(
        model, calibrated([{"x": normal(2, 8, 9, 9), "z": normal(2, 3, 9, 9)}])
    )
    assert [initial(model, f"w{i}_q").shape[1] for i in (1, 2, 3, 4)] == [8, 3, 3, 3]


SOUND = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 1, 64] x) => (float[N, 8, 58] y) { a = Conv (x, w1)  ar = Relu (a)  b = Conv (ar,
    w2)  y = Softmax (b) }
"""


@pytest.mark.parametrize(("asked", "first"), [((), "w1"), (("w1=int8",), "w1_q")])
def test_a_signal_of_one_dimension_stays_float_unless_asked(calibrated, asked, first):
    model = model_of(SOUND, w1=normal(8, 1, 5), w2=normal(8, 8, 3))
    outcome = Quant(layers=asked).run(model, calibrated([{"x": normal(4, 1, 64)}]))
    assert first in model.graph.initializers
    assert any(
        "reads the input's 1 channels" in d.reason for d in outcome.declined
    ) == (not asked)
    assert "Sub" not in ops(model)


SPECTRUM = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 32, 20] y) {
    p = Pad <mode = "reflect"> (x, pads)
    u = Unsqueeze (p, one)
    a = Conv <strides = [2]> (u, w1)
    re = Slice (a, zero, half, one)
    im = Slice (a, half, all, one)
    s = Mul (re, im)
    b = Conv (s, w2)
    y = Neg (b)
}
"""


def test_a_signal_that_is_only_moved_about_stays_float_on_8_bit_weights(calibrated):
    """As a spectrum of sound reads it; a channel of zeros has no scale of its own."""
    w1 = normal(64, 1, 32)
    w1[3] = 0
    pads = np.array([0, 4, 0, 4])
    slices = {name: np.array([n]) for name, n in (("zero", 0), ("half", 32))}
    model = model_of(
        SPECTRUM,
        w1=w1,
        w2=normal(32, 32, 2, scale=0.1),
        pads=pads,
        one=np.array([1]),
        all=np.array([64]),
        **slices,
    )
    before = model.clone()
    feeds = {"x": normal(4, 64)}
    outcome = Quant().run(model, calibrated([feeds]))
    (reason,) = [d.reason for d in outcome.declined if "8 bits" in d.reason]
    assert reason == (
        "it reads the input's 1 channels: float is as fast there, and keeps the input's "
        "precision; its weights have 8 bits"
    )
    assert initial(model, "w1_q").dtype == np.int8
    assert sqnr(outputs(before, feeds), outputs(model, feeds)) > 30


def test_packed_weights_are_read_once(calibrated):
    """A 16th of a 4-bit code is nothing."""
    model, feeds = one(3)
    Quant(bits=4, ends="same").run(model, calibrated([feeds]))
    assert "Sub" not in ops(model)


@pytest.mark.parametrize(("channels", "read"), [(1, 4), (2, 4), (3, 8), (4, 8)])
def test_numbers(calibrated, channels, read):
    """Each code and a 16th of it, zeros; and an input that is exact to half a step of the second
    term.
    """
    model, feeds = one(channels)
    weight = initial(model, "w")
    Quant(rounding="nearest", calibration="minmax").run(model, calibrated([feeds]))
    codes, (scale, _) = initial(model, "w_q"), grid(model, "x")
    assert codes.shape == (8, read, 3, 3)
    first = np.rint(weight / grid(model, "w_q")[0][:, None, None, None])
    np.testing.assert_array_equal(codes[:, : 2 * channels : 2], first)
    room = 128 - np.abs(
        first
    )  # both terms of a channel meet in one instruction, which must not saturate
    np.testing.assert_array_equal(
        codes[:, 1 : 2 * channels : 2], np.clip(np.rint(first / 16), -room, room)
    )
    assert not codes[:, 2 * channels :].any()
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    terms = conv.inputs[0]
    terms.name, terms.type, terms.shape = (
        "terms",
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape(["N", read, 8, 8]),
    )
    model.graph.outputs[0] = terms
    got = outputs(model, feeds)
    value = got[:, : 2 * channels : 2] + got[:, 1 : 2 * channels : 2] / 16
    np.testing.assert_allclose(value, feeds["x"], atol=scale / 32 * 1.01)
    assert not got[:, 2 * channels :].any()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_rest_has_room_on_both_sides_of_zero(calibrated, sign):
    """The remainder is signed even where the image is not: a zero point of 0 would cut half of it
    off.
    """
    model, _ = one(3)
    feeds = {"x": np.abs(normal(4, 3, 8, 8)) * np.float32(sign)}
    Quant(calibration="minmax").run(model, calibrated([feeds]))
    assert grid(model, "x")[1] == (8 if sign > 0 else 247)


def first_conv(model):
    """The model with its first Conv's values for output, before they are quantized."""
    conv = next(node for node in model.graph if node.op_type == "Conv")
    value = conv.outputs[0]
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 8, 7, 7])
    model.graph.outputs[0] = value
    return model


def test_one_integer_kernel_that_loses_less(calibrated, tmp_path, monkeypatch):
    """The kernel alone: layers behind it may lose more than it gained."""
    feeds = {"x": normal(8, 3, 9, 9)}
    reference = outputs(first_conv(model_of(CHAIN, **CHAIN_WEIGHTS)), feeds)

    def quantized():
        model = model_of(CHAIN, **CHAIN_WEIGHTS)
        assert Quant().run(model, calibrated([feeds])).stats["layers"] == 3
        return model

    found = kernels(model := quantized(), tmp_path)
    assert found["QLinearConv"] == 2
    assert not {"Conv", "FusedConv"} & set(found)
    twice = [
        sqnr(reference, run_integers(first_conv(model), feeds, way)[0])
        for way in ARITHMETICS
    ]
    monkeypatch.setattr(
        "onnx_opt.passes._quant.plan.in_two_terms",
        lambda placement, packed, rules: set(),
    )
    once = sqnr(reference, run_integers(first_conv(quantized()), feeds, "exact")[0])
    assert min(twice) > once + 2.5


def test_another_reader_keeps_the_image_as_it_is(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y, float[N, 3, 8, 8] z)
    { c = Conv (x, w)  y = Softmax (c)  z = Exp (x) }
    """
    model, feeds = model_of(text, w=normal(8, 3, 3, 3)), {"x": normal(2, 3, 8, 8)}
    Quant().run(model, calibrated([feeds]))
    np.testing.assert_allclose(
        session(model).run(["z"], feeds)[0], np.exp(feeds["x"]), rtol=1e-5
    )
