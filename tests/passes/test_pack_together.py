"""pack: constants of one kind, whose elements are stored as one; large ones stay alone."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._packing import together
from onnx_opt.passes.pack import Pack
from onnx_opt.passes.unpack import restore_packed
from quant_models import kernels
from quant_models import model_of as read

RANDOM = np.random.default_rng(0)


def zeros(shape, kept, dtype=np.float32):
    """Numbers of which only a share is kept."""
    values = RANDOM.normal(size=shape) * 30 + 1
    return (
        np.where(RANDOM.random(shape) < kept, values, 0).clip(-127, 127).astype(dtype)
    )


def of(values, shape):
    return RANDOM.choice(np.array(values), shape)


def own_values(shape, count, kept=1.0):
    """Codes of which each channel has a few of its own."""
    rows = [
        RANDOM.choice(RANDOM.choice(np.arange(-90, 90), count, False), shape[1:])
        for _ in range(shape[0])
    ]
    codes = np.array(rows, np.int8)
    codes[RANDOM.random(shape) >= kept] = 0
    return codes


VECTORS = RANDOM.integers(-64, 65, (200, 9)).astype(np.int8)


def of_vectors(vectors, shape):
    """Codes made of some vectors."""
    count = int(np.prod(shape)) // vectors.shape[1]
    return RANDOM.choice(vectors, count).reshape(shape)


def turned(array):
    return np.ascontiguousarray(np.moveaxis(array, 0, -1))


TOGETHER = {
    "masks": [zeros((64, 64), 0.5), zeros((50, 33), 0.5)],
    "masks of codes": [zeros((96, 96), 0.5, np.int8), zeros((70, 71), 0.5, np.int8)],
    "gaps": [zeros((96, 96), 0.02), zeros((90, 90), 0.02)],
    "short gaps": [zeros((96, 96), 0.15, np.int8), zeros((95, 97), 0.15, np.int8)],
    "values of a palette": [
        of([-1.5, 0.0, 2.0], (64, 63)).astype(np.float32),
        of([-1.5, 0.0, 2.0], (41, 40)).astype(np.float32),
    ],
    "palettes of channels": [
        own_values((32, 16, 3, 3), 7),
        own_values((48, 32, 3, 3), 7),
        own_values((16, 300), 7),
    ],
    "palettes of the last axis": [
        turned(own_values((32, 16, 9), 7)),
        turned(own_values((32, 20, 9), 7)),
    ],
    "one codebook": [
        of_vectors(VECTORS, (64, 32, 3, 3)),
        of_vectors(VECTORS[:100], (32, 16, 3, 3)),
        turned(of_vectors(VECTORS[50:], (32, 450))),
    ],
    "palettes and zeros": [
        own_values((64, 300), 15, 0.2),
        own_values((64, 400), 15, 0.2),
    ],
}


def halves(size):
    return RANDOM.normal(size=size).astype(np.float16).astype(np.float32)


LAYERS = """
<ir_version: 8, opset_import: ["" : 17]>
layers (float[N, 8, 9, 9] x) => (float[N, 96, 9, 9] y)
<float one = {1.0}, uint8 middle = {128}>
{
    q = QuantizeLinear (x, one, middle)
    d = DequantizeLinear (q, one, middle)
    v = DequantizeLinear <axis = 0> (v_codes, v_scales, v_zeros)
    a = Conv <pads = [1, 1, 1, 1]> (d, v, v_bias)
    e = QuantizeLinear (a, one, middle)
    f = DequantizeLinear (e, one, middle)
    w = DequantizeLinear <axis = 0> (w_codes, w_scales, w_zeros)
    b = Conv (f, w, w_bias)
    g = QuantizeLinear (b, one, middle)
    y = DequantizeLinear (g, one, middle)
}
"""


def layers():
    """Two integer layers; their scales, zero points and biases are vectors."""
    weights = {}
    for name, shape in (("v", (128, 8, 3, 3)), ("w", (96, 128, 1, 1))):
        weights[f"{name}_codes"] = RANDOM.integers(-127, 127, shape).astype(np.int8)
        weights[f"{name}_scales"] = np.abs(halves(shape[0]))
        weights[f"{name}_zeros"] = np.zeros(shape[0], np.int8)
        weights[f"{name}_bias"] = halves(shape[0])
    return read(LAYERS, **weights)


def model_of(arrays):
    """A model that hands out rows of each constant, by way of a Gather."""
    nodes, inputs, outputs, tensors = [], [], [], []
    for i, array in enumerate(arrays):
        element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        rows = onnx.helper.make_tensor_value_info(
            f"r{i}", onnx.TensorProto.INT64, [None]
        )
        inputs.append(rows)
        nodes.append(onnx.helper.make_node("Gather", [f"w{i}", f"r{i}"], [f"y{i}"]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", element, None))
        tensors.append(onnx.numpy_helper.from_array(array, f"w{i}"))
    graph = onnx.helper.make_graph(nodes, "constants", inputs, outputs, tensors)
    opsets = [onnx.helper.make_opsetid("", 17)]
    return ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    )


def ops_of(model):
    return Counter(node.op_type for node in model.graph)


def packed(arrays):
    model = model_of(arrays)
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["constants"] == len(arrays)
    return model, outcome


def file_bytes(model):
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto.ByteSize()


@pytest.mark.parametrize("name", TOGETHER)
def test_constants_of_one_kind_are_decoded_at_once_bit_for_bit(name, tmp_path):
    arrays = TOGETHER[name]
    model, _ = packed(arrays)
    assert ops_of(model)["Split"] == (2 if name.startswith("palettes") else 1)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    rows = {f"r{i}": np.arange(len(array)) for i, array in enumerate(arrays)}
    for decoded, array in zip(session.run(None, rows), arrays, strict=True):
        assert decoded.tobytes() == array.tobytes()
    left = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert {node.op_type for node in left} == {"Gather"}


@pytest.mark.parametrize("name", TOGETHER)
def test_unpack_restores_every_bit(name):
    arrays = TOGETHER[name]
    model, _ = packed(arrays)
    assert restore_packed(model) == len(arrays)
    assert ops_of(model) == {"Gather": len(arrays)}
    for i, array in enumerate(arrays):
        restored = model.graph.initializers[f"w{i}"].const_value.numpy()
        assert restored.dtype == array.dtype
        assert restored.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", TOGETHER)
def test_together_they_take_fewer_bytes_as_counted(name, monkeypatch):
    arrays = TOGETHER[name]
    model, outcome = packed(arrays)
    monkeypatch.setattr(together, "MOST_ELEMENTS", 0)
    alone, outcome_alone = packed(arrays)
    assert "Split" not in ops_of(alone)
    assert file_bytes(model) < file_bytes(alone)
    counted = outcome_alone.stats["bytes_after"] - outcome.stats["bytes_after"]
    assert counted == pytest.approx(
        file_bytes(alone) - file_bytes(model), abs=60 * len(arrays)
    )


def test_constants_of_other_values_stay_apart():
    """In one palette each would take more bits."""
    arrays = [of([-1, 0, 1], (64, 64)), of([-7, 0, 8], (64, 64))]
    model, _ = packed([array.astype(np.int8) for array in arrays])
    assert "Split" not in ops_of(model)


def test_no_more_than_so_many_elements_are_decoded_at_once(monkeypatch):
    monkeypatch.setattr(together, "MOST_TOGETHER", 10_000)
    model, _ = packed([zeros((64, 64), 0.5) for _ in range(5)])
    # two, two and one alone
    assert ops_of(model)["Split"] == 2


def test_tables_are_there_once():
    arrays = [zeros((96, 96), 0.5), zeros((96, 96), 0.5, np.int8)]
    ops = ops_of(packed(arrays)[0])
    # two masks of different types, and the nodes of the tables once
    assert (ops["Cast"], ops["Sub"], ops["ReduceSum"]) == (2, 1, 1)


def test_vectors_of_layers_are_stored_as_one(tmp_path):
    model = layers()
    before = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
    }
    dense = ir.to_proto(model).SerializeToString()
    plain_kernels = kernels(model, tmp_path)
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["one_value"] == 2
    assert outcome.stats["narrow"] == 4
    packed_file = ir.to_proto(model).SerializeToString()
    assert len(packed_file) < len(dense)
    assert kernels(model, tmp_path) == plain_kernels
    feeds = {"x": RANDOM.normal(size=(2, 8, 9, 9)).astype(np.float32)}
    got, wanted = (
        ort.InferenceSession(file).run(None, feeds)[0] for file in (packed_file, dense)
    )
    assert got.tobytes() == wanted.tobytes()
    assert restore_packed(model)
    for name, array in before.items():
        restored = model.graph.initializers[name].const_value.numpy()
        assert restored.tobytes() == array.tobytes()


def test_vectors_that_others_read_stay():
    """Shapes are to be known before anything is computed."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[6, 8] x) => (float[2, 3, 4, 2] y)
    <int64[4] dims = {2, 3, 4, 2}, float[8] ones = {1, 1, 1, 1, 1, 1, 1, 1}>
    { a = Add (x, ones)  y = Reshape (a, dims) }
    """
    model = read(text)
    assert Pack().run(model, NullContext()).changed == 0


def test_vectors_of_few_values_or_many_zeros_take_their_own_forms():
    sparse = halves(2000)
    sparse[RANDOM.random(2000) < 0.9] = 0
    assert together.vector_of(ir.Tensor(sparse)) is None
    assert (
        together.vector_of(ir.Tensor(of([0.5, 1.5], 2000).astype(np.float32))) is None
    )
    assert together.vector_of(ir.Tensor(halves(2000))) is not None
    assert together.vector_of(ir.Tensor(sparse[:16])) is not None


def test_numbers_that_no_decoder_takes_stay():
    zeros_of_8_bits = ir.Tensor(
        np.zeros(2000, ir.DataType.FLOAT8E4M3FN.numpy()), ir.DataType.FLOAT8E4M3FN
    )
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N, 2000] x, float[2000] s) => (float[N, 2000] y)
    { q = QuantizeLinear <axis = 1> (x, s, z)  y = DequantizeLinear <axis = 1> (q, s, z) }
    """
    model = read(text, z=np.zeros(2000, np.int8))
    model.graph.initializers["z"].const_value = zeros_of_8_bits
    outcome = Pack().run(model, NullContext())
    assert not outcome.changed
    assert any("no operators" in each.reason for each in outcome.declined)


def test_codebooks_that_differ_stay_apart():
    """Together they would be more vectors than a byte can name."""
    others = RANDOM.integers(-64, 65, (200, 9)).astype(np.int8)
    arrays = [of_vectors(VECTORS, (64, 288)), of_vectors(others, (64, 288))]
    model, outcome = packed(arrays)
    assert outcome.stats["codebook"] == 2
    assert ops_of(model)["Split"] == 0
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    rows = {f"r{i}": np.arange(len(array)) for i, array in enumerate(arrays)}
    for decoded, array in zip(session.run(None, rows), arrays, strict=True):
        assert decoded.tobytes() == array.tobytes()
