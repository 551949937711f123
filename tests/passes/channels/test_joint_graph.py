"""Two models in one graph: what is compared with what, and where a run can go on."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from importance_nets import literal
from onnx_opt.passes._calibrated.layers import fittable_layers
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._core.joined import join_models
from onnx_opt.passes._reconstruct.joint_graph import JointGraph

RANDOM = np.random.default_rng(2)
A, B, C = (
    RANDOM.normal(size=(3, 4)),
    RANDOM.normal(size=(4, 3)),
    RANDOM.normal(size=(3, 2)),
)
X = RANDOM.normal(size=(5, 3)).astype(np.float32)
WHOLE_H = [0, 1, 2, 3]
KEPT = {"h": {1: np.array([0, 2])}, "r": {1: np.array([0, 2])}}


def model(units):
    """X -> a, Relu, b, + x -> c, with some of the hidden units."""
    a, b = A[:, units], B[units]
    made = ir.from_proto(
        onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[N, 3] x) => (float[N, 2] y)
        <float[3, {len(units)}] a = {literal(a)}, float[{len(units)}, 3] b = {literal(b)},
            float[3, 2] c = {literal(C)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            s = Add (k, x)
            y = MatMul (s, c)
        }}""")
    )
    for node in made.graph:
        node.name = f"make_{node.outputs[0].name}"
    refresh_shapes(made)
    return made


def run(part, feeds):
    session = run_session(part)
    return dict(
        zip(
            [o.name for o in session.get_outputs()],
            session.run(None, feeds),
            strict=True,
        )
    )


@pytest.fixture
def pruned():
    return model([0, 2])


@pytest.fixture
def joint(pruned):
    return JointGraph(model(WHOLE_H), pruned, KEPT)


def value(pruned, name):
    return next(v for node in pruned.graph for v in node.outputs if v.name == name)


def test_both_sides_compute_what_their_models_do(joint):
    found = run(joint.submodel(["x"], ["whole/y", "pruned/y"]), {"x": X})
    hidden = np.maximum(X @ A, 0)
    np.testing.assert_allclose(
        found["whole/y"], (hidden @ B + X) @ C, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found["pruned/y"], (hidden[:, [0, 2]] @ B[[0, 2]] + X) @ C, rtol=1e-4, atol=1e-5
    )


def test_a_target_is_the_whole_models_tensor_without_what_went(joint, pruned):
    name = joint.target_of(value(pruned, "h"))
    np.testing.assert_allclose(
        run(joint.submodel(["x"], [name]), {"x": X})[name],
        (X @ A)[:, [0, 2]],
        rtol=1e-4,
        atol=1e-5,
    )


def test_behind_a_shortcut_the_target_is_what_the_sum_lacks(joint, pruned):
    name = joint.target_of(value(pruned, "k"))
    found = run(joint.submodel(["x"], [name, "whole/s"]), {"x": X})
    np.testing.assert_allclose(found[name], found["whole/s"] - X, rtol=1e-5, atol=1e-6)


def test_a_part_runs_only_what_it_needs(joint):
    part = joint.submodel(["whole/s"], ["whole/y"])
    assert [node.op_type for node in part.graph] == ["MatMul"]
    assert [v.name for v in part.graph.inputs] == ["whole/s"]


@pytest.mark.parametrize(
    ("pending", "expected"),
    [
        (["make_h", "make_k", "make_y"], ["x"]),
        (["make_k", "make_y"], ["pruned/r", "whole/r", "x"]),
        (["make_y"], ["pruned/s", "whole/s"]),
    ],
)
def test_the_frontier_is_all_that_pending_layers_need(joint, pruned, pending, expected):
    layers = [
        layer for layer in fittable_layers(pruned)[0] if layer.node.name in pending
    ]
    assert joint.frontier(layers) == expected
    wanted = [
        name
        for layer in layers
        for name in (joint.name_of(layer.input), joint.target_of(layer.output))
    ]
    joint.submodel(expected, wanted)  # raises where something else is needed


def test_subgraphs_have_no_frontier(pruned):
    whole = ir.from_proto(
        onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        branch (float[N, 3] x, bool on) => (float[N, 3] y)
        { y = If (on) <then_branch = a () => (float[N, 3] u) { u = Relu (x) },
                       else_branch = b () => (float[N, 3] v) { v = Neg (x) }> }""")
    )
    whole.graph.outputs[0].name = "y"
    assert JointGraph(whole, whole.clone(), {}).frontier([]) is None


def test_models_share_weights_and_inputs():
    first, second = model(WHOLE_H), model([0, 2])
    both = join_models({"a/": first, "b/": second})
    assert [v.name for v in both.graph.inputs] == ["x"]
    assert (
        both.graph.initializers["b/c"].const_value
        is second.graph.initializers["c"].const_value
    )
    assert {name.split("/")[0] for name in both.graph.initializers} == {"a", "b"}
    assert len(first.graph) == 5


def test_one_symbol_may_have_two_sizes():
    """Both sides call their hidden units alike; sizes that were believed would share buffers that
    do not fit.
    """
    whole, small = model(WHOLE_H), model([0, 2])
    for side in (whole, small):
        for name in ("h", "r"):
            value(side, name).shape = ir.Shape(["N", "units"])
    found = run(
        JointGraph(whole, small, KEPT).submodel(["x"], ["whole/r", "pruned/r"]),
        {"x": X},
    )
    assert found["whole/r"].shape == (5, 4)
    assert found["pruned/r"].shape == (5, 2)
