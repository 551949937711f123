"""Floats that constants stand for, by the definition of DequantizeLinear and its kin."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_opt.tools._decoded import decoded
from sample_models import model_from

FORMS = {
    "one scale": ("float s = {0.5}, int8 z = {3}", "", "<>"),
    "a scale a channel": (
        "float[4] s = {1, 2, 3, 4}, int8[4] z = {0, 1, 2, 3}",
        "",
        "<axis = 0>",
    ),
    "of the last axis": ("float[6] s = {1, 2, 3, 4, 5, 6}", "no zero", "<axis = -1>"),
    "in blocks": (
        "float[4, 3] s = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}",
        "no zero",
        "<axis = 1, block_size = 2>",
    ),
    "in blocks of rows": (
        "float[2, 6] s = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}",
        "no zero",
        "<axis = 0, block_size = 2>",
    ),
}


def model_of(scales, zero, attributes):
    third = "" if zero else ", z"
    return model_from(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        one (float[n, 4] x) => (float[n, 6] y, float[4, 6] w)
        <int8[4, 6] c = {{{", ".join(map(str, range(-12, 12)))}}}, {scales}>
        {{
            w = DequantizeLinear {attributes.replace("<>", "")} (c, s{third})
            y = MatMul (x, w)
        }}
        """
    )


@pytest.mark.parametrize(("scales", "zero", "attributes"), FORMS.values(), ids=FORMS)
def test_codes_and_scales(scales, zero, attributes):
    proto = model_of(scales, zero, attributes)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    expected = ReferenceEvaluator(proto).run(["w"], feeds)[0]
    model = ir.from_proto(proto)
    reader = next(node for node in model.graph if node.op_type == "MatMul")
    weight = decoded(reader.inputs[1], reader)
    assert weight.shape == (4, 6)
    np.testing.assert_array_equal(weight.tensor.numpy(), expected)


def test_axes_as_the_reader_sees_them():
    proto = model_from(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        one (float[n, 3, 2, 4] x) => (float[n, 3, 2, 3] y)
        <float[2, 3, 4] w>
        {
            t = Transpose <perm = [1, 2, 0]> (w)
            u = Transpose (t)
            y = MatMul (x, u)
        }
        """
    )
    model = ir.from_proto(proto)
    last = list(model.graph)[-1]
    weight = decoded(last.inputs[1], last)
    stored = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    expected = stored.transpose(1, 2, 0).transpose()
    assert weight.shape == expected.shape
    seen = weight.tensor.numpy().transpose(weight.order)
    np.testing.assert_array_equal(seen, expected)
    assert not weight.is_in_order


def test_an_integer_operator_has_its_scales_itself():
    proto = model_from(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        one (float[n, 2] x) => (float[n, 3] y)
        <int8[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] s = {1, 10, 100}>
        {
            q, scale, zero = DynamicQuantizeLinear (x)
            p = MatMulInteger (q, w, zero)
            f = Cast <to = 1> (p)
            both = Mul (scale, s)
            y = Mul (f, both)
        }
        """
    )
    model = ir.from_proto(proto)
    reader = next(node for node in model.graph if node.op_type == "MatMulInteger")
    weight = decoded(reader.inputs[1], reader)
    expected = [[1, 20, 300], [4, 50, 600]]
    np.testing.assert_array_equal(weight.tensor.numpy(), expected)


def test_what_no_rule_knows_is_none():
    proto = model_from(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        one (float[n, 2] x) => (float[n, 2] y)
        <float[2, 2] w, float[2, 2] v>
        {
            u = Add (w, v)
            y = MatMul (x, u)
        }
        """
    )
    model = ir.from_proto(proto)
    last = list(model.graph)[-1]
    assert decoded(last.inputs[1], last) is None
    assert decoded(last.inputs[0], last) is None


def test_a_table_of_codes_behind_which_rows_are_scaled():
    proto = model_from(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        table (int64[n] ids) => (float[n, 3] y)
        <int8[4, 3] codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
         float[4, 1] scales = {1, 0.5, 2, 4}>
        {
            rows = Gather (codes, ids)
            floats = Cast <to = 1> (rows)
            factors = Gather (scales, ids)
            y = Mul (floats, factors)
        }
        """
    )
    model = ir.from_proto(proto)
    reader = next(node for node in model.graph if node.op_type == "Gather")
    weight = decoded(reader.inputs[0], reader)
    feeds = {"ids": np.arange(4)}
    expected = ReferenceEvaluator(proto).run(None, feeds)[0]
    np.testing.assert_array_equal(weight.tensor.numpy(), expected)
    # rows of other indices are not scaled by these
    (factors,) = (node for node in model.graph if node.outputs[0].name == "factors")
    factors.replace_input_with(1, ir.val("others", ir.DataType.INT64, [4]))
    assert decoded(reader.inputs[0], reader) is None
