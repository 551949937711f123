"""Packed codes: the order of bits and nibbles, exact unpacking in ONNX Runtime, and folding at
load.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_opt.passes._core.graph import Names
from onnx_opt.passes._core.lazy import DerivedTensor
from onnx_opt.passes._quant.inserter import Inserter
from onnx_opt.passes._quant.packing import (
    SIGNS,
    int4_weight,
    nibble_table,
    nibble_weight,
    pack_nibbles,
    pack_signs,
    packed_weight,
    sign_table,
)

ADDS = """
<ir_version: 10, opset_import: ["" : 21]>
adds (float[{dims}] x) => (float[{dims}] y)
{{
    y = Identity (x)
}}
"""


def signs_weight(inserter, stem, codes, before):
    return packed_weight(inserter, stem, codes, before, SIGNS)


def model_adding(codes, dims, count=1, store=signs_weight):
    """Y = x + unpacked codes, `count` times, as a checked model."""
    text = ADDS.format(dims=", ".join(map(str, dims)))
    model = ir.from_proto(onnx.parser.parse_model(text))
    graph, names = model.graph, Names(model)
    last = graph.node(0)
    total = graph.inputs[0]
    for _ in range(count):
        weight = store(Inserter(graph, names), "w", codes, last)
        cast = ir.node("Cast", [weight], {"to": 1})
        add = ir.node("Add", [total, cast.outputs[0]])
        for node in (cast, add):
            node.outputs[0].name = names.fresh(node.op_type)
            graph.insert_before(last, node)
        total = add.outputs[0]
    last.replace_input_with(0, total)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, weight


def run(proto, x, **options):
    session_options = ort.SessionOptions()
    for key, value in options.items():
        setattr(session_options, key, value)
    session = ort.InferenceSession(
        proto.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def test_bit_order_and_the_sign_of_zero():
    signs = np.array([1, -1, -1, 0.0, -0.0, -2, 3, -1, -5, 7], np.float32)
    assert pack_signs(signs).tolist() == [0b01011001, 0b00000010]


def test_table_is_the_inverse_of_packing():
    table = sign_table()
    assert table.dtype == np.int8
    assert table.shape == (256, 8)
    assert pack_signs(table).tolist() == list(range(256))


def test_nibble_order_and_the_code_of_what_is_not_there():
    codes = np.array([-8, 7, 0, -1, 5], np.int8)
    assert pack_nibbles(codes).tolist() == [0xF0, 0x78, 0x0D]
    assert pack_nibbles(codes.astype(np.float32)).tolist() == [0xF0, 0x78, 0x0D]


def test_the_nibble_table_is_the_inverse_of_packing():
    table = nibble_table()
    assert table.dtype == np.int8
    assert table.shape == (256, 2)
    assert pack_nibbles(table).tolist() == list(range(256))


@pytest.mark.parametrize("dims", [(8,), (1,), (3, 5), (2, 3, 3, 3), (7, 1, 9)])
def test_nibbles_are_the_codes_that_int4_holds_bit_for_bit(dims):
    codes = np.random.default_rng(0).integers(-8, 8, dims).astype(np.int8)
    protos = {
        store: model_adding(ir.Tensor(codes), dims, store=store)[0]
        for store in (nibble_weight, int4_weight)
    }
    for proto in protos.values():
        for level in (
            ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        ):
            found = run(
                proto, np.zeros(dims, np.float32), graph_optimization_level=level
            )
            np.testing.assert_array_equal(found, codes.astype(np.float32))
    stored = {t.name: t for t in protos[nibble_weight].graph.initializer}
    packed = stored["w_packed"]
    assert (packed.data_type, list(packed.dims)) == (
        onnx.TensorProto.UINT8,
        [-(-codes.size // 2)],
    )
    assert list(stored["nibbles_table"].dims) == [256, 2]


def test_nibbles_need_no_newer_opset_than_13():
    codes = np.random.default_rng(0).integers(-8, 8, (3, 5)).astype(np.int8)
    proto, _ = model_adding(ir.Tensor(codes), (3, 5), store=nibble_weight)
    proto.opset_import[0].version, proto.ir_version = 13, 7
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_array_equal(
        run(proto, np.ones((3, 5), np.float32)), codes + np.float32(1)
    )


@pytest.mark.parametrize(
    "dims", [(8,), (1,), (3, 5), (4, 4), (2, 3, 3, 3), (7, 1, 9), (16, 8, 3, 3)]
)
def test_unpacks_bit_for_bit_in_onnx_runtime(dims):
    signs = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    proto, weight = model_adding(signs, dims)
    expected = np.where(signs >= 0, 1, -1).astype(np.float32)
    assert weight.dtype == ir.DataType.INT8
    assert weight.shape.numpy() == dims
    np.testing.assert_array_equal(run(proto, np.zeros(dims, np.float32)), expected)
    disabled = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    np.testing.assert_array_equal(
        run(proto, np.zeros(dims, np.float32), graph_optimization_level=disabled),
        expected,
    )


@pytest.mark.parametrize("dims", [(3, 5), (16, 16)])
def test_onnx_runtime_folds_the_unpacking_at_load(dims, tmp_path):
    proto, _ = model_adding(np.ones(dims, np.float32), dims)
    run(
        proto,
        np.zeros(dims, np.float32),
        optimized_model_filepath=str(tmp_path / "o.onnx"),
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    )
    ops = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert ops == ["Add"]


def test_packed_bytes_and_one_table_a_graph():
    proto, _ = model_adding(np.ones((10, 13), np.float32), (10, 13), count=3)
    sizes = [
        (list(t.dims), t.data_type)
        for t in proto.graph.initializer
        if t.data_type != onnx.TensorProto.INT64
    ]
    assert sorted(sizes) == [([17], 2), ([17], 2), ([17], 2), ([256, 8], 3)]
    assert (
        run(proto, np.zeros((10, 13), np.float32)).tolist()
        == np.full((10, 13), 3.0).tolist()
    )


def test_streams_a_derived_tensor_longer_than_a_block():
    values = np.random.default_rng(1).standard_normal(600_001).astype(np.float32)
    derived = DerivedTensor(
        ir.Tensor(values), lambda block, start: -block, ir.DataType.FLOAT
    )
    proto, _ = model_adding(derived, values.shape)
    expected = np.where(-values >= 0, 1, -1).astype(np.float32)
    np.testing.assert_array_equal(
        run(proto, np.zeros(values.shape, np.float32)), expected
    )
