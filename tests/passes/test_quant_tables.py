"""Tables of rows in 8 bits: embeddings, and the heads that are tied to them."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.quant import Quant
from quant_models import model_of, normal, ops, outputs, sqnr

IDS = {"ids": np.array([[3, 0, 199, -1], [7, 7, 50, 2]], np.int64)}

EMBEDDING = """
<ir_version: 10, opset_import: ["" : 21]>
text (int64[N, L] ids) => (float[N, L, 16] y) {
    y = Gather (table, ids)
}
"""

TIED = """
<ir_version: 10, opset_import: ["" : 21]>
lm (int64[N, L] ids) => (float[N, L, 200] logits) {
    h = Gather (table, ids)
    a = MatMul (h, w)
    b = Add (a, h)
    t = Transpose <perm = [1, 0]> (table)
    logits = MatMul (b, t)
}
"""


def quantized(model, **options):
    model = model.clone()
    outcome = Quant(**options).run(model, NullContext())
    return outcome, model


def tied(width=64):
    return model_of(
        TIED, table=normal(200, width, scale=0.3), w=normal(width, width, scale=0.1)
    )


def test_rows_have_a_scale_each_and_stay_within_half_a_step():
    table = normal(200, 16) * np.linspace(0.01, 100, 200, dtype=np.float32)[:, None]
    model = model_of(EMBEDDING, table=table)
    outcome, result = quantized(model)
    assert ops(result) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert outcome.changed == outcome.stats["tables"] == 1
    assert outcome.stats["weights_8_bit"] == 200 * 16
    got = outputs(result, IDS)
    expected = outputs(model, IDS)
    step = np.abs(expected).max(axis=-1, keepdims=True) / 127
    assert (np.abs(got - expected) <= step * 0.501).all()
    assert [value.name for value in result.graph.outputs] == ["y"]


@pytest.mark.parametrize("options", [{}, {"form": "blocked"}], ids=str)
def test_a_tied_head_shares_the_rows(options):
    model = tied()
    outcome, result = quantized(model, **options)
    codes = [
        tuple(value.shape)
        for value in result.graph.initializers.values()
        if value.dtype == ir.DataType.INT8
    ]
    assert sorted(codes) == [(64, 64), (200, 64)]
    assert outcome.declined == []
    assert outcome.stats["weights"] == 200 * 64 + 64 * 64
    got = outputs(result, IDS)
    assert sqnr(outputs(model, IDS), got) > 30


def test_a_tied_head_keeps_8_bits_where_blocks_have_4():
    outcome, _ = quantized(tied(), form="blocked", bits=4)
    assert outcome.stats["weights_8_bit"] == 200 * 64
    assert outcome.stats["weights_4_bit"] == 64 * 64


def test_tables_stay_float_where_asked():
    outcome, result = quantized(tied(), tables="float")
    assert "tables" not in outcome.stats
    assert [d.where for d in outcome.declined] == ["table"]
    assert "table" in result.graph.initializers


def test_a_table_that_a_float_layer_reads_too_stays():
    outcome, result = quantized(tied(), exclude=("logits",))
    assert "table" in result.graph.initializers
    (reason,) = [d.reason for d in outcome.declined if d.where == "table"]
    assert reason.startswith("Transpose t reads it too")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (normal(100, 4), "its 400 numbers in 100 rows are too few to pay for scales"),
        (np.full((200, 16), np.nan, np.float32), "it holds NaN or infinity"),
    ],
    ids=["small", "nan"],
)
def test_declined(table, reason):
    text = EMBEDDING.replace("16", str(table.shape[1]))
    outcome, _ = quantized(model_of(text, table=table))
    assert [(d.where, d.reason) for d in outcome.declined] == [("table", reason)]


def test_rows_in_a_subgraph():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    text (int64[N, L] ids, bool c) => (float[N, L, 16] y) {
        y = If (c) <
            then_branch = yes () => (r) { r = Gather (table, ids) },
            else_branch = no () => (s) { g = Gather (table, ids)
                                         s = Neg (g) }
        >
    }
    """
    model = model_of(text, table=normal(200, 16))
    outcome, result = quantized(model)
    assert outcome.stats["tables"] == 1
    assert "table" not in result.graph.initializers
    feeds = {**IDS, "c": np.array(False)}
    assert sqnr(outputs(model, feeds), outputs(result, feeds)) > 35


def test_tensorrt_keeps_tables_in_float():
    model = model_of(EMBEDDING, table=normal(200, 16))
    outcome = Quant().run(model, NullContext(target="tensorrt"))
    assert "table" in model.graph.initializers
    assert [d.where for d in outcome.declined] == ["table"]
