"""strip: what goes, what stays, and that the model computes and is declared as before."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.short_names import short_names
from onnx_opt.passes.pack import Pack
from onnx_opt.passes.strip import Strip
from onnx_opt.passes.unpack import restore_packed
from quant_models import model_of, normal, outputs

TEXT = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 4, K, K] y)
{
    a = Conv <ATTRIBUTES> (x, w)
    b = LeakyRelu <alpha = 0.01> (a)
    y = MaxPool <kernel_shape = [2, 2], strides = [1, 1]> (b)
}
"""


def conv(attributes):
    return model_of(TEXT.replace("ATTRIBUTES", attributes), w=normal(4, 3, 3, 3))


@pytest.mark.parametrize(
    ("attributes", "left"),
    [
        ("group = 1", set()),
        ("strides = [1, 1]", set()),
        ("dilations = [1, 1]", set()),
        ('auto_pad = "NOTSET"', set()),
        ("strides = [2, 1]", {"strides"}),
        ("dilations = [1, 2]", {"dilations"}),
        ('auto_pad = "SAME_UPPER"', {"auto_pad"}),
        ("pads = [0, 0, 0, 0]", {"pads"}),
        ("kernel_shape = [3, 3], group = 1", {"kernel_shape"}),
    ],
)
def test_attributes_at_their_defaults_go(attributes, left):
    model = conv(attributes)
    feeds = {"x": normal(1, 3, 8, 8)}
    before = outputs(model, feeds)
    Strip().run(model, NullContext())
    first = model.graph[0]
    assert set(first.attributes) == left
    assert set(model.graph[1].attributes) == set()
    assert set(model.graph[2].attributes) == {"kernel_shape"}
    np.testing.assert_array_equal(outputs(model, feeds), before)


def test_traces_and_types_go_names_and_the_interface_stay():
    model = conv("group = 1")
    node = model.graph[0]
    node.name, node.doc_string = "first", "made by an exporter"
    node.metadata_props["stack_trace"] = "x" * 1000
    node.outputs[0].metadata_props["k"] = "v"
    model.metadata_props["author"] = "me"
    outcome = Strip().run(model, NullContext())
    assert outcome.stats == {
        "metadata": 2,
        "doc_strings": 1,
        "attributes": 3,
        "types": 2,
        "names": 0,
    }
    proto = ir.to_proto(model)
    assert proto.graph.node[0].name == "first"
    assert [p.key for p in proto.metadata_props] == ["author"]
    assert {v.name for v in proto.graph.value_info} <= {"w"}
    assert [
        d.dim_param or d.dim_value
        for d in proto.graph.output[0].type.tensor_type.shape.dim
    ] == ["N", 4, "K", "K"]
    onnx.checker.check_model(proto, full_check=True)
    assert Strip().run(model, NullContext()).changed == 0


def test_types_stay_on_request():
    model = conv("group = 2")
    assert Strip(types=False).run(model, NullContext()).stats["types"] == 0
    assert all(v.shape is not None for node in model.graph for v in node.outputs)


def test_other_domains_keep_their_attributes():
    model = model_of("""
    <ir_version: 10, opset_import: ["" : 17, "my.ops" : 1]>
    g (float[1] x) => (float[1] y) { y = my.ops.Conv <group = 1> (x) }
    """)
    assert Strip().run(model, NullContext()).stats["attributes"] == 0


INNER = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[4] input_values, bool condition) => (float[4] result)
<float[4] added_weights = {1, 2, 3, 4}>
{
    a = Abs (input_values)
    summed_values = Add (a, added_weights)
    result = If (condition) <
        then_branch = then () => (float[4] inner_result) {
            inner_result = Mul (summed_values, added_weights)
        },
        else_branch = otherwise () => (float[4] other_result) {
            other_result = Neg (input_values)
        }
    >
}
"""


def test_names_become_short_where_that_is_asked():
    model = model_of(INNER)
    model.graph[0].name = "the first node"
    feeds = {"input_values": normal(4), "condition": np.array(True)}
    before = outputs(model, feeds)
    assert Strip().run(model, NullContext()).stats["names"] == 0
    outcome = Strip(names="short").run(model, NullContext())
    # a weight, a sum, the results of two branches, and a node
    assert outcome.stats["names"] == 5
    assert [value.name for value in model.graph.inputs] == list(feeds)
    assert model.graph.outputs[0].name == "result"
    assert all(len(name) == 1 for name in model.graph.initializers)
    assert not model.graph[0].name
    np.testing.assert_array_equal(outputs(model, feeds), before)
    onnx.checker.check_model(ir.to_proto(model))
    again = Strip(names="short").run(model, NullContext())
    assert not again.changed


def test_what_pack_wrote_is_found_again_behind_short_names():
    model = conv("group = 1")
    weight = model.graph.initializers["w"]
    sparse = np.zeros((4, 300, 3, 3), np.float32)
    sparse[:, ::10] = 1
    weight.const_value = ir.Tensor(sparse, name="w")
    weight.shape = ir.Shape(sparse.shape)
    model.graph.inputs[0].shape = ir.Shape(["N", 300, 8, 8])
    feeds = {"x": normal(1, 300, 8, 8)}
    before = outputs(model, feeds)
    for passes in ("pack", "strip"), ("strip", "pack"):
        packed = model.clone()
        for name in passes:
            pass_ = Pack() if name == "pack" else Strip(names="short")
            assert pass_.run(packed, NullContext()).changed
        np.testing.assert_array_equal(outputs(packed, feeds), before)
        assert restore_packed(packed) == 1
        assert len(packed.graph) == len(model.graph)


def test_there_are_short_names_for_any_number_of_values():
    names = list(itertools.islice(short_names(), 5000))
    assert len(set(names)) == 5000
    assert [len(names[index]) for index in (0, 51, 52, 3275, 3276)] == [1, 1, 2, 2, 3]
