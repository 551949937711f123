"""Whole branches: which may go, and what stays of them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from exactness import HEADER
from onnx_opt.passes._channels.branches import droppable
from onnx_opt.passes._dims.groups import channel_groups
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced
from onnx_opt.passes.prune_channels import PruneChannels
from sample_models import model_from

CONVS = (
    HEADER
    + """
convs (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y)
<float[16, 4, 1, 1] up, float[16] ub, float[16, 1, 3, 3] deep, float[4, 16, 1, 1] down, float[4] db>
{
    a = Conv (x, up, ub)
    b = Relu (a)
    c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, deep)
    d = Conv (c, down, db)
    y = Add (x, d)
}
"""
)

MATRICES = (
    HEADER
    + """
matrices (float[batch, 4] x) => (float[batch, 4] y)
<float[4, 16] up, float[16, 4] down, float[4] db>
{
    a = MatMul (x, up)
    b = Relu (a)
    c = MatMul (b, down)
    d = Add (c, db)
    y = Add (d, x)
}
"""
)

GEMMS = (
    HEADER
    + """
gemms (float[batch, 4] x) => (float[batch, 4] y)
<float[16, 4] up, float[4, 16] down, float[4] db>
{
    a = Gemm <transB = 1> (x, up)
    b = Relu (a)
    c = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (b, down, db)
    y = Add (c, x)
}
"""
)

SCALED = MATRICES.replace("y = Add (d, x)", "e = Sigmoid (d)  y = Mul (e, x)")
CHAIN = MATRICES.replace("y = Add (d, x)", "y = Relu (d)")
OUTPUT = MATRICES.replace("y = Add (d, x)", "y = Relu (c)")
SMALLER = (
    MATRICES.replace("[batch, 4] x", "[1, 4] x")
    .replace("y = Add (d, x)", "y = Add (d, wide)")
    .replace("float[4] db", "float[4] db, float[7, 4] wide")
    .replace("[batch, 4] y", "[7, 4] y")
)


def model_of(text):
    return ir.from_proto(model_from(text))


def only_group(text):
    model = model_of(text)
    solution = solve(relate(model, traced(model)))
    (group,) = channel_groups(solution)
    return group, solution


@pytest.mark.parametrize(
    ("text", "can"),
    [
        (CHAIN, False),
        (OUTPUT, False),
        (SMALLER, False),
        (MATRICES, True),
        (GEMMS, True),
        (CONVS, True),
        (SCALED, True),
    ],
)
def test_a_branch_may_go_where_something_of_full_shape_stays(text, can):
    assert droppable(*only_group(text)) is can


def without_branch(text):
    """The model with everything that the branch multiplies set to zero: what is left of it is its
    bias.
    """
    model = model_of(text)
    down = model.graph.initializers["down"]
    down.const_value = ir.tensor(
        np.zeros(down.const_value.shape.numpy(), np.float32), name="down"
    )
    return model


@pytest.mark.parametrize("text", [MATRICES, GEMMS, CONVS, SCALED])
def test_what_is_left_is_the_bias(text):
    random = np.random.default_rng(0)
    shape = [
        d if isinstance(d, int) else 3 for d in model_of(text).graph.inputs[0].shape
    ]
    context = CalibratedContext(
        [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    )
    model = model_of(text)
    outcome = PruneChannels(
        ratio=0.95, least=0, multiple=16, importance="l2", recover=False
    ).run(model, context)
    if not outcome.changed:  # matrices are not rounded: ask for all by a budget
        model = model_of(text)
        outcome = PruneChannels(
            params=1e-6, least=0, importance="l2", recover=False
        ).run(model, context)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert outcome.stats["error"] < 1e-6
    assert not {"Conv", "MatMul", "Gemm"} & {node.op_type for node in model.graph}
    assert not {"up", "deep", "down"} & set(model.graph.initializers)
    want = run_session(without_branch(text)).run(None, context.feeds[0])[0]
    np.testing.assert_allclose(
        run_session(model).run(None, context.feeds[0])[0], want, rtol=1e-5, atol=1e-6
    )


def test_with_data_the_mean_of_a_branch_stays():
    random = np.random.default_rng(0)
    feeds = [
        {"x": random.standard_normal((64, 4)).astype(np.float32)} for _ in range(4)
    ]
    model, whole = model_of(MATRICES), model_of(MATRICES)
    PruneChannels(params=1e-6, least=0).run(model, CalibratedContext(feeds))
    assert "MatMul" not in [node.op_type for node in model.graph]
    x = np.concatenate([each["x"] for each in feeds])
    branch = run_session(whole).run(None, {"x": x})[0] - x
    left = run_session(model).run(None, {"x": x})[0] - x
    np.testing.assert_allclose(
        left, np.broadcast_to(branch.mean(0), left.shape), rtol=1e-4, atol=1e-4
    )
