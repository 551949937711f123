"""The form in which channels are looked for: exact, shared vectors apart, shared matrices
together.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exactness import HEADER, assert_equal_outputs
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.prepare import OLDEST, prepare, share_again
from onnx_opt.passes._core.edit import Edit
from onnx_opt.passes._core.lazy import set_tensor
from onnx_opt.passes._dims.sliced import SlicedTensor
from sample_models import CNN, model_from

THREE = (
    HEADER
    + """
three (float[batch, 4] x) => (float[batch, 4] y)
<float[4] none = {0, 0, 0, 0}, float[4, 4] a, float[4, 4] b, float[4, 4] c>
{
    h = Gemm (x, a, none)
    g = Gemm (h, b, none)
    y = Gemm (g, c, none)
}
"""
)


def model_of(text):
    return ir.from_proto(model_from(text))


def biases(model):
    return [node.inputs[2].name for node in model.graph if node.op_type == "Gemm"]


def cut(model, name, *slots):
    value = model.graph.initializers[name]
    set_tensor(value, SlicedTensor(value.const_value, {0: np.array(slots)}))


@pytest.mark.parametrize("text", [THREE, CNN])
def test_it_is_exact(text):
    model = model_of(text)
    before = ir.to_proto(model)
    prepare(model, NullContext())
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert_equal_outputs(before, after, {}, 3, rtol=1e-4, atol=1e-4)


def test_every_node_has_a_name_of_its_own():
    model = model_of(THREE)
    for node, name in zip(model.graph, ["same", "same", None], strict=True):
        node.name = name
    prepare(model, NullContext())
    assert [node.name for node in model.graph] == ["same", "Gemm_g", "Gemm_y"]


def test_a_constant_of_one_user_keeps_its_name():
    model = model_of(THREE)
    assert prepare(model, NullContext()) == {
        biases(model)[1]: "none",
        biases(model)[2]: "none",
    }
    assert biases(model)[0] == "none"
    assert len(set(biases(model))) == 3
    tensors = {id(model.graph.initializers[name].const_value) for name in biases(model)}
    assert len(tensors) == 1


def test_a_matrix_of_two_layers_stays_one():
    model = model_of(
        HEADER
        + """
        tied (float[batch, 4] x, float[batch, 4] z) => (float[batch, 4] y, float[batch, 4] v)
        <float[4, 4] a, float[1, 4] b>
        { h = Gemm (x, a, b)  y = Relu (h)  g = Gemm (z, a, b)  v = Relu (g) }
        """
    )
    assert list(prepare(model, NullContext()).values()) == ["b"]
    assert len(model.graph.initializers["a"].uses()) == 2


def test_what_callers_may_override_or_read_stays_shared():
    model = model_of(
        HEADER
        + """
        read (float[batch, 4] x, float[4] given) => (float[batch, 4] y, float[4] seen)
        <float[4] given = {1, 2, 3, 4}, float[4] seen = {0, 0, 0, 0}, float[4, 4] a>
        { h = Gemm (x, a, seen)  g = Gemm (h, a, given)  i = Add (g, given)  y = Add (i, seen) }
        """
    )
    origins = prepare(model, NullContext())
    assert set(origins.values()) <= {"a"}


def test_old_operator_sets_are_raised():
    model = ir.from_proto(
        onnx.parser.parse_model(
            """
        <ir_version: 7, opset_import: ["" : 11]>
        old (float[2, 4] x) => (float[2,
            1] y) { s = Squeeze <axes = [0]> (x)  y = ReduceSum <axes = [1]> (x) }
        """.replace("s = Squeeze <axes = [0]> (x)", "")
        )
    )
    prepare(model, NullContext())
    assert model.opset_imports[""] >= OLDEST


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ([(), (), ()], 1),
        ([(0, 1), (0, 1), (0, 1)], 1),
        ([(0, 1), (0, 1), (0, 2)], 2),
        ([(0, 1), (), (0, 2)], 3),
    ],
)
def test_copies_that_stayed_equal_are_one_again(cuts, left):
    model = model_of(THREE)
    origins = prepare(model, NullContext())
    for name, slots in zip(biases(model), cuts, strict=True):
        if slots:
            cut(model, name, *slots)
    share_again(model, origins)
    assert len(set(biases(model))) == left
    assert (
        len([name for name in model.graph.initializers if name.startswith("none")])
        == left
    )


def test_a_copy_that_was_fitted_stays():
    model = model_of(THREE)
    origins = prepare(model, NullContext())
    second = model.graph.initializers[biases(model)[1]]
    set_tensor(second, ir.tensor(np.ones(4, np.float32)))
    share_again(model, origins)
    assert biases(model) == ["none", second.name, "none"]
    assert Edit(model).fresh("other") == "other"


def test_batch_norms_are_folded_or_kept():
    model = model_of(CNN)
    prepare(model, NullContext(), keep_batchnorm=True)
    assert "BatchNormalization" in [node.op_type for node in model.graph]
    model = model_of(CNN)
    prepare(model, NullContext())
    assert "BatchNormalization" not in [node.op_type for node in model.graph]
