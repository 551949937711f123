"""Constants as a file stores them: bytes and bits, whatever nodes unpack them."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.stored import bits_by_count, stored_constants
from onnx_opt.passes.compress_weights import CompressWeights
from onnx_opt.passes.pack import Pack

MIXED = """
<ir_version: 10, opset_import: ["" : 21]>
mixed (float[1, 4] x, int64[1] row) => (float[1, 2] y, float[1, 4] z)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {1, 2},
 int8[2, 4] codes = {1, 2, 3, 4, 5, 6, 7, 8}, float scale = {0.5}, int64[2] shape = {1, 4}>
{
    h = MatMul (x, w)
    y = Add (h, b)
    table = DequantizeLinear (codes, scale)
    picked = Gather <axis = 0> (table, row)
    z = Reshape (picked, shape)
}
"""

MATMUL = """
<ir_version: 10, opset_import: ["" : 21]>
wide (float[n, 64] x, float[64, 40] w) => (float[n, 40] y) { y = MatMul (x, w) }
"""


def model_of(text):
    return ir.from_proto(onnx.parser.parse_model(text))


def test_each_constant_once_with_what_it_is_made_of():
    found = {each.name: each for each in stored_constants(model_of(MIXED))}
    assert {
        name: (each.elements, each.nbytes, each.bits) for name, each in found.items()
    } == {
        "w": (8, 32, 32),
        "b": (2, 8, 32),
        # with its scale
        "codes": (8, 12, 8),
        "shape": (2, 16, 64),
    }


def test_weights_are_counted_by_their_bits():
    constants = stored_constants(model_of(MIXED))
    # neither the shape nor the scale is a weight
    assert bits_by_count(constants) == {"8": 8, "32": 10}


@pytest.mark.parametrize(("encoding", "bits"), [("int4", 4), ("int8", 8), ("fp16", 16)])
def test_a_compressed_weight_keeps_its_name_and_has_fewer_bits(encoding, bits):
    model = model_of(MATMUL)
    weight = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.Tensor(weight, name="w")
    model.graph.register_initializer(value)
    CompressWeights(encoding).run(model, NullContext())
    (found,) = [each for each in stored_constants(model) if each.elements == 64 * 40]
    assert (found.name, found.bits) == ("w", bits)
    # a scale for each block beside the codes
    assert 64 * 40 * bits / 8 <= found.nbytes < 1.3 * 64 * 40 * bits / 8


def test_a_table_that_a_head_reads_transposed_counts_once():
    proto = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        lm (int64[N] ids) => (float[N, 8] y) <float[8, 4] table>
        {
            h = Gather (table, ids)
            t = Transpose (table)
            y = MatMul (h, t)
        }
        """
    )
    values = np.ones((8, 4), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "table"))
    model = ir.from_proto(proto)
    assert bits_by_count(stored_constants(model)) == {"32": 32}


def test_packed_weights_count_as_elements_without_any_shape():
    """A file that was just written tells the shapes of few values."""
    model = model_of(MATMUL.replace("64", "512"))
    weight = np.random.default_rng(0).standard_normal((512, 40)).astype(np.float32)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.Tensor(weight, name="w")
    model.graph.register_initializer(value)
    CompressWeights("palette").run(model, NullContext())
    Pack().run(model, NullContext())
    for node in model.graph:
        for made in node.outputs:
            made.shape = None
    # an index of 4 bits, and 16 values for each channel
    assert bits_by_count(stored_constants(model)) == {"4": 512 * 40}


def test_of_what_is_packed_together_each_has_its_share():
    model = model_of(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        two (float[n, 64] x, float[64, 64] v, float[64, 128] w) => (float[n, 128] y)
        { h = MatMul (x, v)  y = MatMul (h, w) }
        """
    )
    random = np.random.default_rng(0)
    for name, width in (("w", 128), ("v", 64)):
        weight = random.choice(np.float32([-2, 0, 5]), (64, width))
        value = model.graph.inputs.pop()
        value.const_value = ir.Tensor(weight, name=name)
        model.graph.register_initializer(value)
    Pack().run(model, NullContext())
    assert "Split" in [node.op_type for node in model.graph]
    found = {each.name: each for each in stored_constants(model)}
    # five digits a byte
    assert [found[name].bits for name in "vw"] == [2, 2]
    sizes = [found[name].nbytes for name in "vw"]
    assert sizes[0] == pytest.approx(64 * 64 / 5, rel=0.1)
    assert sizes[1] == pytest.approx(64 * 128 / 5, rel=0.1)
    stored = sum(
        value.const_value.nbytes for value in model.graph.initializers.values()
    )
    assert sum(sizes) == pytest.approx(stored, abs=2)


QUANTIZED = """
<ir_version: 10, opset_import: ["" : 21]>
quantized (float[n, 64] x) => (float[n, 80] y)
<float s = {0.5}, uint8 z = {0}>
{
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    v = DequantizeLinear <axis = 1> (v_q, v_scale, v_zero)
    b = DequantizeLinear <axis = 0> (b_q, b_scale)
    w = DequantizeLinear <axis = 1> (w_q, w_scale, w_zero)
    h = Gemm (xd, v, b)
    y = MatMul (h, w)
}
"""


def with_constants(text, constants):
    """A model whose nodes read constants by names that nothing else in the text has."""
    model = model_of(text)
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name in constants:
                value.const_value = ir.Tensor(constants[value.name], name=value.name)
                model.graph.register_initializer(value)
    return model


def quantized(density):
    """Two layers on int8 with a scale and a zero point for each of their 80 channels."""
    random = np.random.default_rng(0)
    constants = {"b_q": random.integers(-300, 300, 80).astype(np.int32)}
    for name, rows in (("v", 64), ("w", 80)):
        codes = random.integers(-127, 128, (rows, 80))
        codes[random.random(codes.shape) > density] = 0
        constants[f"{name}_q"] = codes.astype(np.int8)
        constants[f"{name}_zero"] = np.zeros(80, np.int8)
    for name in "vbw":
        constants[f"{name}_scale"] = random.random(80).astype(np.float32)
    return with_constants(QUANTIZED, constants)


@pytest.mark.parametrize(
    ("density", "bits"),
    [
        # a bit of a mask, and 8 for each that is not zero
        (0.4, "4"),
        # half a byte for each distance
        (0.02, "1"),
    ],
)
def test_weights_count_once_whether_packed_or_not(density, bits):
    model = quantized(density)
    weights = (64 + 80) * 80
    plain = bits_by_count(stored_constants(model))
    # no scale and no zero point is a weight, neither of a layer nor of what it reads
    assert plain == {"8": weights, "32": 80}
    outcome = Pack(min_saving=0).run(model, NullContext())
    assert outcome.changed == 5
    packed = bits_by_count(stored_constants(model))
    assert packed == {bits: weights, "16": 80}


def test_packed_indices_are_no_weights():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    picks (float[8] x) => (float[4096] y) { y = Gather (x, places) }
    """
    places = np.random.default_rng(0).integers(0, 8, 4096)
    model = with_constants(text, {"places": places})
    assert Pack().run(model, NullContext()).changed == 1
    assert bits_by_count(stored_constants(model)) == {}


LSTM = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
recurrent (float[9, 2, 3] x) => (float[9, 1, 2, 4] y)
{ y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 4> (x, w, r, , , , , , s, z, s, z) }
"""
LSTM_CONSTANTS = {
    "w": np.ones((1, 3, 16), np.int8),
    "r": np.ones((1, 4, 16), np.int8),
    "s": np.ones((1, 16), np.float32),
    "z": np.zeros((1, 16), np.int8),
}

TABLE = """
<ir_version: 10, opset_import: ["" : 21]>
table (int64[N] ids) => (float[N, 4] y)
{
    rows = Gather (codes, ids)
    floats = Cast <to = 1> (rows)
    factors = Gather (scales, ids)
    y = Mul (floats, factors)
}
"""
TABLE_CONSTANTS = {
    "codes": np.ones((8, 4), np.int8),
    "scales": np.ones((8, 1), np.float32),
}


@pytest.mark.parametrize(
    ("text", "constants", "weights"),
    [(LSTM, LSTM_CONSTANTS, 7 * 16), (TABLE, TABLE_CONSTANTS, 8 * 4)],
    ids=["LSTM", "table"],
)
def test_scales_beside_codes_are_no_weights(text, constants, weights):
    model = with_constants(text, constants)
    assert bits_by_count(stored_constants(model)) == {"8": weights}
