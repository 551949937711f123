"""Recurrent layers in quant: integers for an LSTM, 8-bit weights for the others."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._base import LatencyRatio, NullContext
from onnx_opt.passes._core.saturation import neighbours, offending
from onnx_opt.passes.quant import Quant
from quant_models import model_of, normal, ops, outputs, sqnr

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN = 24, 32


def text(op, attributes="", more=""):
    return f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[T, N, {INPUTS}] x) => (float[T, D, N, {HIDDEN}] y, float[D, N, {HIDDEN}] h) {{
        y, h = {op} <hidden_size = {HIDDEN}{attributes}> (x, w, r, b{more})
    }}
    """


def model(op="LSTM", attributes="", directions=1, scale=0.2):
    rows = GATES[op] * HIDDEN
    return model_of(
        text(op, attributes),
        w=normal(directions, rows, INPUTS, scale=scale),
        r=normal(directions, rows, HIDDEN, scale=scale),
        b=normal(directions, 2 * rows, scale=scale),
    )


def quantized(float_model, target="cpu", **options):
    result = float_model.clone()
    context = NullContext(target=target)
    return Quant(**options).run(result, context), result


def feeds():
    return {"x": normal(9, 2, INPUTS)}


@pytest.mark.parametrize(
    ("attributes", "directions"),
    [("", 1), (', direction = "reverse"', 1), (', direction = "bidirectional"', 2)],
    ids=["forward", "reverse", "both"],
)
def test_an_lstm_runs_in_integers(attributes, directions):
    before = model("LSTM", attributes, directions)
    outcome, after = quantized(before)
    assert ops(after) == {"DynamicQuantizeLSTM": 1}
    weights = directions * 4 * HIDDEN * (INPUTS + HIDDEN)
    assert (outcome.changed, outcome.declined) == (1, [])
    assert outcome.stats["weights_8_bit"] == outcome.stats["weights"] == weights
    assert [value.name for value in after.graph.outputs] == ["y", "h"]
    fed = feeds()
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 28


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_others_read_8_bit_weights(op):
    before = model(op)
    outcome, after = quantized(before)
    assert ops(after) == {op: 1, "Cast": 2, "Mul": 2}
    assert (outcome.changed, outcome.declined) == (1, [])
    fed = feeds()
    assert sqnr(outputs(before, fed), outputs(after, fed)) > 35


@pytest.mark.parametrize("options", [{"form": "blocked"}, {"kernel": "float"}], ids=str)
def test_forms_without_integer_kernels_store_8_bits(options):
    _, after = quantized(model(), **options)
    assert ops(after) == {"LSTM": 1, "Cast": 2, "Mul": 2}


def test_no_pair_saturates_where_any_cpu_may_run_it():
    # weights of one size: without the limit every pair would
    before = model()
    for name in ("w", "r"):
        value = before.graph.initializers[name]
        signs = np.sign(value.const_value.numpy()) * np.float32(0.3)
        value.const_value = ir.Tensor(signs, name=name)
    for target, is_limited in (("cpu", True), ("cpu-vnni", False)):
        _, after = quantized(before, target)
        codes = after.graph.initializers["w_q"].const_value.numpy()
        rows = codes.swapaxes(1, 2).reshape(-1, INPUTS)
        saturates = offending(rows, neighbours(INPUTS)).any()
        assert saturates != is_limited


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({}, {"exclude": ("y",)}, "matched by exclude"),
        ({}, {"layers": ("y=float",)}, "matched by exclude"),
        ({"scale": np.nan}, {}, "weight 'w' holds NaN or infinity"),
    ],
    ids=["exclude", "layers", "nan"],
)
def test_declined(changes, options, reason):
    outcome, after = quantized(model(**changes), **options)
    assert ops(after) == {"LSTM": 1}
    assert [(d.where, d.reason) for d in outcome.declined] == [("LSTM y", reason)]


def test_a_target_without_such_kernels_that_folds_nothing_declines():
    outcome, _ = quantized(model(), "tensorrt")
    assert [d.reason for d in outcome.declined] == ["the target has no int8 LSTM"]


class SlowIntegers(NullContext):
    """A context in which a model with an integer LSTM takes twice the time of any other."""

    def latency_ratio(self, model, other, limit=1.0):
        took = [2.0 if "DynamicQuantizeLSTM" in ops(m) else 1.0 for m in (model, other)]
        ratio = took[1] / took[0]
        return LatencyRatio(ratio, ratio, ratio)


def test_an_lstm_that_is_slower_in_integers_has_8_bit_weights_all_the_same():
    after = model()
    outcome = Quant().run(after, SlowIntegers())
    assert ops(after) == {"LSTM": 1, "Cast": 2, "Mul": 2}
    assert outcome.changed == 1
    (declined,) = outcome.declined
    assert declined.where == "LSTM y"
    assert declined.reason.startswith("in int8 it took 2.00")
