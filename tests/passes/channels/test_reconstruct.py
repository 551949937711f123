"""Layers are fitted to what they computed in the whole model, on the inputs that the pruned one
gives them.
"""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from importance_nets import literal
from onnx_opt.passes._calibrated.layers import fittable_layers
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._dims.groups import kept_slots
from onnx_opt.passes._dims.remove import remove_slots
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced
from onnx_opt.passes._reconstruct.layers import (
    DAMPING_FACTORS,
    _best_damping_factor,
    reconstruct,
)
from onnx_opt.runtime.taps import with_taps

RANDOM = np.random.default_rng(1)
FEEDS = [{"x": RANDOM.normal(size=(128, 4)).astype(np.float32)} for _ in range(3)]
A, B, C = (
    RANDOM.normal(size=(4, 6)),
    RANDOM.normal(size=(6, 4)),
    RANDOM.normal(size=(4, 2)),
)
B[5] = B[
    4
]  # what the last two hidden units do is alike, so one can do it for both when they are alike, too
A[:, 5] = A[:, 4]


def whole_model(a=A, b=B, c=C):
    """X -> a, Relu, b, + x, Relu -> c: hidden units behind a shortcut, and a layer that keeps its
    inputs.
    """
    model = ir.from_proto(
        onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        whole (float[N, 4] x) => (float[N, 2] y)
        <float[4, 6] a = {literal(a)}, float[6, 4] b = {literal(b)}, float[4, 2] c = {literal(c)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            s = Add (k, x)
            t = Relu (s)
            y = MatMul (t, c)
        }}""")
    )
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    refresh_shapes(model)
    return model


def pruned_of(whole, units):
    """(the model without some hidden units, what stayed)."""
    solution = solve(relate(whole, traced(whole)))
    value = next(v for node in whole.graph for v in node.outputs if v.name == "h")
    kept = kept_slots(solution, solution.slots(value, 1)[units])
    pruned = whole.clone()
    remove_slots(pruned, kept, solution.relations.trace)
    return pruned, kept


class Resuming(CalibratedContext):
    """A context that can go on from stored tensors; counts how often it does, and what nodes it
    runs.
    """

    def __init__(self, feeds, log=None):
        super().__init__(feeds)
        self.log = [] if log is None else log

    def collect(self, model, requests, samples):
        self.log.append(len(model.graph))
        return super().collect(model, requests, samples)

    def after(self, model, tensors, samples):
        session = run_session(with_taps(model, tensors))
        names = [o.name for o in session.get_outputs()]
        kept = []
        for feeds in self.feeds:
            values = feeds | dict(zip(names, session.run(None, feeds), strict=True))
            kept.append({name: values[name] for name in tensors})
        return Resuming(kept, self.log)


class Forgetful(Resuming):
    """A context that can keep nothing."""

    def after(self, model, tensors, samples):
        return None


def outputs(model):
    session = run_session(model)
    return np.concatenate([session.run(None, feeds)[0] for feeds in FEEDS])


def error(whole, pruned):
    """Of the outputs, relative."""
    y = outputs(whole)
    return float(np.linalg.norm(outputs(pruned) - y) / np.linalg.norm(y))


def test_nothing_lost_nothing_fitted():
    whole = whole_model()
    pruned = whole.clone()
    assert reconstruct(whole, pruned, {}, CalibratedContext(FEEDS), 384, 1e-3) == (
        0,
        [],
    )
    np.testing.assert_array_equal(outputs(pruned), outputs(whole))


def test_what_another_unit_can_do_is_recovered_exactly():
    whole = whole_model()
    pruned, kept = pruned_of(whole, [5])
    assert error(whole, pruned) > 0.1
    reconstruct(whole, pruned, kept, CalibratedContext(FEEDS), 384, 1e-9)
    assert error(whole, pruned) < 1e-4


def test_the_layer_behind_the_drift_is_fitted_too():
    whole = whole_model()
    pruned, kept = pruned_of(whole, [0, 1])
    fitted, left = reconstruct(whole, pruned, kept, CalibratedContext(FEEDS), 384, 1e-9)
    assert (fitted, left) == (2, [])
    again = whole.clone()
    lost_only, _ = pruned_of(again, [0, 1])
    first = next(n for n in pruned.graph if n.name == "make_k")
    for node in (
        lost_only.graph
    ):  # the same fit of the layer that lost inputs, and the last layer as it was
        if node.name == "make_k":
            node.inputs[1].const_value = first.inputs[1].const_value
    assert error(whole, pruned) < error(whole, lost_only) < 1


def test_the_last_layer_is_the_least_squares_fit():
    whole = whole_model()
    pruned, kept = pruned_of(whole, [0, 1])
    reconstruct(whole, pruned, kept, CalibratedContext(FEEDS), 384, 1e-9)
    last = next(node for node in pruned.graph if node.name == "make_y")
    session = run_session(with_taps(pruned, [last.inputs[0].name]))
    names = [o.name for o in session.get_outputs()]
    inputs = np.concatenate(
        [session.run(None, feeds)[names.index(last.inputs[0].name)] for feeds in FEEDS]
    )
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(
        np.float64
    )
    best = (
        inputs
        @ np.linalg.lstsq(inputs, outputs(whole).astype(np.float64), rcond=None)[0]
    )
    wanted = outputs(whole)
    assert np.linalg.norm(outputs(pruned) - wanted) <= 1.01 * np.linalg.norm(
        best - wanted
    )


@pytest.mark.parametrize("units", [[0], [1, 2, 3]])
def test_recovery_loses_less_than_pruning(units):
    whole = whole_model()
    pruned, kept = pruned_of(whole, units)
    before = error(whole, pruned)
    reconstruct(whole, pruned, kept, CalibratedContext(FEEDS), 384, 1e-3)
    assert error(whole, pruned) < before


def test_strong_damping_leaves_the_weights():
    whole = whole_model()
    pruned, kept = pruned_of(whole, [0])
    weight = next(n for n in pruned.graph if n.name == "make_k").inputs[1]
    before = weight.const_value.numpy().copy()
    reconstruct(whole, pruned, kept, CalibratedContext(FEEDS), 384, 1e6)
    np.testing.assert_allclose(weight.const_value.numpy(), before, atol=1e-4)


def test_going_on_from_stored_tensors_fits_the_same():
    whole = whole_model()
    results = []
    for kind in (CalibratedContext, Resuming, Forgetful):
        pruned, kept = pruned_of(whole, [0, 1])
        reconstruct(whole, pruned, kept, kind(FEEDS), 384, 1e-6)
        results.append(outputs(pruned))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4, atol=1e-4)


def test_what_was_run_is_not_run_again():
    logs = []
    for kind in (Resuming, Forgetful):
        whole = whole_model()
        pruned, kept = pruned_of(whole, [0, 1])
        context = kind(FEEDS)
        reconstruct(whole, pruned, kept, context, 384, 1e-6)
        logs.append(context.log)
    resumed, anew = logs
    assert resumed[0] == anew[0]
    assert resumed[1] < anew[1] / 2


def test_tensors_of_unknown_type_are_made_again_rather_than_kept():
    whole = whole_model()
    for node in whole.graph:
        node.outputs[0].type = None if node.name == "make_t" else node.outputs[0].type
    pruned, kept = pruned_of(whole, [0, 1])
    context = Resuming(FEEDS)
    assert reconstruct(whole, pruned, kept, context, 384, 1e-6) == (2, [])
    assert context.log[1] > context.log[0]


def test_layers_that_the_data_never_reached_are_named():
    class Blind(CalibratedContext):
        def collect(self, model, requests, samples):
            return {}

    whole = whole_model()
    pruned, kept = pruned_of(whole, [0])
    fitted, left = reconstruct(whole, pruned, kept, Blind(FEEDS), 384, 1e-3)
    assert (fitted, left) == (0, ["k", "y"])


def test_requests_ask_for_the_layers_own_patches():
    asked = []

    class Asked(CalibratedContext):
        def collect(self, model, requests, samples):
            asked.extend(dataclasses.replace(r) for r in requests.values())
            return super().collect(model, requests, samples)

    whole = whole_model()
    pruned, kept = pruned_of(whole, [0])
    reconstruct(whole, pruned, kept, Asked(FEEDS), 384, 1e-3)
    assert {r.kind for r in asked} == {"regression"}
    assert [(r.tensor, r.part) for r in asked] == [
        ("pruned/r", "even"),
        ("pruned/r", "odd"),
        ("pruned/t", "even"),
        ("pruned/t", "odd"),
    ]


def test_few_samples_of_a_noisy_target_pull_towards_the_weights():
    whole = whole_model()
    layer = fittable_layers(whole)[0][0]
    rng = np.random.default_rng(0)
    start = np.concatenate([layer.rows(), layer.bias_row()[:, None]], axis=1)
    halves = []
    for _ in range(2):
        z = np.concatenate(
            [
                rng.standard_normal((layer.width + 2, layer.width)),
                np.ones((layer.width + 2, 1)),
            ],
            axis=1,
        )
        y = z @ start.T + 50 * rng.standard_normal((len(z), len(start)))
        halves.append((z.T @ np.concatenate([z, y], axis=1) / len(z))[None])
    assert _best_damping_factor(layer, halves, 1e-3) == DAMPING_FACTORS[-1]
