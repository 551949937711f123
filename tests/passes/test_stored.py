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
    # the shape is no parameter
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
