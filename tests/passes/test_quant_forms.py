"""Every form of quant: what is stored, which kernels ONNX Runtime makes of it, and that packing
changes no bit.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.options import options_of
from onnx_opt.passes._quant import packing
from onnx_opt.passes._quant import weight_codes as quant_codes
from onnx_opt.passes._quant.schemes import FORMS
from onnx_opt.passes.quant import Quant
from quant_models import CHAIN_WEIGHTS as WEIGHTS
from quant_models import (
    FEEDS,
    chain,
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

LOW_BIT = {
    "4 bits": {"bits": 4},
    "3 bits": {"bits": 3},
    "2 bits": {"bits": 2},
    "ternary": {"form": "ternary"},
    "twn": {"form": "ternary", "fit": "mean"},
    "binary": {"form": "binary"},
    "2 planes": {"form": "binary", "planes": 2},
    "3 planes": {"form": "binary", "planes": 3},
    "3 planes, mean": {"form": "binary", "planes": 3, "fit": "mean"},
}
STORED_BYTES = {  # of the 504 weights of w2
    "4 bits": 252,
    "3 bits": 252,
    "2 bits": 101,
    "ternary": 101,
    "twn": 101,
    "binary": 63,
    "2 planes": 126,
    "3 planes": 189,
    "3 planes, mean": 189,
}


def plainly(monkeypatch):
    """Store all codes as int8 from here on."""

    def plain(inserter, stem, tensor, before, *rest, **more):
        return inserter.initializer(f"{stem}_q", tensor)

    monkeypatch.setattr(quant_codes, "packed_weight", plain)
    monkeypatch.setitem(quant_codes.STORES, "auto", plain)


@pytest.mark.parametrize("name", LOW_BIT)
@pytest.mark.needs("onnxruntime", "1.23", "older ones do not fold constants first")
def test_packed_weights_run_in_integer_kernels_and_equal_plain_int8(
    name, calibrated, tmp_path, monkeypatch
):
    packed = chain()
    Quant(**LOW_BIT[name], smooth=False).run(packed, calibrated([FEEDS]))
    found = kernels(packed, tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (2, 1)
    assert not {"Conv", "Gemm", "Gather", "Cast", "Mul", "ReduceSum"} & set(found)
    stored = [
        v.const_value.nbytes
        for v in packed.graph.initializers.values()
        if v.name.startswith(("w2_packed", "w2_int4"))
    ]
    assert stored == [STORED_BYTES[name]]
    plainly(monkeypatch)
    plain = chain()
    Quant(**LOW_BIT[name], smooth=False).run(plain, calibrated([FEEDS]))
    assert "w2_q" in plain.graph.initializers
    for optimize in (True, False):
        np.testing.assert_array_equal(
            outputs(packed, FEEDS, optimize), outputs(plain, FEEDS, optimize)
        )


@pytest.mark.parametrize("name", LOW_BIT)
def test_packed_weights_run_in_float_kernels_too(name, tmp_path):
    model = chain()
    Quant(**LOW_BIT[name], kernel="float").run(model, NullContext())
    found = kernels(model, tmp_path)
    assert found["Conv"] + found["FusedConv"] == 2
    assert not {"Gather", "Cast", "Mul", "DequantizeLinear", "QLinearConv"} & set(found)
    stored = next(name for name in model.graph.initializers if name.startswith("w2_"))
    (scale,) = grid(model, stored)
    tapped = model.clone()
    (mul,) = [
        n
        for n in tapped.graph
        if n.op_type == "Mul" and np.array_equal(n.inputs[1].const_value.numpy(), scale)
    ]
    mul.outputs[0].type, mul.outputs[0].shape = (
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape([7, 8, 3, 3]),
    )
    tapped.graph.outputs.append(mul.outputs[0])
    w2 = session(tapped).run([mul.outputs[0].name], FEEDS)[0]
    codes = w2 / scale.astype(np.float64)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
    assert ((WEIGHTS["w2"] - w2) ** 2).sum() < (WEIGHTS["w2"] ** 2).sum() * 0.4


def test_eight_bits_stored_for_float_kernels(tmp_path):
    model = chain()
    Quant(kernel="float").run(model, NullContext())
    assert initial(model, "w2_q").dtype == np.int8
    assert kernels(model, tmp_path)["FusedConv"] + kernels(model, tmp_path)["Conv"] == 2
    assert sqnr(outputs(chain(), FEEDS), outputs(model, FEEDS)) > 35


@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_without_data_low_bit_layers_run_in_float_and_matmuls_of_8_bit_at_run_time(
    form,
):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    mlp (float[N, 64] x) => (float[N, 64] y)
    { h = MatMul (x, w1)  r = Relu (h)  k = MatMul (r, w2)  s = Relu (k)
      y = Gemm <transB = 1> (s, w3) }
    """
    model = model_of(text, w1=normal(64, 64), w2=normal(64, 64), w3=normal(64, 64))
    Quant(form=form).run(model, NullContext())
    assert ops(model)["MatMulInteger"] == 2
    assert "w2_packed" in model.graph.initializers
    model = model_of(text, w1=normal(64, 64), w2=normal(64, 64), w3=normal(64, 64))
    Quant(form=form, kernel="int8", ends="same").run(model, NullContext())
    assert ops(model)["MatMulInteger"] == 3
    session(model)


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"bits": 2}, {"form": "binary", "kernel": "int8"}]
)
def test_at_run_time_a_transposed_gemm_is_packed_the_other_way_round(
    options, monkeypatch
):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 65] y) { y = Gemm <transB = 1> (x, w, b) }
    """
    weights = {"w": normal(65, 64), "b": normal(65)}
    feeds = {"x": normal(8, 64)}
    got = []
    for _ in range(2):
        model = model_of(text, **weights)
        Quant(**options, ends="same").run(model, NullContext())
        assert ops(model)["MatMulInteger"] == 1
        got.append(outputs(model, feeds))
        plainly(monkeypatch)
    np.testing.assert_array_equal(*got)
    assert sqnr(outputs(model_of(text, **weights), feeds), got[0]) > 3


def test_dynamic_quantizes_at_run_time_even_with_data(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  y = Relu (h) }
    """
    model = model_of(text, w=normal(64, 64))
    Quant(form="dynamic").run(model, calibrated([{"x": normal(8, 64)}]))
    assert ops(model)["DynamicQuantizeLinear"] == 1
    assert ops(model)["QuantizeLinear"] == 0


def test_seven_bits_leave_headroom_in_the_products(calibrated):
    model = chain()
    Quant(bits=7).run(model, calibrated([FEEDS]))
    for name in ("w1_q", "w2_q", "w3_q"):
        assert np.abs(initial(model, name).astype(int)).max() == 63


@pytest.mark.parametrize(
    ("target", "reason"),
    [("cpu", "fuses no 16-bit"), ("tensorrt", "no 16-bit"), ("cuda", "no int8")],
)
def test_16_bit_activations_are_declined_where_they_do_not_pay(
    target, reason, calibrated
):
    outcome = Quant(form="int16").run(chain(), calibrated([FEEDS], target=target))
    assert outcome.changed == 0
    assert reason in outcome.declined[0].reason


def on_a_grid(weight):
    """The weight rounded to whole numbers up to 63, so that integers store it exactly."""
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    return np.rint(weight / largest * 63).astype(np.float32)


def test_16_bit_activations_are_finer(calibrated):
    """Weights lose nothing here: the distance is that of the activations."""
    weights = {name: on_a_grid(WEIGHTS[name]) for name in ("w1", "w2", "w3")}
    feeds, drifts = [FEEDS], {}
    for form in ("int8", "int16"):
        model = chain(**weights)
        Quant(form=form).run(model, calibrated(feeds, target="generic"))
        drifts[form] = sqnr(
            outputs(chain(**weights), FEEDS), outputs(model, FEEDS, optimize=False)
        )
    types = {n.inputs[2].dtype for n in model.graph if n.op_type == "QuantizeLinear"}
    assert types == {ir.DataType.UINT16}
    assert model.opset_imports[""] == 21
    assert drifts["int16"] > drifts["int8"] + 20


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.needs("onnxruntime", "1.26", "older ones do not fuse it")
def test_blocked_leaves_activations_float(bits, tmp_path):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 64] x) => (float[N, 32] y) { h = MatMul (x, w)  y = Relu (h) }
    """
    weights = {"w": normal(64, 32)}
    model = model_of(text, **weights)
    outcome = Quant(form="blocked", bits=bits, block=16).run(model, NullContext())
    assert outcome.stats["layers"] == 1
    assert kernels(model, tmp_path)["MatMulNBits"] == 1
    feeds = {"x": normal(8, 64)}
    assert sqnr(outputs(model_of(text, **weights), feeds), outputs(model, feeds)) > (
        17 if bits == 4 else 35
    )


def test_blocked_weights_are_for_cuda_too():
    model = model_of(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 32] y) '
        "{ y = MatMul (x, w) }",
        w=normal(64, 32),
    )
    assert (
        Quant(form="blocked", bits=4)
        .run(model, NullContext(target="cuda"))
        .stats["layers"]
        == 1
    )


def test_half_precision_is_of_the_whole_model():
    model = chain()
    outcome = Quant(form="fp16").run(model, NullContext())
    assert outcome.changed > 0
    assert initial(model, "w2").dtype == np.float16
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    with pytest.raises(UsageError, match="of all nodes alike"):
        Quant(form="fp16", layers=("w2=float",))


def test_a_kernel_is_chosen_only_where_there_are_two():
    with pytest.raises(UsageError, match="no choice of kernels"):
        Quant(form="blocked", kernel="float")


def test_every_form_of_the_option_is_in_the_table():
    assert set(options_of(Quant)[0].choices) == set(FORMS)


@pytest.mark.parametrize(("ends", "w1"), [("8", "w1_q"), ("same", "w1_packed")])
def test_first_and_last_layer_stay_at_8_bit_unless_asked(ends, w1, calibrated):
    model = chain()
    Quant(form="binary", ends=ends).run(model, calibrated([FEEDS]))
    assert w1 in model.graph.initializers
    assert "w2_packed" in model.graph.initializers


def test_the_ends_of_a_dynamic_net_are_dynamic_too(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    mlp (float[N, 64] x) => (float[N, 64] y)
    { h = MatMul (x, w1)  r = Relu (h)  k = MatMul (r, w2)  s = Relu (k)  y = MatMul (s, w3) }
    """
    model = model_of(text, w1=normal(64, 64), w2=normal(64, 64), w3=normal(64, 64))
    Quant(form="dynamic", bits=4).run(model, calibrated([{"x": normal(4, 64)}]))
    assert ops(model)["MatMulInteger"] == 3
    assert initial(model, "w1_q").dtype == initial(model, "w3_q").dtype == np.int8
    assert "w2_int4" in model.graph.initializers
    assert (
        Quant(form="dynamic", bits=4)
        .run(model, calibrated([{"x": normal(4, 64)}]))
        .changed
        == 0
    )


def test_opset_21_only_where_the_stored_type_needs_it(calibrated):
    for options, opset in (
        ({}, 17),
        ({"bits": 2}, 17),
        ({"form": "binary"}, 17),
        ({"bits": 4}, 21),
    ):
        model = chain()
        Quant(**options).run(model, calibrated([FEEDS]))
        assert model.opset_imports[""] == opset


def test_the_opset_also_suits_layers_that_simplify_uncovers(calibrated):
    text = """
    <ir_version: 8, opset_import: ["" : 14]>
    m (float[n, 8] x) => (float[n, 8] y)
    <float half = {0.5}>
    {
        a = MatMul (x, w1)
        w = Mul (w2, half)
        b = MatMul (a, w)
        y = MatMul (b, w3)
    }
    """
    weights = {name: normal(8, 8) for name in ("w1", "w2", "w3")}
    model = model_of(text, **weights)
    Quant(bits=4).run(model, calibrated([{"x": normal(4, 8)}]))
    assert model.opset_imports[""] == 21
    assert outputs(model, {"x": normal(4, 8)}).shape == (4, 8)


def test_a_shared_weight_is_stored_once(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y)
    { a = Conv (x, w1)  ar = Relu (a)  b = Conv (ar, w)  br = Relu (b)
      c = Conv (br, w)  cr = Relu (c)
      d = Conv (cr, w4)  y = Softmax (d) }
    """
    model = model_of(
        text, w1=normal(8, 8, 1, 1), w=normal(8, 8, 1, 1), w4=normal(8, 8, 1, 1)
    )
    Quant(form="binary").run(model, calibrated([{"x": normal(2, 8, 6, 6)}]))
    assert [n for n in model.graph.initializers if n.startswith("w_packed")] == [
        "w_packed"
    ]
    session(model)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "binary"},
        {"form": "ternary"},
        {"bits": 4},
        {"form": "binary", "planes": 2},
    ],
)
def test_a_channel_of_zeros_stays_zero(options, calibrated):
    w2 = WEIGHTS["w2"].copy()
    w2[3] = 0
    model = chain(w2=w2)
    Quant(**options).run(model, calibrated([FEEDS]))
    relu = next(
        n for n in model.graph if n.op_type == "Relu" and n.outputs[0].name == "mr"
    )
    tapped = model.clone()
    tapped.graph.outputs.append(
        next(
            n for n in tapped.graph if n.outputs and n.outputs[0].name == "mr"
        ).outputs[0]
    )
    got = session(tapped, optimize=False).run(["mr"], FEEDS)[0][:, 3]
    assert relu.inputs[0].name == "m"
    np.testing.assert_allclose(got, np.maximum(WEIGHTS["b2"][3], 0), atol=0.02)


@pytest.mark.usefixtures("one_term")
def test_no_redundant_types_are_written(calibrated):
    """Types of unpacked weights and between Q and DQ are the reader's to infer; those of the net
    stay.
    """
    model = chain()
    Quant(form="binary", smooth=False).run(model, calibrated([FEEDS]))
    proto = ir.to_proto(model)
    initializers = {t.name for t in proto.graph.initializer}
    typed = {v.name for v in proto.graph.value_info} - initializers
    made_by = {o: n.op_type for n in proto.graph.node for o in n.output}
    assert {made_by[name] for name in typed} <= {
        "Conv",
        "Relu",
        "GlobalAveragePool",
        "Flatten",
        "DequantizeLinear",
    }
    assert not any(
        n.name
        for n in proto.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear", "Gather")
    )
    assert len(
        [
            n
            for n in proto.graph.node
            if n.op_type == "DequantizeLinear" and n.output[0] in typed
        ]
    ) == len([n for n in proto.graph.node if n.op_type == "QuantizeLinear"])


@pytest.mark.needs("onnxruntime", "1.23", "older ones do not fold constants first")
def test_packed_convs_leave_their_bias_to_the_runtime(calibrated, tmp_path, with_rules):
    """ONNX Runtime makes the float bias of a Conv the same int32 that we would store."""
    lean = chain()
    Quant(form="binary").run(lean, calibrated([FEEDS]))
    assert "b2" in lean.graph.initializers
    with_rules(quantizes_bias=())
    whole = chain()
    Quant(form="binary").run(whole, calibrated([FEEDS]))
    assert "b2_q" in whole.graph.initializers
    np.testing.assert_array_equal(outputs(lean, FEEDS), outputs(whole, FEEDS))
    assert kernels(lean, tmp_path) == kernels(whole, tmp_path)


def test_trits_are_packed_five_to_a_byte():
    assert packing.pack_trits(np.array([-1, 0, 1, 1, -1, 1])).tolist() == [
        0 + 3 + 2 * 9 + 2 * 27,
        2,
    ]
    table = packing.trit_table()
    assert table.shape == (243, 5)
    assert packing.pack_trits(table).tolist() == list(range(243))


def test_int4_is_read_back_by_the_reference_of_onnx():
    model = chain()
    Quant(bits=4, kernel="float", ends="same").run(model, NullContext())
    tensor = onnx.helper.make_tensor  # the stored bytes, decoded by onnx itself
    stored = next(
        t for t in ir.to_proto(model).graph.initializer if t.name == "w2_int4"
    )
    assert stored.data_type == onnx.TensorProto.INT4
    assert tensor is not None
    values = onnx.numpy_helper.to_array(stored).astype(np.int32)
    (scale,) = grid(model, "w2_int4")
    np.testing.assert_array_equal(
        values, np.clip(np.rint(WEIGHTS["w2"] / scale), -7, 7)
    )
