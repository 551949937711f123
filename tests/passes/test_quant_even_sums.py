"""Sums of equal scales: when the three values of an Add get one, and that their codes then simply
add.
"""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core import targets
from onnx_opt.passes._quant import qparams as parameters_module
from onnx_opt.passes._quant.layers import find_layers
from onnx_opt.passes._quant.placement import place
from onnx_opt.passes._quant.qparams import assign
from onnx_opt.passes.quant import Quant
from quant_models import dequantized, model_of, normal, session, sqnr

CPU = targets.TARGETS["cpu"].quant
NET = """
<ir_version: 10, opset_import: ["" : 17]>
net (float[N, 8, 6, 6] x) => (float[N, 8, 3, 3] y)
{
    a = Conv (x, w1)  ar = Relu (a)
    b = Conv (ar, w2)  s = Add (b, ar)  sr = Relu (s)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (sr)
    c = Conv (m, w3)  y = Softmax (c)
}
"""
WEIGHTS = {name: normal(8, 8, 1, 1, scale=0.3) for name in ("w1", "w2", "w3")}


def widths(rules=CPU, **ranges):
    """255 times the scale that each value gets."""
    graph = model_of(NET, **WEIGHTS).graph
    layers, _ = find_layers(graph, rules, (), ())
    placement = place(graph, layers, rules)
    given = {"x": (-1.0, 1.0), "c": (-1.0, 1.0), "m": (0.0, ranges["sr"][1]), **ranges}
    found = assign(placement, {v: given[v.name] for v in placement.quantized}, rules)
    return {
        v.name: (round(float(p.scale) * 255, 3), p.zero_point) for v, p in found.items()
    }


@pytest.mark.parametrize(
    ("ar", "b", "sr"),
    [(4.0, (-1.0, 3.0), 5.0), (2.0, (-2.0, 2.0), 4.0), (4.0, (-6.0, 6.0), 4.0)],
)
def test_ranges_too_far_apart_stay(ar, b, sr):
    found = widths(ar=(0.0, ar), b=b, sr=(0.0, sr))
    assert [found[name][0] for name in ("ar", "b", "sr", "m")] == [
        ar,
        b[1] - b[0],
        sr,
        sr,
    ]


def test_near_ranges_become_one_scale_with_zero_points_of_their_own():
    found = widths(ar=(0.0, 4.2), b=(-1.2, 3.2), sr=(0.0, 5.1))
    assert found["ar"] == found["sr"] == (5.1, 0)
    assert found["b"] == (5.1, 60)


def test_what_is_moved_behind_a_sum_keeps_its_scale():
    found = widths(ar=(0.0, 5.1), b=(-1.2, 3.2), sr=(0.0, 4.5))
    assert found["m"] == found["sr"] == (5.1, 0)


def test_symmetric_grids_too():
    found = widths(
        targets.TARGETS["tensorrt"].quant, ar=(0.0, 4.2), b=(-4.3, 3.2), sr=(0.0, 5.0)
    )
    assert found["ar"] == found["b"] == found["sr"] == (round(5 / 127 * 255, 3), 0)


def net():
    """B is 0.15 or -0.9 times ar, by channel: the ranges of ar, b and sr are about R, 1.05 R and
    1.15 R.
    """
    share = np.array([0.15, -0.9] * 4, np.float32).reshape(8, 1, 1, 1)
    one = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    gain = np.linspace(0.83, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    return model_of(NET, w1=one * gain, w2=one * share, w3=WEIGHTS["w3"])


STEP = np.float32(6 / 255)
FEEDS = {
    "x": np.random.default_rng(5).integers(-127, 129, (32, 8, 6, 6)).astype(np.float32)
    * STEP
}


def quantized(calibrated, feeds):
    model = net()
    Quant(calibration="minmax").run(model, calibrated([feeds]))
    return model


def values_of(model, *names):
    """What a model computes under these names."""
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.clear()
    for name in names:
        values[name].type, values[name].shape = (
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape(["N", 8, 6, 6]),
        )
        model.graph.outputs.append(values[name])
    return session(model, optimize=False).run(None, FEEDS)


def test_codes_add_without_rounding(calibrated):
    model = quantized(calibrated, FEEDS)
    left, right, total = values_of(
        model, *(dequantized(model, name) for name in ("ar", "b", "sr"))
    )
    assert total.max() > 1
    np.testing.assert_allclose(
        total, np.clip(left + right, 0, total.max()), atol=1e-5
    )  # the top code saturates


def test_less_is_lost(calibrated, monkeypatch):
    (reference,) = values_of(net(), "sr")
    model = quantized(calibrated, FEEDS)
    even = sqnr(reference, *values_of(model, dequantized(model, "sr")))
    monkeypatch.setattr(
        parameters_module, "with_even_sums", lambda placement, scales, shared: scales
    )
    model = quantized(calibrated, FEEDS)
    own = sqnr(reference, *values_of(model, dequantized(model, "sr")))
    assert even > own + 0.5
