"""Layers in bodies of If and Loop: integers with ranges that calibration reads inside of them."""

import numpy as np
import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import graphs_of
from onnx_opt.passes.quant import Quant
from quant_models import model_of, normal, ops, outputs, sqnr

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
branches (float[N, 16, 12] x, bool c) => (float[N, 16, 12] y)
{
    y = If (c) <
        then_branch = yes () => (float[N, 16, 12] a) {
            h = Conv <pads = [1, 1]> (x, w1)
            r = Relu (h)
            p = Conv <pads = [1, 1]> (r, w2)
            a = Neg (p)
        },
        else_branch = no () => (float[N, 16, 12] b) {
            h = Conv <pads = [1, 1]> (x, v1)
            r = Relu (h)
            s = Abs (r)
            p = Conv <pads = [1, 1]> (s, v2)
            b = Neg (p)
        }
    >
}
"""
TURNS = """
<ir_version: 8, opset_import: ["" : 17]>
turns (float[N, 64] x, int64 n) => (float[N, 64] y)
<bool go = {1}>
{
    y = Loop (n, go, x) <body = turn (int64 i, bool k, float[N, 64] s)
            => (bool k2, float[N, 64] s2) {
        k2 = Identity (k)
        h = Gemm (s, w1)
        r = Relu (h)
        p = Gemm (r, w2)
        s2 = Add (p, s)
    }>
}
"""


def branches():
    weights = {name: normal(16, 16, 3, scale=0.2) for name in ("w1", "w2", "v1", "v2")}
    return model_of(BRANCHES, **weights)


def feeds_of(*taken):
    # what the branches read differs in size, too
    return [
        {"x": normal(8, 16, 12, scale=1 + 9 * c), "c": np.array(c)}
        for c in taken
        for _ in range(4)
    ]


def quantized(model, data, **options):
    result = model.clone()
    context = CalibratedContext(data) if data else NullContext()
    outcome = Quant(rounding="nearest", **options).run(result, context)
    return outcome, result


class Recording(CalibratedContext):
    """Notes of what ranges were asked."""

    def __init__(self, data):
        super().__init__(data)
        self.asked = set()

    def activation_ranges(self, model, names, *options):
        self.asked.update(names)
        return super().activation_ranges(model, names, *options)


def ops_by_graph(model):
    return [[node.op_type for node in graph] for graph in graphs_of(model)]


def test_without_data_convs_of_branches_stay_float():
    before = branches()
    outcome, after = quantized(before, [])
    assert outcome.changed == 0
    assert ops(after) == ops(before)


def test_both_branches_are_calibrated():
    before = branches()
    outcome, after = quantized(before, feeds_of(True, False))
    assert outcome.stats["layers"] == 4
    main, *inner = ops_by_graph(after)
    assert main == ["If"]
    # what comes from outside is quantized inside, where it is read
    assert [graph[:2] for graph in inner] == [
        ["QuantizeLinear", "DequantizeLinear"]
    ] * 2
    for taken in (True, False):
        (fed,) = feeds_of(taken)[:1]
        assert sqnr(outputs(before, fed), outputs(after, fed)) > 25


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_never_taken_stays_float_and_says_so(taken):
    before = branches()
    outcome, after = quantized(before, feeds_of(taken))
    assert outcome.stats["layers"] == 2
    left = "else_branch" if taken else "then_branch"
    reasons = [d.reason for d in outcome.declined if "ranges" in d.reason]
    assert (
        reasons
        == [
            "Conv needs calibrated ranges, and no calibration sample entered "
            f"{left} of If y"
        ]
        * 2
    )
    fed = feeds_of(not taken)[0]
    # sums of floats in another order
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 100
    fed = feeds_of(taken)[0]
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 25


def test_larger_weights_of_a_branch_never_taken_have_8_bits():
    weights = {name: normal(32, 32, 3, scale=0.2) for name in ("w1", "w2", "v1", "v2")}
    before = model_of(BRANCHES.replace("16, 12", "32, 12"), **weights)
    data = [{"x": normal(8, 32, 12), "c": np.array(True)}]
    outcome, after = quantized(before, data)
    assert outcome.stats["weights_8_bit"] == 4 * 32 * 32 * 3
    reasons = [d.reason for d in outcome.declined if "ranges" in d.reason]
    assert (
        reasons
        == [
            "Conv needs calibrated ranges, and no calibration sample entered "
            "else_branch of If y; its weights have 8 bits"
        ]
        * 2
    )
    fed = {"x": normal(8, 32, 12), "c": np.array(False)}
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 35


def test_the_body_of_a_loop():
    before = model_of(TURNS, w1=normal(64, 64, scale=0.1), w2=normal(64, 64, scale=0.1))
    data = [{"x": normal(8, 64), "n": np.array(n)} for n in (1, 3, 3, 2)]
    outcome, after = quantized(before, data, smooth=False)
    assert outcome.stats["layers"] == 2
    _, body = ops_by_graph(after)
    assert body.count("QuantizeLinear") >= 2
    assert "DynamicQuantizeLinear" not in body
    fed = {"x": normal(8, 64), "n": np.array(3)}
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 25


def test_a_loop_that_never_turns_is_quantized_at_run_time():
    before = model_of(TURNS, w1=normal(64, 64, scale=0.1), w2=normal(64, 64, scale=0.1))
    data = [{"x": normal(8, 64), "n": np.array(0)}]
    outcome, after = quantized(before, data, smooth=False)
    assert outcome.stats["layers"] == 2
    assert "DynamicQuantizeLinear" in ops_by_graph(after)[1]


def test_relu_cut_sums_are_read_to_their_floor_in_a_body():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 16, 12] x, bool c) => (float[N, 16, 12] y) {
        y = If (c) <
            then_branch = yes () => (float[N, 16, 12] a) {
                s = Conv <pads = [1, 1]> (x, w1)
                t = Relu (s)
                h = Conv <pads = [1, 1]> (t, w2)
                g = Add (h, t)
                r = Relu (g)
                p = Conv <pads = [1, 1]> (r, w3)
                a = Neg (p)
            },
            else_branch = no () => (float[N, 16, 12] b) { b = Identity (x) }
        >
    }
    """
    weights = {name: normal(16, 16, 3, scale=0.2) for name in ("w1", "w2", "w3")}
    before = model_of(text, **weights)
    context = Recording(feeds_of(True))
    after = before.clone()
    assert Quant(rounding="nearest").run(after, context).stats["layers"] == 3
    assert "y:then_branch:h_effective" in context.asked
    fed = feeds_of(True)[0]
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 25


def test_weights_of_branches_are_rounded_by_data():
    before = branches()
    mixing = normal(16, 16)
    # inputs that depend on each other, which rounding makes use of
    data = [{**fed, "x": mixing.T @ fed["x"] * 0.1} for fed in feeds_of(True, False)]
    kept = {}
    for rounding in ("nearest", "gptq"):
        after = before.clone()
        quant = Quant(bits=4, ends="same", rounding=rounding, measure=False)
        outcome = quant.run(after, CalibratedContext(data))
        kept[rounding] = [
            sqnr(outputs(before, fed), outputs(after, fed))
            for fed in (data[0], data[-1])
        ]
    assert outcome.stats["rounded"] == 4
    for nearest, by_data in zip(*kept.values(), strict=True):
        assert by_data > nearest + 1
