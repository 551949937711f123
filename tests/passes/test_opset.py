"""raise_opset: models that need nothing, first; then conversion, its care for weights, and
refusals.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exactness import assert_equal_outputs, model_of, ops_of
from onnx_opt import RefusedError
from onnx_opt.passes._core import opset
from onnx_opt.passes._core.declared import declarations_of, declare_as_is
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.opset import raise_opset
from onnx_opt.passes._core.schemas import ADDITIONS

OLD = """<ir_version: 7, opset_import: ["" : 11]>
g (float[1, 2, 1] x) => (float[2] y) <float[2] w = {1, 2}>
{ s = Squeeze <axes = [0, 2]> (x)  y = Mul (s, w) }"""


@pytest.mark.parametrize("minimum", [13, 21])
def test_new_enough_stays(minimum):
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert raise_opset(model, minimum) is False
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_attributes_become_inputs_and_outputs_stay_equal():
    model = model_of(OLD)
    before = ir.to_proto(model)
    assert raise_opset(model, 13) is True
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert_equal_outputs(before, after, {}, 1)
    assert model.opset_imports == {"": 13}
    assert ops_of(model) == ["Squeeze", "Mul"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 2]


def test_weights_are_the_same_tensors_afterwards():
    model = model_of(
        OLD.replace("float[1, 2, 1] x", "float[1, 999, 1] x").replace(
            "[2] y", "[999] y"
        )
    )
    value = model.graph.initializers["w"]
    tensor = ir.Tensor(np.arange(999, dtype=np.float32), name="w")
    value.const_value, value.shape = tensor, ir.Shape([999])
    raise_opset(model, 21)
    assert model.graph.initializers["w"].const_value is tensor
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_metadata_and_names_stay():
    model = model_of(OLD)
    model.metadata_props["who"] = "me"
    model.graph[1].name = "scale"
    model.graph[1].metadata_props["layer"] = "7"
    raise_opset(model, 18)
    assert model.metadata_props == {"who": "me"}
    assert (model.graph[-1].name, model.graph[-1].metadata_props) == (
        "scale",
        {"layer": "7"},
    )


def test_branches_are_converted_too():
    text = """<ir_version: 7, opset_import: ["" : 12]>
    g (float[1, 2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Squeeze <axes = [0]> (x) },
                    else_branch = e () => (float[2] b) { p = Squeeze <axes = [0]> (x)
                    b = Neg (p) }>
    }"""
    model = model_of(text)
    before = ir.to_proto(model)
    raise_opset(model, 17)
    assert_equal_outputs(before, ir.to_proto(model), {}, 1)
    assert ops_of(model) == ["If", "Squeeze", "Squeeze", "Neg"]


def test_a_model_without_standard_ops_gets_the_import():
    model = model_of(
        '<ir_version: 10, opset_import: ["own" : 1]> g (float[2] x) => (float[2] y) { y = '
        "own.Thing (x) }"
    )
    assert raise_opset(model, 19) is True
    assert model.opset_imports == {"own": 1, "": 19}


def test_a_function_of_an_older_opset_is_refused():
    model = model_of("""<ir_version: 8, opset_import: ["" : 11, "com.microsoft" : 1]>
    g (float[2] x) => (float[2] y) { y = com.microsoft.Thing (x) }
    <domain: "com.microsoft", opset_import: ["" : 11]>
    Thing (a) => (b) { b = Neg (a) }""")
    normalize(model)
    with pytest.raises(
        RefusedError, match="function 'Thing' is written for opset 11"
    ) as error:
        raise_opset(model, 13)
    assert error.value.fix == "export the model again with opset 13 or newer"


def test_a_failing_converter_is_refused_and_leaves_the_model_whole(monkeypatch):
    def broken(proto, version):
        raise RuntimeError("no adapter for Squeeze\nmore")

    monkeypatch.setattr(opset.version_converter, "convert_version", broken)
    model = model_of(OLD)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(
        RefusedError, match="cannot be raised from 11 to 13: no adapter for Squeeze"
    ):
        raise_opset(model, 13)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_lost_tensor_is_refused(monkeypatch):
    def lossy(proto, version):
        del proto.graph.initializer[:]
        return proto

    monkeypatch.setattr(opset.version_converter, "convert_version", lossy)
    with pytest.raises(RefusedError, match="the converter lost tensor 'w'"):
        raise_opset(model_of(OLD), 13)


TRAINING = """<ir_version: 7, opset_import: ["" : {opset}]>
g (float[2, 2, 2] x) => (float[2, 2, 2] y{more})
<float[2] s = {{1, 2}}, float[2] b = {{0, 1}}, float[2] m = {{0, 0}}, float[2] v = {{1, 1}}>
{{ {outputs} = BatchNormalization <epsilon = 0.01> (x, s, b, m, v)  {rest} }}"""


@pytest.mark.parametrize("opset", [9, 12, 13])
@pytest.mark.parametrize("minimum", [14, 15, 21])
@pytest.mark.parametrize(
    "rest",
    [
        "y = Relu (h)",
        # an operator that the converter has to rewrite beside it
        "k = Softmax <axis = 1> (h)  y = Add (h, k)",
    ],
)
def test_batchnormalization_that_trains_still_does(opset, minimum, rest):
    text = TRAINING.format(opset=opset, outputs="h, p, q, r, t", rest=rest, more="")
    model = model_of(text)
    before = ir.to_proto(model)
    assert raise_opset(model, minimum) is True
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    (node,) = [n for n in model.graph if n.op_type == "BatchNormalization"]
    assert node.attributes.get_int("training_mode") == 1
    assert len(node.outputs) == 3
    assert model.opset_imports == {"": minimum}
    assert_equal_outputs(before, after, {}, 1)


def test_moved_statistics_stay_outputs():
    text = TRAINING.format(
        opset=13, outputs="y, p, q, r, t", rest="", more=", float[2] p, float[2] q"
    )
    model = model_of(text)
    before = ir.to_proto(model)
    raise_opset(model, 21)
    assert_equal_outputs(before, ir.to_proto(model), {}, 1)


@pytest.mark.parametrize("more", [", float[2] r", ", float[2] z"])
def test_statistics_that_a_newer_opset_does_not_give_are_refused(more):
    rest = "z = Neg (r)" if "z" in more else ""
    text = TRAINING.format(opset=13, outputs="y, p, q, r, t", rest=rest, more=more)
    model = model_of(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(RefusedError, match="from 13 to 21: BatchNormalization y gives"):
        raise_opset(model, 21)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_only_batchnormalization_changed_its_meaning_where_training_is_stated():
    changed = [
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.since_version == opset.STATED
    ]
    plain_changes = [name for name in changed if (name, opset.STATED) not in ADDITIONS]
    # these are new, or only allow more types
    for name in plain_changes:
        if not onnx.defs.has(name, opset.STATED - 1):
            continue
        older = onnx.defs.get_schema(name, opset.STATED - 1)
        newer = onnx.defs.get_schema(name, opset.STATED)
        assert set(older.attributes) == set(newer.attributes)
        assert [i.name for i in older.inputs] == [i.name for i in newer.inputs]


def test_declarations_stay():
    model = model_of(OLD)
    declare_as_is(model)
    declared = declarations_of(model.graph)
    raise_opset(model, 18)
    assert declarations_of(model.graph) is declared
