"""Dims of inputs that a caller fixes, and what follows from them elsewhere."""

import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.passes._core.declared import declarations_of, declare_as_is
from onnx_opt.passes._core.input_shapes import (
    InputShape,
    as_shape_texts,
    fix_input_shapes,
    parse_shape,
)

PAIR = """
<ir_version: 8, opset_import: ["" : 17]>
pair (float[batch, 3, h, h] x, float[batch, 4] z) => (float[batch, n] y, float[batch, 4] w)
<int64[2] flat = {0, -1}>
{
    r = Relu (x)
    y = Reshape (r, flat)
    w = Relu (z)
}
"""

FIXED = PAIR.replace("batch, 3, h, h", "2, 3, h, h")


def model_of(text):
    model = ir.from_proto(onnx.parser.parse_model(text))
    declare_as_is(model)
    return model


def shapes_of(values):
    return {
        value.name: [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        for value in values
    }


def test_nothing_asked_changes_nothing():
    model = model_of(PAIR)
    before = ir.to_proto(model).SerializeToString()
    assert fix_input_shapes(model, ()) == []
    assert fix_input_shapes(model, ["x=?,?,?,?", "z=?,4"]) == []
    assert ir.to_proto(model).SerializeToString() == before


def test_a_symbol_is_fixed_wherever_it_stands():
    model = model_of(PAIR)
    assert fix_input_shapes(model, ["x=2,3,5,5"]) == [
        "input x: (batch, 3, h, h) became (2, 3, 5, 5)"
    ]
    assert shapes_of(model.graph.inputs) == {"x": [2, 3, 5, 5], "z": [2, 4]}
    # of the output's own symbol nothing is said but what inference finds
    assert shapes_of(model.graph.outputs) == {"y": [2, 75], "w": [2, 4]}
    declared = declarations_of(model.graph)
    dims = declared.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 75]


def test_a_dim_may_stay_open():
    model = model_of(PAIR)
    fix_input_shapes(model, ["x=?,3,5,5"])
    assert shapes_of(model.graph.inputs)["x"] == ["batch", 3, 5, 5]
    assert shapes_of(model.graph.outputs)["y"][0] == "batch"


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("xx=1,3,5,5", "the model has no input 'xx'", "did you mean 'x'?"),
        ("x=1,3,5", r"3 dims, but the input has 4: \(2, 3, h, h\)", "write 4 dims"),
        ("x=1,3,5,5", "the model fixes a dim to 2, not 1", "write 2 there"),
        ("x=2,3,5,6", "the dim 'h' is 5 in another place", "give it one number"),
        ("1,3,5,5", "is not of the form", "write --shape"),
        ("x=", "is not of the form", "write --shape"),
        ("x=1,-1", "is not of the form", "write --shape"),
        ("x=1,,2", "is not of the form", "write --shape"),
    ],
)
def test_what_disagrees_is_refused(text, problem, fix):
    with pytest.raises(UsageError, match=problem) as caught:
        fix_input_shapes(model_of(FIXED), [text])
    assert caught.value.where.startswith("--shape ")
    assert caught.value.fix.startswith(fix)


def test_shapes_for_which_the_model_was_not_made_are_refused():
    text = PAIR.replace("float[batch, n] y", "float[batch, n, n] y")
    with pytest.raises(RefusedError, match="is declared with 3 dims, but has 2"):
        fix_input_shapes(model_of(text), ["x=2,3,5,5"])


def test_texts_and_mappings_are_one():
    texts = ("x=1,?,5", "a=b=2")
    assert as_shape_texts({"x": (1, None, 5), "a=b": [2]}) == texts
    assert as_shape_texts(list(texts)) == texts
    assert as_shape_texts("x=1,?,5") == texts[:1]
    assert as_shape_texts(None) == ()
    assert parse_shape("a=b=2") == InputShape("a=b", (2,))
    assert str(parse_shape("x= 1, ?")) == "x=1,?"
