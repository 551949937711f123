"""Costs of parts of a group at the outputs of the model, against the model run without them."""

import numpy as np
import pytest
from calibrated_context import CalibratedContext, run_session
from importance_nets import literal, mlp, solved
from onnx_opt.passes._channels.sensitivity import FitData, output_losses
from onnx_opt.passes._core import output_drift

FEEDS = [
    {"x": np.random.default_rng(seed).normal(size=(64, 3)).astype(np.float32)}
    for seed in range(3)
]
WEIGHT = np.random.default_rng(5).normal(size=(3, 4))
HEAD = np.random.default_rng(6).normal(size=(4, 2))
SCORES = [np.array([0.3, 0.1, 0.2, 0.9])]


def measured(model, solution, groups, scores, feeds=FEEDS, damp=1e-9):
    context = CalibratedContext(feeds)
    data = FitData(context, context, 192, 192, damp)
    return output_losses(groups, solution, model, scores, data)


def lost_share(model, hidden, head, gone):
    """Share of the variance of y that a least-squares fit of y on the hidden units that stay, and
    1, leaves.
    """
    x = np.concatenate([feeds["x"] for feeds in FEEDS])
    units = hidden(x.astype(np.float64))
    y = units @ head
    stays = np.concatenate(
        [np.delete(units, gone, axis=1), np.ones((len(x), 1))], axis=1
    )
    rest = y - stays @ np.linalg.lstsq(stays, y, rcond=None)[0]
    return np.square(rest).sum() / np.square(y - y.mean(0)).sum()


def test_where_readers_are_the_outputs_losses_are_what_a_fit_leaves():
    model, solution, groups = mlp(WEIGHT, HEAD)
    (losses,) = measured(model, solution, groups, SCORES)
    for count, gone in [(0, []), (1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3])]:
        expected = lost_share(model, lambda x: np.maximum(x @ WEIGHT, 0), HEAD, gone)
        assert losses[count] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def shortcut(weight):
    """X -> MatMul a -> Relu -> MatMul b, times `weight`, added to x: what the branch loses reaches
    y in part.
    """
    return solved(f"""
        shortcut (float[N, 3] x) => (float[N, 3] y)
        <float[3, 4] a = {literal(WEIGHT)}, float[4, 3] b = {literal(np.ones((4, 3)))},
            float f = {{{weight}}}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            s = Mul (k, f)
            y = Add (s, x)
        }}
        """)


def test_a_branch_beside_a_shortcut_costs_what_it_adds_to_the_sum():
    small, large = (measured(*shortcut(weight), SCORES)[0] for weight in (0.01, 1.0))
    assert small[2] < 1e-2 * large[2]
    assert (np.diff(large) >= 0).all()
    assert large[0] == small[0] == 0


def test_dead_channels_cost_nothing():
    dead = WEIGHT.copy()
    dead[:, 1] = 0
    model, solution, groups = mlp(dead, HEAD)
    (losses,) = measured(model, solution, groups, [np.array([0.3, 0.0, 0.2, 0.9])])
    assert losses[1] == 0


def test_variants_in_several_runs_measure_the_same(monkeypatch):
    model, solution, groups = shortcut(1.0)
    together = measured(model, solution, groups, SCORES)
    monkeypatch.setattr(output_drift, "MEMORY", 1)
    np.testing.assert_allclose(
        measured(model, solution, groups, SCORES)[0], together[0], rtol=1e-5
    )


def test_groups_without_linear_readers_reach_as_far_as_the_median():
    model, solution, groups = solved(f"""
        tied (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] a = {literal(WEIGHT)}, float[3, 4] t = {literal(WEIGHT)}, float[4,
            2] b = {literal(HEAD)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            u = Transpose <perm = [1, 0]> (t)
            k = MatMul (r, u)
            l = MatMul (k, t)
            y = MatMul (l, b)
        }}
        """)
    scores = [np.linspace(0.1, 0.4, len(g.channels)) for g in groups]
    losses = measured(model, solution, groups, scores)
    assert [len(each) for each in losses] == [len(g.channels) + 1 for g in groups]
    assert all(np.isfinite(each).all() and each[0] == 0 for each in losses)


def test_the_model_stays_as_it_was():
    model, solution, groups = mlp(WEIGHT, HEAD)
    before = run_session(model).run(None, FEEDS[0])[0]
    measured(model, solution, groups, SCORES)
    np.testing.assert_array_equal(run_session(model).run(None, FEEDS[0])[0], before)


def test_elements_that_are_not_finite_do_not_count():
    model, solution, groups = solved(f"""
        masked (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] a = {literal(WEIGHT)}, float[4, 2] b = {literal(HEAD)}, float one = {{1}},
            float zero = {{0}}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            low = Less (k, zero)
            endless = Div (one, zero)
            y = Where (low, endless, k)
        }}
        """)
    (losses,) = measured(model, solution, groups, SCORES)
    assert np.isfinite(losses).all()
    assert losses[2] > 0


def test_outputs_whose_sizes_vary_between_batches():
    model, solution, groups = solved(f"""
        lengths (float[N, T, 3] x) => (float[N, 2, T] y)
        <float[3, 4] a = {literal(WEIGHT)}, float[4, 2] b = {literal(HEAD)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            y = Transpose <perm = [0, 2, 1]> (k)
        }}
        """)
    feeds = [
        {"x": np.random.default_rng(t).normal(size=(2, t, 3)).astype(np.float32)}
        for t in (5, 9)
    ]
    (losses,) = measured(model, solution, groups, SCORES, feeds)
    assert 0 < losses[1] < losses[4]


def test_without_float_outputs_drift_of_readers_decides():
    model, solution, groups = solved(f"""
        classes (float[N, 3] x) => (int64[N] y)
        <float[3, 4] a = {literal(WEIGHT)}, float[4, 2] b = {literal(HEAD)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            y = ArgMax <axis = 1, keepdims = 0> (k)
        }}
        """)
    (losses,) = measured(model, solution, groups, SCORES)
    assert losses.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.9])
