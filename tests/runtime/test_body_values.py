"""Values of bodies brought out: what a run shows of them, turn by turn."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_opt.passes._core.bodies import RunNames, bodies_of
from onnx_opt.passes._core.infer import infer_types
from onnx_opt.runtime.body_values import with_body_values
from onnx_opt.runtime.taps import with_taps

NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
nested (float[N] x, bool c, int64 turns) => (float[N] y, float[T, N] z)
<bool go = {1}>
{
    y, z = Loop (turns, go, x) <body = turn (int64 i, bool k, float[N] s)
            => (bool k2, float[N] s2, float[N] o) {
        k2 = Identity (k)
        h = Add (s, s)
        s2 = If (c) <
            then_branch = yes () => (float[N] a) { m = Neg (h) a = Abs (m) },
            else_branch = no () => (float[N] b) { m = Sin (h) b = Identity (h) }
        >
        o = Identity (s2)
    }>
}
"""
GROWING = """
<ir_version: 8, opset_import: ["" : 17]>
growing (float[1] x, int64 turns) => (float[M] y)
<bool go = {1}>
{
    y = Loop (turns, go, x) <body = turn (int64 i, bool k, float[M] s)
            => (bool k2, float[P] s2) {
        k2 = Identity (k)
        s2 = Concat <axis = 0> (s, s)
    }>
}
"""
SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
summed (float[1] x, float[T, 1] xs) => (float[1] y, float[T, 1] z)
{
    y, z = Scan <num_scan_inputs = 1, scan_output_axes = [0], body = turn (float[1] s, float[1] v)
            => (float[1] s2, float[1] o) {
        s2 = Add (s, v)
        o = Mul (s2, s2)
        w = Neg (v)
    }> (x, xs)
}
"""


def model_of(text):
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model, data_prop=True)
    return model


def seen(model, names, feeds):
    """Values of a run, of each name and of the outputs, flattened."""
    tapped = with_taps(with_body_values(model, names), names)
    proto = ir.to_proto(tapped)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    made = [output.name for output in session.get_outputs()]
    values = zip(made, session.run(None, feeds), strict=True)
    return {name: array.reshape(-1).tolist() for name, array in values}


def test_nothing_is_copied_where_no_body_is_asked_for():
    model = model_of(NESTED)
    assert with_body_values(model, ["x", "y", "none"]) is model


def test_names_of_values():
    model = model_of(NESTED)
    names = RunNames.of(model)
    assert [str(body) for body in bodies_of(model).values()] == [
        "body of Loop y",
        "then_branch of If s2",
        "else_branch of If s2",
    ]
    assert names.name(model.graph.outputs[0], model.graph) == "y"
    inner = [
        names.name(node.outputs[0], graph)
        for graph in bodies_of(model)
        for node in graph
    ]
    # both branches have an m
    assert {"y:body:h", "y:body:s2:then_branch:m", "y:body:s2:else_branch:m"} <= set(
        inner
    )


@pytest.mark.parametrize("taken", [True, False])
def test_every_turn_of_a_loop_and_only_the_branch_taken(taken):
    names = [
        "y:body:s",
        "y:body:h",
        "y:body:s2:then_branch:m",
        "y:body:s2:else_branch:m",
    ]
    feeds = {
        "x": np.array([1, -2], np.float32),
        "c": np.array(taken),
        "turns": np.array(2),
    }
    found = seen(model_of(NESTED), names, feeds)
    states = [1, -2, 2, 4] if taken else [1, -2, 2, -4]
    doubled = [2 * state for state in states]
    assert found["y:body:s"] == states
    assert found["y:body:h"] == doubled
    assert found["y:body:s2:then_branch:m"] == (
        [-each for each in doubled] if taken else []
    )
    expected = [] if taken else np.sin(np.array(doubled, np.float32))
    np.testing.assert_allclose(found["y:body:s2:else_branch:m"], expected, rtol=1e-5)
    # outputs are what they were
    results = [abs(each) for each in doubled] if taken else doubled
    assert (found["y"], found["z"]) == (results[2:], results)


def test_a_loop_without_turns_gives_nothing():
    feeds = {
        "x": np.ones(2, np.float32),
        "c": np.array(True),
        "turns": np.array(0),
    }
    found = seen(model_of(NESTED), ["y:body:h"], feeds)
    assert found == {"y": [1, 1], "z": [], "y:body:h": []}


def test_turns_may_differ_in_shape():
    feeds = {"x": np.array([3], np.float32), "turns": np.array(2)}
    found = seen(model_of(GROWING), ["y:body:s", "y:body:s2"], feeds)
    assert found == {
        "y": [3] * 4,
        "y:body:s": [3] * 3,
        "y:body:s2": [3] * 6,
    }


def test_slices_of_a_scan():
    feeds = {
        "x": np.array([1], np.float32),
        "xs": np.array([[2], [3]], np.float32),
    }
    found = seen(model_of(SCAN), ["y:body:v", "y:body:w", "y:body:s2"], feeds)
    assert found == {
        "y": [6],
        "z": [9, 36],
        "y:body:v": [2, 3],
        "y:body:w": [-2, -3],
        "y:body:s2": [3, 6],
    }


def test_the_model_is_not_touched():
    model = model_of(NESTED)
    before = ir.to_proto(model).SerializeToString()
    with_body_values(model, ["y:body:h"])
    assert ir.to_proto(model).SerializeToString() == before
