import dataclasses

import numpy as np
import pytest
from importance_nets import RAW, literal, mlp, solved
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.importance.scores import (
    ScoreOptions,
    combined,
    normalised,
)
from onnx_opt.passes._channels.importance.weights import (
    bn_scale,
    chance,
    geometric_median,
    l1,
    l2,
)

W = [[3, 0, 1], [-4, 0, 2]]
V = [[1, 1, 1, 1], [0, 3, 0, 4], [0, 0, 0, 0]]


def scores(criterion, net, options=RAW, context=None):
    model, solution, groups = net
    return criterion(groups, solution, model, context or NullContext(), options)


@pytest.mark.parametrize(
    ("criterion", "options", "want"),
    [
        (l1, RAW, [7 + 4, 0 + 7, 3 + 0]),
        (l2, RAW, [5 + 2, 0 + 5, 5**0.5]),
        (l2, dataclasses.replace(RAW, aggregate="first"), [5, 0, 5**0.5]),
        (l2, dataclasses.replace(RAW, aggregate="max"), [5, 5, 5**0.5]),
        (l1, dataclasses.replace(RAW, aggregate="mean"), [5.5, 3.5, 1.5]),
        (l1, ScoreOptions(normalise="max", aggregate="sum"), [1 + 4 / 7, 0 + 1, 3 / 7]),
    ],
)
def test_norms_of_both_weights_by_hand(criterion, options, want):
    (found,) = scores(criterion, mlp(W, V), options)
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("none", [1, 2, 3]),
        ("mean", [0.5, 1, 1.5]),
        ("max", [1 / 3, 2 / 3, 1]),
        ("std", np.array([1, 2, 3]) / (2 / 3) ** 0.5),
    ],
)
def test_normalisation_is_a_scale(how, want):
    np.testing.assert_allclose(normalised(np.array([1.0, 2, 3]), how), want)


@pytest.mark.parametrize("how", ["none", "mean", "max", "std"])
def test_nothing_to_normalise_by_changes_nothing(how):
    np.testing.assert_array_equal(normalised(np.zeros(3), how), np.zeros(3))


def test_one_part_is_its_own_combination():
    part = np.array([1.0, 4])
    for how in ("mean", "max", "sum", "first"):
        np.testing.assert_array_equal(
            combined([part], ScoreOptions(aggregate=how, normalise="none")), part
        )


def test_distances_from_the_other_channels_by_hand():
    (found,) = scores(geometric_median, mlp([[0, 3, 0], [0, 0, 4]], np.ones((3, 2))))
    np.testing.assert_allclose(found, [3 + 4, 3 + 5, 4 + 5], rtol=1e-6)


def test_distances_as_a_loop_over_filters(monkeypatch):
    monkeypatch.setattr("onnx_opt.passes._channels.importance.weights.COLUMNS", 7)
    rng = np.random.default_rng(0)
    w, v = (
        rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        rng.normal(size=(2, 6, 1, 1)),
    )
    net = solved(f"""
        convs (float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y)
        <float[6, 3, 3, 3] w = {literal(w)}, float[2, 6, 1, 1] v = {literal(v)}>
        {{
            h = Conv (x, w)
            y = Conv (h, v)
        }}
        """)
    want = [sum(np.linalg.norm((a - b).astype(float)) for b in w) for a in w]
    np.testing.assert_allclose(scores(geometric_median, net)[0], want, rtol=1e-6)


def test_each_part_of_a_concat_is_measured_by_itself():
    rng = np.random.default_rng(1)
    a, b = (
        rng.normal(size=(2, 3)).astype(np.float32),
        rng.normal(size=(2, 2)).astype(np.float32),
    )
    v = rng.normal(size=(5, 2)).astype(np.float32)
    net = solved(f"""
        concat (float[N, 2] x) => (float[N, 2] y)
        <float[2, 3] a = {literal(a)}, float[2, 2] b = {literal(b)}, float[5, 2] v = {literal(v)}>
        {{
            p = MatMul (x, a)
            q = MatMul (x, b)
            c = Concat <axis = 1> (p, q)
            y = MatMul (c, v)
        }}
        """)
    first, second = scores(l2, net)
    norms = np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(first, np.linalg.norm(a, axis=0) + norms[:3], rtol=1e-6)
    np.testing.assert_allclose(second, np.linalg.norm(b, axis=0) + norms[3:], rtol=1e-6)
    first, second = scores(geometric_median, net)
    np.testing.assert_allclose(
        second, [np.linalg.norm(b[:, 0] - b[:, 1])] * 2, rtol=1e-6
    )


def test_scales_of_batch_normalization():
    net = solved(f"""
        bn (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[3, 2, 1, 1] w = {literal(np.ones(6))}, float[2, 3, 1, 1] v = {literal(np.ones(6))},
         float[3] g = {{0.5, -2, 0}}, float[3] b = {{0, 0, 0}}, float[3] m = {{0, 0, 0}},
             float[3] s = {{1, 1, 1}}>
        {{
            h = Conv (x, w)
            n = BatchNormalization (h, g, b, m, s)
            r = Relu (n)
            y = Conv (r, v)
        }}
        """)
    np.testing.assert_array_equal(scores(bn_scale, net)[0], [0.5, 2, 0])


def test_no_batch_normalization_is_a_reason():
    assert scores(bn_scale, mlp(W, V)) == ["it has no BatchNormalization"]


def test_chance_follows_the_seed():
    net = mlp(W, V)
    first, again, other = (
        scores(chance, net, context=NullContext(seed=seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
