import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from onnx_opt.passes._channels.contractions import (
    consumers_of,
    contractions,
    producers_of,
)
from onnx_opt.passes._dims.groups import channel_groups
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced
from onnx_opt.runtime.moments import MomentObserver
from onnx_opt.runtime.taps import with_taps

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def solved(text):
    model = ir.from_proto(onnx.parser.parse_model(HEAD + text))
    for value in model.graph.initializers.values():
        shape = value.const_value.shape.numpy()
        if value.dtype == ir.DataType.FLOAT:
            rng = np.random.default_rng(sum(shape))
            value.const_value = ir.Tensor(
                rng.normal(size=shape).astype(np.float32), name=value.name
            )
    return model, solve(relate(model, traced(model)))


def zeros(*shape):
    return "{" + ", ".join(["0"] * int(np.prod(shape))) + "}"


MLP = f"""
mlp (float[N, 2] x) => (float[N, 3] y)
<float[2, 4] w = {zeros(2, 4)}, float[3, 4] v = {zeros(3, 4)}>
{{
    h = MatMul (x, w)
    r = Relu (h)
    t = Transpose <perm = [1, 0]> (v)
    y = MatMul (r, t)
}}
"""

DEPTHWISE = f"""
depthwise (float[N, 2, 6, 6] x) => (float[N, 2, 4, 4] y)
<float[4, 2, 1, 1] w = {zeros(4, 2)}, float[4, 1, 3, 3] d = {zeros(4, 9)}, float[2, 4, 1,
    1] v = {zeros(2, 4)}>
{{
    h = Conv (x, w)
    r = Relu (h)
    m = Conv <group = 4> (r, d)
    y = Conv (m, v)
}}
"""

GROUPED = f"""
grouped (float[N, 2, 6, 6] x) => (float[N, 6, 4, 4] y)
<float[4, 2, 1, 1] w = {zeros(4, 2)}, float[6, 2, 3, 3] v = {zeros(6, 18)}>
{{
    h = Conv (x, w)
    r = Relu (h)
    y = Conv <group = 2> (r, v)
}}
"""

UP = f"""
up (float[N, 2, 3, 3] x) => (float[N, 6, 4, 4] y)
<float[4, 2, 1, 1] w = {zeros(4, 2)}, float[4, 3, 2, 2] v = {zeros(4, 12)}>
{{
    h = Conv (x, w)
    r = Relu (h)
    y = ConvTranspose <group = 2> (r, v)
}}
"""

LEFT = f"""
left (float[2, 5] x) => (float[3, 5] y)
<float[4, 2] w = {zeros(4, 2)}, float[4, 3] v = {zeros(4, 3)}>
{{
    h = MatMul (w, x)
    r = Relu (h)
    y = Gemm <transA = 1> (v, r)
}}
"""


def names(found):
    return [
        (
            c.node.op_type,
            c.tensor.name,
            c.axis,
            c.weight.name,
            c.weight_axis,
            c.view.groups,
        )
        for c in found
    ]


@pytest.mark.parametrize(
    ("text", "readers", "makers"),
    [
        (MLP, [("MatMul", "r", 1, "v", 1, 1)], [("w", 1)]),
        (DEPTHWISE, [("Conv", "m", 1, "v", 1, 1)], [("w", 0), ("d", 0)]),
        (GROUPED, [("Conv", "r", 1, "v", 1, 2)], [("w", 0)]),
        (UP, [("ConvTranspose", "r", 1, "v", 0, 2)], [("w", 0)]),
        (LEFT, [("Gemm", "r", 0, "v", 0, 1)], [("w", 0)]),
    ],
)
def test_who_reads_a_group_and_who_makes_it(text, readers, makers):
    _, solution = solved(text)
    groups = channel_groups(solution)
    assert names(consumers_of(groups, solution)[0]) == readers
    assert [
        (p.weight.name, p.weight_axis) for p in producers_of(groups, solution)[0]
    ] == makers


def test_products_of_two_activations_have_no_consumer():
    _, solution = solved(f"""
        scores (float[N, 3, 2] x) => (float[N, 3, 3] y)
        <float[2, 4] q = {zeros(2, 4)}, float[2, 4] k = {zeros(2, 4)}>
        {{
            a = MatMul (x, q)
            b = MatMul (x, k)
            t = Transpose <perm = [0, 2, 1]> (b)
            y = MatMul (a, t)
        }}
        """)
    groups = channel_groups(solution)
    assert [len(g.channels) for g in groups] == [4]
    assert consumers_of(groups, solution) == [[]]
    assert [p.weight.name for p in producers_of(groups, solution)[0]] == ["q", "k"]


@pytest.mark.parametrize("text", [MLP, GROUPED, UP, LEFT, DEPTHWISE])
def test_a_matrix_goes_back_into_its_weight(text):
    for consumer in contractions(solved(text)[1]):
        np.testing.assert_array_equal(
            consumer.view.restored(consumer.view.matrix()),
            consumer.weight.const_value.numpy(),
        )


@pytest.mark.parametrize("text", [MLP, GROUPED, UP, LEFT, DEPTHWISE])
def test_squares_are_those_of_the_slices(text):
    for consumer in contractions(solved(text)[1]):
        weight = np.moveaxis(
            consumer.weight.const_value.numpy().astype(float), consumer.weight_axis, 0
        )
        slots = consumer.view.columns().max() + 1
        width = len(weight)
        if slots == width:
            want = [np.square(w).sum() for w in weight]
        else:  # a grouped Conv: rows of each group by themselves
            rows = weight.reshape(width, consumer.view.groups, -1)
            want = [np.square(rows[s % width, s // width]).sum() for s in range(slots)]
        np.testing.assert_allclose(consumer.squares(), want, rtol=1e-6)


@pytest.mark.parametrize("text", [MLP, GROUPED, LEFT, DEPTHWISE])
def test_the_gram_matrix_gives_the_energy_of_the_output(text):
    model, solution = solved(text)
    consumer = contractions(solution)[-1]
    rng = np.random.default_rng(0)
    shape = [4 if not isinstance(d, int) else d for d in model.graph.inputs[0].shape]
    feeds = {"x": rng.normal(size=shape).astype(np.float32)}
    output = consumer.node.outputs[0].name
    session = run_session(with_taps(model, [consumer.tensor.name, output]))
    values = dict(
        zip(
            [o.name for o in session.get_outputs()],
            session.run(None, feeds),
            strict=True,
        )
    )
    observer = MomentObserver(consumer.request())
    observer.update(values[consumer.tensor.name])
    matrix, grams = (
        consumer.view.matrix(),
        consumer.grams(observer.value())[:, :-1, :-1],
    )
    assert len(grams) == consumer.view.groups
    energy = np.einsum("gmi,gij,gmj->", matrix, grams, matrix)
    y = values[output].astype(float)
    positions = y.size / (matrix.shape[0] * matrix.shape[1])
    assert energy == pytest.approx(np.square(y).sum() / positions, rel=1e-4)
