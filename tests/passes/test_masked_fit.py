"""prune fits the weights that stay, where there is data: least squares under a mask."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._calibrated.layers import fittable_layers
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._reconstruct import masked
from onnx_opt.passes.prune import Prune

RANDOM = np.random.default_rng(0)
MIX = RANDOM.normal(size=(12, 12))
WEIGHTS = {"a": RANDOM.normal(size=(12, 16)), "b": RANDOM.normal(size=(16, 6))}


def feeds_of(seed, rows=400):
    """Inputs that go with each other, so that what stays can make up for what goes."""
    random = np.random.default_rng(seed)
    return {"x": (random.normal(size=(rows, 12)) @ MIX).astype(np.float32)}


def two_layers():
    model = ir.from_proto(
        onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[N, 12] x) => (float[N, 6] y)
        <float[12, 16] a = {0}, float[16, 6] b = {0}>
        { h = MatMul (x, a)  r = Relu (h)  y = MatMul (r, b) }
        """)
    )
    for name, array in WEIGHTS.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(array.astype(np.float32), name=name)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    refresh_shapes(model)
    return model


def weight(model, name):
    return model.graph.initializers[name].const_value.numpy()


def error(model, feeds):
    """Relative squared error of the outputs."""
    expected = run_session(two_layers()).run(None, feeds)[0]
    got = run_session(model).run(None, feeds)[0]
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


def pruned(context, **options):
    model = two_layers()
    if "sparsity" in options:
        options = {"allocation": "uniform", **options}
    outcome = Prune(**options).run(model, context)
    return model, outcome


def test_without_data_the_largest_weights_stay_as_they_are():
    model, outcome = pruned(NullContext(), sparsity=0.5)
    plain, _ = pruned(NullContext(), sparsity=0.5, fit=False)
    assert "fitted" not in outcome.stats
    for name in WEIGHTS:
        assert np.array_equal(weight(model, name), weight(plain, name))


def test_fit_false_leaves_the_weights():
    context = CalibratedContext([feeds_of(1), feeds_of(2)])
    model, outcome = pruned(context, sparsity=0.5, fit=False)
    plain, _ = pruned(NullContext(), sparsity=0.5)
    assert "fitted" not in outcome.stats
    for name in WEIGHTS:
        assert np.array_equal(weight(model, name), weight(plain, name))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_fit_loses_less_on_data_that_it_did_not_see(sparsity):
    feeds = [feeds_of(seed) for seed in (1, 2, 3, 4)]
    fitted, outcome = pruned(CalibratedContext(feeds), sparsity=sparsity)
    plain, _ = pruned(NullContext(), sparsity=sparsity)
    unseen = feeds_of(99)
    assert outcome.stats["fitted"] == 2
    assert error(fitted, unseen) < 0.7 * error(plain, unseen)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_as_many_weights_are_zero(sparsity):
    fitted, outcome = pruned(
        CalibratedContext([feeds_of(1), feeds_of(2)]), sparsity=sparsity
    )
    zeros = {name: int((weight(fitted, name) == 0).sum()) for name in WEIGHTS}
    assert zeros == {
        name: int(sparsity * array.size) for name, array in WEIGHTS.items()
    }
    assert outcome.stats["zeros"] == sum(zeros.values())


def test_a_pattern_keeps_its_places():
    fitted, _ = pruned(CalibratedContext([feeds_of(1), feeds_of(2)]), pattern="2:4")
    plain, _ = pruned(NullContext(), pattern="2:4")
    for name in WEIGHTS:
        assert np.array_equal(weight(fitted, name) == 0, weight(plain, name) == 0)


def test_moments_that_overflow_leave_the_weights():
    layer, _ = masked_layer()
    before = layer.rows()
    moments = np.full((1, 13, 13 + 16), np.inf)
    assert masked.fit_masked(layer, layer, [moments, moments], True, None) is None
    assert np.array_equal(layer.rows(), before)


def test_moments_beyond_single_precision_leave_the_weights():
    layer, _ = masked_layer()
    moments = np.full((1, 13, 13 + 16), 1e39)
    assert masked.fit_masked(layer, layer, [moments, moments], True, None) is None


def masked_layer():
    """The first layer of the net, and the net."""
    model = two_layers()
    layers, _ = fittable_layers(model)
    return layers[0], model


def test_a_layer_that_is_left_out_is_not_touched():
    feeds = [feeds_of(seed) for seed in (1, 2)]
    model, outcome = pruned(CalibratedContext(feeds), sparsity=0.5, exclude=("b",))
    assert outcome.stats["fitted"] == 1
    assert np.array_equal(weight(model, "b"), WEIGHTS["b"].astype(np.float32))
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "MatMul"]


def test_a_threshold_keeps_its_places():
    context = CalibratedContext([feeds_of(1), feeds_of(2)])
    fitted, outcome = pruned(context, threshold=0.7)
    plain, _ = pruned(NullContext(), threshold=0.7)
    assert outcome.stats["fitted"] == 2
    for name in WEIGHTS:
        assert np.array_equal(weight(fitted, name) == 0, weight(plain, name) == 0)


class OneHalf(CalibratedContext):
    """So little data that all of it lies in one half."""

    def collect(self, model, requests, samples):
        even = {key: r for key, r in requests.items() if r.part != "odd"}
        return super().collect(model, even, samples)


def test_a_fit_that_cannot_be_judged_is_not_made_and_the_layer_named():
    fitted, outcome = pruned(OneHalf([feeds_of(1)]), sparsity=0.5)
    plain, _ = pruned(NullContext(), sparsity=0.5)
    assert outcome.stats["fitted"] == 0
    for name in WEIGHTS:
        assert np.array_equal(weight(fitted, name), weight(plain, name))
    assert [(d.where, d.reason) for d in outcome.declined] == [
        (name, "pruned, not fitted: fitting did not help on data kept back from it")
        for name in WEIGHTS
    ]


def test_halves_that_contradict_each_other_leave_the_layer():
    """The second half asks for the opposite of the first."""
    layer, _ = masked_layer()
    random = np.random.default_rng(3)
    inputs = np.concatenate([random.normal(size=(50, 12)), np.ones((50, 1))], axis=1)
    target = 100 * random.normal(size=(50, 16))
    gram = inputs.T @ inputs / 50
    cross = inputs.T @ target / 50
    halves = [np.concatenate([gram, sign * cross], axis=1)[None] for sign in (1, -1)]
    assert masked.fit_masked(layer, layer, halves, True, None) is None


def test_constant_inputs_and_few_samples_give_finite_weights():
    feeds = {"x": np.ones((2, 12), np.float32)}
    fitted, _ = pruned(CalibratedContext([feeds, feeds]), sparsity=0.5)
    for name in WEIGHTS:
        assert np.isfinite(weight(fitted, name)).all()
    assert error(fitted, feeds) < 1e-3


def test_conjugate_gradients_solve_the_normal_equations_of_each_row():
    rows, width = 5, 8
    inputs = np.concatenate(
        [RANDOM.normal(size=(200, width)), np.ones((200, 1))], axis=1
    )
    target = RANDOM.normal(size=(200, rows))
    gram = (inputs.T @ inputs / 200)[None]
    cross = (inputs.T @ target / 200)[None]
    mask = RANDOM.random((rows, width)) < 0.5
    dense = np.zeros((rows, width + 1))
    found = masked._solved(dense, gram, cross, mask, 1e-9, 100)
    for row in range(rows):
        stays = np.append(mask[row], True)
        exact = np.linalg.lstsq(inputs[:, stays], target[:, row], rcond=None)[0]
        np.testing.assert_allclose(found[row, stays], exact, rtol=1e-3, atol=1e-4)
        assert (found[row, ~stays] == 0).all()


def test_second_order_is_the_loss_of_removing_one_weight():
    width = 6
    inputs = np.concatenate(
        [RANDOM.normal(size=(300, width)), np.ones((300, 1))], axis=1
    )
    inputs[:, 1] += inputs[:, 0]
    gram = (inputs.T @ inputs / 300)[None]
    gram[:, -1, :-1] = gram[:, :-1, -1] = 0  # without means, as for a free bias
    rows = RANDOM.normal(size=(1, width))
    scores = masked.scores_of(rows, masked.second_order(gram))[0] ** 2
    hessian = gram[0, :width, :width]
    for index in range(width):
        rest = np.delete(np.arange(width), index)
        inner = hessian[np.ix_(rest, rest)]
        side = hessian[rest, index]
        loss = rows[0, index] ** 2 * (
            hessian[index, index] - side @ np.linalg.solve(inner, side)
        )
        np.testing.assert_allclose(scores[index], loss, rtol=0.02)


def test_weights_of_another_type_are_told_apart():
    model = ir.from_proto(
        onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float16[N, 12] x) => (float16[N, 16] y)
        <float16[12, 16] a = {0}> { y = MatMul (x, a) }
        """)
    )
    value = model.graph.initializers["a"]
    value.const_value = ir.Tensor(WEIGHTS["a"].astype(np.float16), name="a")
    feeds = [{"x": feeds_of(seed)["x"].astype(np.float16)} for seed in (1, 2)]
    outcome = Prune(sparsity=0.5, allocation="uniform").run(
        model, CalibratedContext(feeds)
    )
    assert [each.reason for each in outcome.declined] == [
        "pruned, not fitted: it is FLOAT16, not FLOAT: export the model in float32"
    ]
