"""Requirements: the oldest ONNX Runtime by opset, IR version, domains and the nodes that it
lacks.
"""

import onnx
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.requirements import IR_VERSIONS, OPSETS, requirements_of
from sample_models import model_from


def of(body="y = Relu (x)", opset=13, ir_version=7, weights="", imports=""):
    declared = f"<{weights}>" if weights else ""
    return requirements_of(
        ir.from_proto(
            model_from(
                f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]> g '
                f"(float[4] x) => (float[N] y) {declared} "
                f"{{ {body} }}"
            )
        )
    )


@pytest.mark.parametrize(
    ("opset", "ir_version", "release", "because"),
    [
        (13, 7, "1.15", "the oldest tried"),
        (9, 4, "1.15", "the oldest tried"),
        (19, 9, "1.15", "the oldest tried"),
        (20, 9, "1.17", "opset 20"),
        (21, 10, "1.18", "opset 21"),
        (13, 10, "1.18", "IR version 10"),
        (22, 10, "1.21", "opset 22"),
        (23, 11, "1.23", "opset 23"),
        (21, 11, "1.23", "IR version 11"),
        (24, 12, "1.24", "opset 24"),
        (25, 13, "1.24", "opset 25"),
        (26, 13, "1.25", "opset 26"),
        (28, 14, "1.32", "opset 28"),
        (99, 14, None, "opset 99"),
        (13, 99, None, "IR version 99"),
    ],
)
def test_by_versions(opset, ir_version, release, because):
    model = ir.Model(
        ir.Graph([], [], nodes=[], opset_imports={"": opset}), ir_version=ir_version
    )
    found = requirements_of(model)
    assert found.as_dict() == {
        "opset": opset,
        "ir_version": ir_version,
        "onnxruntime": release,
        "because": because,
    }


@pytest.mark.parametrize(
    ("body", "weights", "release", "because"),
    [
        (
            "c = Cast <to = 3> (w) f = Cast <to = 1> (c) y = Mul (x, f)",
            "int4[4] w = {1, 2, 3, 4}",
            "1.23",
            "Cast from INT4",
        ),
        (
            "c = Cast <to = 3> (w) f = Cast <to = 1> (c) y = Mul (x, f)",
            "uint4[4] w = {1, 2, 3, 4}",
            "1.23",
            "Cast from INT4",
        ),
        (
            "f = DequantizeLinear <block_size = 2, axis = 0> (w, s) y = Mul (x, f)",
            "int8[4] w = {1, 2, 3, 4}, float[2] s = {1, 2}",
            "1.19",
            "DequantizeLinear in blocks",
        ),
        (
            "f = DequantizeLinear <block_size = 0, axis = 0> (w, s) y = Mul (x, f)",
            "int8[4] w = {1, 2, 3, 4}, float[4] s = {1, 2, 1, 1}",
            "1.18",
            "opset 21",
        ),
        (
            "f = DequantizeLinear (w, s) y = Mul (x, f)",
            "int4[4] w = {1, 2, 3, 4}, float s = {1}",
            "1.19",
            "tensors of INT4",
        ),
    ],
)
def test_by_nodes(body, weights, release, because):
    found = of(body, 21, 10, weights)
    assert (found.onnxruntime, found.because) == (release, because)


def test_what_was_not_tried_is_not_known():
    found = of(
        "a = com.microsoft.Gelu (x) b = own.Thing (a) y = Relu (b)",
        imports=', "com.microsoft" : 1, "own" : 1',
    )
    assert (found.onnxruntime, found.because) == (None, "operators of com.microsoft")
    assert (
        of(imports=', "com.microsoft" : 1').onnxruntime == "1.15"
    )  # imported, not used
    assert (
        of("y = ai.onnx.ml.Binarizer (x)", imports=', "ai.onnx.ml" : 4').onnxruntime
        == "1.17"
    )


def test_an_integer_lstm_runs_on_the_oldest_release():
    found = of(
        "y = com.microsoft.DynamicQuantizeLSTM (x)", imports=', "com.microsoft" : 1'
    )
    assert found.onnxruntime == "1.15"


def test_a_fused_attention_runs_from_the_release_that_was_tried():
    found = of(
        "y = com.microsoft.MultiHeadAttention <num_heads = 1> (x, x, x)",
        imports=', "com.microsoft" : 1',
    )
    assert (found.onnxruntime, found.because) == (
        "1.23",
        "MultiHeadAttention of com.microsoft",
    )


def test_functions_are_of_no_foreign_domain():
    text = """<ir_version: 8, opset_import: ["" : 13, "own" : 1]>
    g (float[4] x) => (float[4] y) { y = own.Thing (x) }
    <domain: "own", opset_import: ["" : 13]>
    Thing (a) => (b) { b = Relu (a) }"""
    assert (
        requirements_of(ir.from_proto(onnx.parser.parse_model(text))).onnxruntime
        == "1.15"
    )


def test_a_function_of_the_model_is_none_of_the_runtime():
    text = """<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>
    g (float[4] x) => (float[4] y) { y = com.microsoft.MultiHeadAttention (x) }
    <domain: "com.microsoft", opset_import: ["" : 13]>
    MultiHeadAttention (a) => (b) { b = Relu (a) }"""
    assert (
        requirements_of(ir.from_proto(onnx.parser.parse_model(text))).onnxruntime
        == "1.15"
    )


def test_a_model_without_standard_operators():
    model = ir.Model(
        ir.Graph([], [], nodes=[], opset_imports={"ai.onnx.ml": 3}), ir_version=8
    )
    assert requirements_of(model).as_dict() == {
        "opset": None,
        "ir_version": 8,
        "onnxruntime": "1.15",
        "because": "the oldest tried",
    }


@pytest.mark.parametrize("table", [OPSETS, IR_VERSIONS])
def test_newer_versions_need_newer_releases(table):
    assert [table[number] for number in sorted(table)] == sorted(set(table.values()))
