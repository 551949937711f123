"""Structural checks: what callers rely on, and what onnx's own checks say."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.tools._run.checks import Validity, interface_of, stripped, validity_of
from onnx_opt.tools._run.figures import expected_bytes, input_infos, weight_bytes
from sample_models import ALL, CNN, IF, MLP, model_from


def model(text):
    return ir.from_proto(model_from(text))


@pytest.mark.parametrize("name", ALL)
def test_a_clone_has_the_same_interface(name):
    original = model(ALL[name])
    assert interface_of(original).difference(interface_of(original.clone())) is None


def rename(m):
    m.graph.outputs[0].name = "z"


def freeze(m):
    m.graph.inputs[0].shape = ir.Shape([1, 8])


def retype(m):
    m.graph.inputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def drop(m):
    m.graph.inputs.clear()


def default(m):
    m.graph.inputs[0].const_value = ir.tensor(np.zeros((1, 8), np.float32), name="x")
    m.graph.register_initializer(m.graph.inputs[0])


def note(m):
    m.metadata_props["author"] = "someone"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (rename, "output 'y: FLOAT [batch, 4]' became 'z: FLOAT [batch, 4]'"),
        (freeze, "input 'x: FLOAT [batch, 8]' became 'x: FLOAT [1, 8]'"),
        (retype, "input 'x: FLOAT [batch, 8]' became 'x: DOUBLE [batch, 8]'"),
        (drop, "1 inputs became 0"),
        (
            default,
            "input 'x: FLOAT [batch, 8]' became 'x: FLOAT [batch, 8] with a default'",
        ),
        (note, "metadata changed: author"),
    ],
)
def test_every_change_of_the_interface_is_named(change, difference):
    original = model(MLP)
    changed = original.clone()
    change(changed)
    assert interface_of(original).difference(interface_of(changed)) == difference


def test_our_own_record_is_no_change():
    original = model(MLP)
    changed = original.clone()
    changed.metadata_props["onnx_opt.version"] = "9"
    assert interface_of(original).difference(interface_of(changed)) is None


@pytest.mark.parametrize("name", ALL)
def test_sound_models_are_valid_without_their_weights(name):
    original = model(ALL[name])
    assert validity_of(original) == Validity(None, None)
    assert len(original.graph.inputs) == len(model(ALL[name]).graph.inputs)


def test_stripping_leaves_no_big_weight_in_any_graph():
    assert weight_bytes(model(CNN)) > 10_000
    assert {"k1", "k2"}.isdisjoint(stripped(model(CNN)).graph.initializers)
    assert [v.name for v in stripped(model(IF)).graph.inputs] == ["flag", "x"]


def test_a_wrong_declared_shape_fails_strict_inference():
    wrong = model(MLP)
    wrong.graph.outputs[0].shape = ir.Shape([ir.SymbolicDim("batch"), 5])
    problem = validity_of(wrong).worse_than(Validity(None, None))
    assert problem is not None
    assert validity_of(wrong).worse_than(validity_of(wrong)) is None


def test_expected_size_is_that_of_the_written_file():
    original = model(CNN)
    assert expected_bytes(original) == pytest.approx(
        ir.to_proto(original).ByteSize(), rel=0.03
    )


def test_inputs_are_listed_as_a_session_lists_them():
    assert [(i.name, i.dtype, i.shape) for i in input_infos(model(IF))] == [
        ("flag", "bool", ()),
        ("x", "float32", ("batch", 4)),
    ]
    overridable = model(MLP)
    default(overridable)
    assert input_infos(overridable) == []
