"""quant: what it must leave alone, the exact numbers it writes, and the kernels that ONNX Runtime
makes of them.
"""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core import targets
from onnx_opt.passes._core.provenance import float_layer, float_weight
from onnx_opt.passes._quant import calibrate as calibrate_module
from onnx_opt.passes.quant import Quant
from quant_models import (
    CHAIN,
    CHAIN_WEIGHTS,
    everywhere,
    grid,
    initial,
    kernels,
    model_of,
    normal,
    ops,
    session,
    sqnr,
)

MLP = """
<ir_version: 10, opset_import: ["" : 17]>
mlp (float[N, 64] x) => (float[N, 16] y)
{ h = MatMul (x, w1)  hb = Add (h, b1)  r = Relu (hb)  y = Gemm <transB = 1> (r, w2, b2) }
"""

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 17]>
residual (float[N, 3, 12, 12] x) => (float[N, 4] y)
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
    sum = Add (c2, r1)
    r2 = Relu (sum)
    mean = ReduceMean <axes = [2, 3], keepdims = 0> (r2)
    y = Gemm <transB = 1> (mean, w3, b3)
}
"""


def mlp():
    return model_of(
        MLP,
        w1=normal(64, 128, scale=0.1),
        b1=normal(128),
        w2=normal(16, 128, scale=0.1),
        b2=normal(16),
    )


def residual():
    return model_of(
        RESIDUAL,
        w1=normal(8, 3, 3, 3, scale=0.2),
        b1=normal(8, scale=0.1),
        w2=normal(8, 8, 3, 3, scale=0.1),
        b2=normal(8, scale=0.1),
        w3=normal(4, 8),
        b3=normal(4),
    )


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        (
            '<ir_version: 10, opset_import: ["" : 17]> '
            "g (float[2, 4] x, float[4, 4] w) => (float[2, 4] y) "
            "<float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> { y = MatMul (x, w) }",
            {},
            "an input of the model",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> '
            "g (double[2, 4] x) => (double[2, 3] y) { y = MatMul (x, w) }",
            {"w": np.ones((4, 3))},
            "DOUBLE",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> '
            "g (float[2, 4] x) => (float[2, 3] y) { y = MatMul (x, w) }",
            {"w": np.ones((4, 3), np.float32)},
            "too few",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> '
            "g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) "
            "{ c = Conv (x, w)  s = Sigmoid (c)  y = Relu (s) }",
            {"w": np.ones((1, 1, 1, 1), np.float32)},
            "needs calibrated ranges",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> g (float[8, 2] x) => (float[2, 3] y) '
            "{ y = Gemm <transA = 1> (x, w) }",
            {"w": np.ones((8, 3), np.float32)},
            "transA",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> '
            "g (float[3, 2, 9] x) => (float[3, 2, 5] y) { y = MatMul (x, w) }",
            {"w": np.ones((3, 9, 5), np.float32)},
            "rank 3",
        ),
        (
            '<ir_version: 10, opset_import: ["" : 17]> g (float[5, 1, 4] x) => (float[1, 1, 2] h) '
            "{ s, h = LSTM <hidden_size = 2> (x, w, r) }",
            {"w": normal(1, 8, 4), "r": normal(1, 8, 2)},
            "its 48 weights are too few",
        ),
    ],
)
def test_declines_with_the_reason(text, weights, reason):
    model = model_of(text, **weights)
    before = ir.to_proto(model).SerializeToString()
    outcome = Quant().run(model, NullContext())
    assert outcome.changed == 0
    assert reason in outcome.declined[0].reason
    assert ir.to_proto(model).SerializeToString() == before


def test_attention_products_are_not_layers():
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 2] y) '
        "{ t = Transpose <perm = [1, 0]> (x)  y = MatMul (x, t) }"
    )
    outcome = Quant().run(model, NullContext())
    assert (outcome.changed, outcome.declined) == (0, [])


@pytest.mark.parametrize("target", ["cuda", "coreml"])
def test_targets_without_integers_get_float16_and_say_so(target):
    model = mlp()
    context = NullContext(target=target)
    outcome = Quant().run(model, context)
    assert outcome.unit == "nodes"
    assert outcome.changed > 0
    assert any("quant(fp16) was done instead" in str(each) for each in context.warnings)


def test_integers_that_were_chosen_are_declined_on_cuda_not_made_slower():
    for chosen in (Quant(bits=4), Quant(form="dynamic")):
        outcome = chosen.run(mlp(), NullContext(target="cuda"))
        assert outcome.changed == 0
        assert "no int8" in outcome.declined[0].reason


def test_unknown_form_is_a_usage_error():
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        Quant(form="int")


def test_second_run_changes_nothing(calibrated):
    feeds = [{"x": normal(4, 3, 12, 12)}]
    model = residual()
    Quant().run(model, calibrated(feeds))
    before = ir.to_proto(model).SerializeToString()
    outcome = Quant().run(model, calibrated(feeds))
    assert outcome.changed == 0
    assert ir.to_proto(model).SerializeToString() == before
    assert {d.reason for d in outcome.declined} == {"already quantized"}


def test_numbers_of_one_layer(calibrated):
    """Weights, scales, zero points and bias are the definition's, to the last bit."""
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[N, 2] x) => (float[N, 2] y) { y = Gemm (x, w, b) }",
        w=np.array([[1.27, -2.13], [0.0, 4.0]], np.float32),
        b=np.array([0.5, -1.0], np.float32),
    )
    Quant(rounding="nearest").run(
        model, calibrated([{"x": np.array([[-1.0, 4.1]], np.float32)}])
    )
    x_scale = np.float32(5.1 / 255)
    np.testing.assert_array_equal(initial(model, "w_q"), [[127, -68], [0, 127]])
    scales = np.array([1.27 / 127, 4.0 / 127], np.float32)
    np.testing.assert_allclose(grid(model, "w_q")[0], scales, rtol=1e-6)
    np.testing.assert_allclose(grid(model, "x")[0], x_scale, rtol=1e-6)
    assert grid(model, "x")[1] == 50
    bias_scale = grid(model, "x")[0] * grid(model, "w_q")[0]
    np.testing.assert_array_equal(grid(model, "b_q")[0], bias_scale)
    np.testing.assert_array_equal(
        initial(model, "b_q"), np.rint([0.5, -1.0] / bias_scale).astype(np.int32)
    )


def test_weights_that_lie_on_a_coarser_grid_are_kept_exactly(calibrated):
    """2 and 4 are 63 and 126 steps: with the largest code 127, 2 would be none."""
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[N, 2] x) => (float[N, 1] y) { y = MatMul (x, w) }",
        w=np.array([[-2.0], [4.0]], np.float32),
    )
    Quant(rounding="nearest").run(
        model, calibrated([{"x": np.array([[-1.0, 4.1]], np.float32)}])
    )
    np.testing.assert_array_equal(initial(model, "w_q"), [[-63], [126]])


@pytest.mark.usefixtures("one_term")
def test_every_heavy_op_of_a_residual_net_becomes_an_integer_kernel(
    calibrated, tmp_path
):
    model = residual()
    original = session(model)
    feeds = [{"x": normal(8, 3, 12, 12)}]
    outcome = Quant().run(model, calibrated(feeds))
    assert outcome.stats["layers"] == 3
    found = kernels(model, tmp_path)
    assert found["QLinearConv"] == 2
    assert (
        found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
    )
    assert not {"Conv", "Gemm", "FusedConv", "DequantizeLinear"} & set(found)
    wanted = original.run(None, feeds[0])[0]
    assert all(sqnr(wanted, got) > 25 for got in everywhere(model, feeds[0]))


@pytest.mark.parametrize("effective", [True, False])
def test_a_sum_that_a_relu_cuts_is_read_to_its_floor_only(
    calibrated, monkeypatch, effective
):
    """relu(c2 + r1): what lies below -r1 needs no code, so the range of c2 starts at -max(r1) at
    the lowest.
    """
    if not effective:
        monkeypatch.setattr(
            calibrate_module,
            "with_effective_values",
            lambda model, placement: (model, {}),
        )
    model = residual()
    weight = model.graph.initializers["b2"]
    weight.const_value = ir.Tensor(np.full(8, -50, np.float32), name="b2")
    feeds = {"x": normal(8, 3, 12, 12)}
    original = session(model).run(None, feeds)[0]
    Quant(calibration="minmax").run(model, calibrated([feeds]))
    (quantize,) = [
        n
        for n in model.graph
        if n.op_type == "QuantizeLinear" and n.inputs[0].name == "c2"
    ]
    scale, zero = (float(v.const_value.numpy()) for v in quantize.inputs[1:])
    assert (-scale * zero > -20) == effective
    assert not effective or sqnr(original, session(model).run(None, feeds)[0]) > 25


def test_relu_folds_into_a_zero_point_of_zero(calibrated):
    model = residual()
    Quant().run(model, calibrated([{"x": normal(8, 3, 12, 12)}]))
    for node in model.graph:
        if node.op_type == "Relu":
            (use,) = node.outputs[0].uses()
            assert use.node.op_type == "QuantizeLinear"
            assert use.node.inputs[2].const_value.numpy() == 0
            assert node.inputs[0].producer().op_type in ("Conv", "Add")


def test_logits_and_float_consumers_stay_float(calibrated):
    model = mlp()
    Quant().run(model, calibrated([{"x": normal(8, 64)}]))
    assert model.graph.outputs[0].producer().op_type == "Gemm"
    assert ops(model)["QuantizeLinear"] == 2  # x and the Relu between the layers


CONCAT = """
<ir_version: 10, opset_import: ["" : 17]>
concat (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] z)
{{
    a = Conv (x, wa)   ar = {first} (a)
    b = Conv (x, wb)   br = Relu (b)
    both = Concat <axis = 1> (ar, br)
    y = Conv (both, wc)
    z = Sigmoid (y)
}}
"""


def concat_parameters(first, wb, calibrated):
    model = model_of(
        CONCAT.format(first=first), wa=normal(4, 4, 1, 1), wb=wb, wc=normal(4, 8, 1, 1)
    )
    Quant().run(model, calibrated([{"x": normal(4, 4, 8, 8)}]))
    (node,) = [n for n in model.graph if n.op_type == "Concat"]
    (after,) = node.outputs[0].uses()
    return {v.producer().inputs[1].name for v in node.inputs} | {
        after.node.inputs[1].name
    }


def test_concat_shares_parameters(calibrated):
    assert len(concat_parameters("Relu", normal(4, 4, 1, 1), calibrated)) == 1


def test_concat_of_unlike_ranges_keeps_them_apart(calibrated):
    assert (
        len(concat_parameters("Relu", normal(4, 4, 1, 1, scale=100.0), calibrated)) > 1
    )
    assert len(concat_parameters("LeakyRelu", normal(4, 4, 1, 1), calibrated)) > 1


def excluded_between(calibrated, with_rules, guard):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    chain (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] z)
    { a = Conv (x, w1, b1)  ar = Relu (a)  m = Conv (ar, w2, b2)  mr = Relu (m)  c = Conv (mr,
        w3, b3)
      z = Softmax (c) }
    """
    w2 = (
        normal(8, 8, 1, 1)
        * np.geomspace(1e-3, 1.0, 8, dtype=np.float32)[:, None, None, None]
    )
    model = model_of(
        text,
        w1=normal(8, 8, 1, 1),
        b1=normal(8),
        w2=w2,
        b2=normal(8, scale=1e-3),
        w3=normal(8, 8, 1, 1),
        b3=normal(8),
    )
    if not guard:
        with_rules(guard_float=False)
    feeds = {"x": normal(4, 8, 8, 8)}
    Quant(exclude=("w2",)).run(model, calibrated([feeds]))
    return sqnr(
        session(model, optimize=False).run(None, feeds)[0],
        session(model).run(None, feeds)[0],
    )


@pytest.mark.needs("onnxruntime", "1.23", "older ones quantize none by themselves")
def test_an_excluded_layer_is_kept_from_the_runtimes_own_quantization(
    calibrated, with_rules, tmp_path
):
    guarded = excluded_between(calibrated, with_rules, guard=True)
    assert guarded > excluded_between(calibrated, with_rules, guard=False) + 3


def test_bias_that_would_overflow_widens_its_channel(calibrated):
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[N, 2] x) => (float[N, 2] y) { y = Gemm (x, w, b) }",
        w=np.array([[1e-9, 1.0], [1e-9, 1.0]], np.float32),
        b=np.array([1000.0, 1.0], np.float32),
    )
    feeds = {"x": np.array([[0.001, 0.001]], np.float32)}
    Quant().run(model, calibrated([feeds]))
    assert np.abs(initial(model, "b_q").astype(np.int64)).max() <= 2**30
    np.testing.assert_allclose(
        session(model).run(None, feeds)[0], [[1000.0, 1.002]], rtol=1e-3
    )


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((2, 2), np.float32),
        np.full((2, 2), 1e-40, np.float32),
        np.array([[1e6, 1e-6], [1.0, 0.0]], np.float32),
    ],
)
@pytest.mark.parametrize(
    "feed", [np.zeros((1, 2), np.float32), np.full((1, 2), 1e-30, np.float32)]
)
def test_degenerate_weights_and_activations_stay_finite(calibrated, weight, feed):
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[N, 2] x) => (float[N, 2] y) { y = Gemm (x, w, b) }",
        w=weight,
        b=np.array([0.5, 0.0], np.float32),
    )
    Quant().run(model, calibrated([{"x": feed}]))
    got = session(model).run(None, {"x": feed})[0]
    assert np.isfinite(got).all()
    resolution = (
        1e-2 + np.abs(weight).max() / 127
    )  # an int32 bias can be no finer than one step of its channel
    np.testing.assert_allclose(got, [[0.5, 0.0]], atol=resolution)


@pytest.mark.usefixtures("one_term")
def test_pruned_weights_stay_exactly_zero(calibrated):
    model = residual()
    for name in ("w1", "w2", "w3"):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        flat = np.abs(array).reshape(-1)
        array.reshape(-1)[np.argsort(flat, kind="stable")[: flat.size // 2]] = 0
        value.const_value = ir.Tensor(array, name=name)
    Quant().run(model, calibrated([{"x": normal(8, 3, 12, 12)}]))
    for name in ("w1", "w2", "w3"):
        quantized = initial(model, f"{name}_q")
        assert np.count_nonzero(quantized == 0) == quantized.size // 2


def test_rounding_keeps_outputs_better_than_the_nearest_integers_do(calibrated):
    """Correlated inputs: what one weight loses another makes up for."""
    mixing = normal(64, 64)
    feeds = [{"x": normal(64, 64) @ mixing * np.float32(0.1)} for _ in range(4)]
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[N, 64] x) => (float[N, 16] y) { y = MatMul (x, w) }"
    )
    errors = {}
    for rounding in ("nearest", "gptq"):
        model = model_of(
            text, w=np.random.default_rng(3).normal(size=(64, 16)).astype(np.float32)
        )
        expected = session(model).run(None, feeds[0])[0]
        Quant(bits=4, ends="same", rounding=rounding, smooth=False).run(
            model, calibrated(feeds)
        )
        errors[rounding] = sqnr(expected, session(model).run(None, feeds[0])[0])
    assert errors["gptq"] > errors["nearest"] + 3


def test_passes_inside_tell_what_they_did_and_declined(calibrated):
    """A Conv whose padding follows its input is quantized, but `gptq` cannot round it."""
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y)
    { n = Identity (x)  a = Conv (n, w1)  b = Conv <auto_pad = "SAME_UPPER"> (a, w2)
      y = Softmax (b) }
    """
    model = model_of(text, w1=normal(8, 8, 1, 1), w2=normal(8, 8, 3, 3))
    outcome = Quant().run(model, calibrated([{"x": normal(2, 8, 6, 6)}]))
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("Conv b", "smooth, gptq: its padding follows its input's size (auto_pad)")
    ]
    stats = ("layers", "simplified", "smoothed", "rounded")
    assert [outcome.stats[key] for key in stats] == [2, 1, 0, 1]


def test_each_layer_knows_in_memory_what_it_was_made_of(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 64] y)
    { h = Gemm <transB = 1> (x, w1)  [last] y = MatMul (h, w2) }
    """
    model = model_of(text, w1=normal(64, 64), w2=normal(64, 64))
    feeds = [{"x": normal(4, 64)}]
    Quant(layers=("w1=dynamic",)).run(model, calibrated(feeds))
    model = model.clone()
    found = {n.op_type: float_layer(n) for n in model.graph if float_layer(n)}
    assert found == {
        "MatMulInteger": ("h", "Gemm h"),
        "MatMul": ("last", "MatMul last"),
    }
    stored = model.graph.initializers
    assert float_weight(stored["w1_q"]) == "w1"
    assert float_weight(stored["w2_q"]) == "w2"
    proto = ir.to_proto(model)
    assert not any(holder.metadata_props for holder in proto.graph.node)


def test_without_data_matmuls_quantize_their_input_at_run_time(tmp_path):
    model = mlp()
    original = session(model)
    outcome = Quant().run(model, NullContext())
    assert outcome.stats["layers"] == 1
    assert "too few" in outcome.declined[0].reason
    assert kernels(model, tmp_path)["DynamicQuantizeMatMul"] == 1
    feeds = {"x": normal(8, 64)}
    assert all(
        sqnr(original.run(None, feeds)[0], got) > 35 for got in everywhere(model, feeds)
    )


def test_one_run_time_quantizer_serves_every_reader():
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    qkv (float[N, S, 64] x) => (float[N, S, 64] y)
    { q = MatMul (x, wq)  k = MatMul (x, wk)  x2 = Reshape (x, flat)  v = Gemm <transB = 1> (x2, wv)
      z = Add (q, k)  v3 = Reshape (v, shape)  y = Mul (z, v3) }
    """
    model = model_of(
        text,
        wq=normal(64, 64),
        wk=normal(64, 64),
        wv=normal(64, 64),
        flat=np.array([-1, 64]),
        shape=np.array([2, -1, 64]),
    )
    original = session(model)
    Quant().run(model, NullContext())
    assert ops(model)["DynamicQuantizeLinear"] == 2
    assert ops(model)["MatMulInteger"] == 3
    feeds = {"x": normal(2, 5, 64)}
    assert all(
        sqnr(original.run(None, feeds)[0], got) > 30 for got in everywhere(model, feeds)
    )


def test_layers_inside_branches_are_quantized_too():
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    branch (bool c, float[N, 64] x) => (float[N, 64] y)
    { y = If (c) <then_branch = t () => (float[N, 64] a) { a = MatMul (x, w) },
                  else_branch = e () => (float[N, 64] b) { b = Identity (x) }> }
    """
    model = model_of(text, w=normal(64, 64))
    original = session(model)
    outcome = Quant().run(model, NullContext())
    assert outcome.stats["layers"] == 1
    assert "w" not in model.graph.initializers
    feeds = {"c": np.array(True), "x": normal(3, 64)}
    assert sqnr(original.run(None, feeds)[0], session(model).run(None, feeds)[0]) > 30


def unpacked_chain():
    """The chain with alpha * sign(w) in place of its middle weight: what `binary` must compute."""
    w = CHAIN_WEIGHTS["w2"]
    alpha = (
        np.abs(w)
        .mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
        .astype(np.float32)
    )
    return model_of(CHAIN, **{**CHAIN_WEIGHTS, "w2": np.where(w >= 0, alpha, -alpha)})


def test_binary_float_equals_the_unpacked_weights():
    model = model_of(CHAIN, **CHAIN_WEIGHTS)
    outcome = Quant(form="binary").run(model, NullContext())
    assert outcome.stats["layers"] == 1
    assert initial(model, "w2_packed").nbytes == 7 * 8 * 9 // 8
    feeds = {"x": normal(4, 3, 9, 9)}
    expected = session(unpacked_chain()).run(None, feeds)[0]
    np.testing.assert_array_equal(session(model).run(None, feeds)[0], expected)


@pytest.mark.needs("onnxruntime", "1.23", "older ones do not fold constants first")
def test_binary_with_data_runs_in_integer_kernels(calibrated, tmp_path):
    feeds = {"x": normal(4, 3, 9, 9)}
    model = model_of(CHAIN, **CHAIN_WEIGHTS)
    Quant(form="binary").run(model, calibrated([feeds]))
    found = kernels(model, tmp_path)
    assert found["QLinearConv"] == 2
    assert "Gather" not in found
    assert initial(model, "w2_packed").dtype == np.uint8
    expected = session(unpacked_chain()).run(None, feeds)[0]
    assert all(sqnr(expected, got) > 20 for got in everywhere(model, feeds))


def test_opset_is_raised_where_per_channel_needs_it(calibrated):
    model = model_of(
        '<ir_version: 7, opset_import: ["" : 11]> g (float[N, 3, 8, 8] x) => (float[N, 4] y) '
        "{ c = Conv (x, w1)  m = GlobalAveragePool (c)  s = Squeeze <axes = [2, 3]> "
        "(m)  y = Gemm (s, w2) }",
        w1=normal(8, 3, 3, 3),
        w2=normal(8, 4),
    )
    Quant().run(model, calibrated([{"x": normal(2, 3, 8, 8)}]))
    assert model.opset_imports[""] >= 13
    assert ops(model)["QuantizeLinear"] >= 2
    session(model)


@pytest.mark.parametrize("target", ["tensorrt", "generic"])
def test_other_targets_follow_their_table(calibrated, target):
    model = residual()
    original = session(model)
    feeds = {"x": normal(4, 3, 12, 12)}
    Quant().run(model, calibrated([feeds], target=target))
    rules = targets.TARGETS[target].quant
    zero_points = [
        n.inputs[2].const_value.numpy()
        for n in model.graph
        if n.op_type == "QuantizeLinear"
    ]
    assert {z.dtype.name for z in zero_points} == {rules.activation}
    if rules.symmetric:
        assert not any(z.any() for z in zero_points)
        assert all(
            n.inputs[2].const_value is not None
            for n in model.graph
            if n.op_type == "Conv"
        )  # bias stays float
    assert (
        sqnr(
            original.run(None, feeds)[0],
            session(model, optimize=False).run(None, feeds)[0],
        )
        > 20
    )
