import dataclasses

import numpy as np
import pytest
from calibrated_context import run_session
from importance_nets import literal, mlp, solved
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.importance import drift as drift_module
from onnx_opt.passes._channels.importance.data import UNREAD
from onnx_opt.passes._channels.importance.drift import drift, drift_order
from onnx_opt.passes._channels.importance.obs import ObsInput
from onnx_opt.passes._channels.importance.scores import ScoreOptions
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.runtime.moments import patches
from onnx_opt.runtime.taps import with_taps

OPTIONS = ScoreOptions()
RANDOM = np.random.default_rng(0)


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(drift_module, "DAMP", 0.0)


@pytest.fixture
def hardly_damped(monkeypatch):
    monkeypatch.setattr(drift_module, "DAMP", 1e-9)


def lost(inputs, weight, gone):
    """Share of the variance of x W^T that least squares from the other inputs and a constant cannot
    give back.
    """
    y = inputs @ weight.T
    left = np.concatenate(
        [np.delete(inputs, gone, axis=1), np.ones((len(inputs), 1))], axis=1
    )
    rest = y - left @ np.linalg.lstsq(left, y, rcond=None)[0]
    return np.square(rest).sum() / np.square(y - y.mean(0)).sum()


def greedy(count, cost):
    """Order and costs of taking out whatever costs least, by trying everything."""
    order, costs = [], []
    while len(order) < count:
        trials = {c: cost([*order, c]) for c in range(count) if c not in order}
        order.append(min(trials, key=trials.get))
        costs.append(trials[order[-1]])
    return order, costs


@pytest.fixture
def linear(calibrated):
    """A net of five hidden channels: the fourth a mix of others, the fifth constant; what the
    reader multiplies.
    """
    x = RANDOM.normal(size=(200, 4)).astype(np.float32)
    w, v = RANDOM.normal(size=(4, 5)), RANDOM.normal(size=(5, 3))
    w[:, 3] = w[:, 0] + w[:, 1]
    w[:, 4] = 0
    net = solved(f"""
        net (float[N, 4] x) => (float[N, 3] y)
        <float[4, 5] w = {literal(w)}, float[5] c = {{0, 0, 0, 1, 2}}, float[5, 3] v = {literal(v)}>
        {{
            h = MatMul (x, w)
            r = Add (h, c)
            y = MatMul (r, v)
        }}
        """)
    hidden = (x.astype(float) @ w.astype(np.float32)) + [0, 0, 0, 1, 2]
    return net, calibrated([{"x": x}]), hidden, v.astype(np.float32).T.astype(float)


def test_what_depends_on_the_rest_goes_first_and_drift_is_what_least_squares_leaves(
    linear, hardly_damped
):
    (model, solution, groups), context, hidden, weight = linear
    (found,) = drift_order(groups, solution, model, context, OPTIONS)
    assert 4 in found.order[:2]
    assert (
        len({0, 1, 3} & set(found.order[:2])) == 1
    )  # any one of three that depend on each other costs nothing
    costs = [lost(hidden, weight, found.order[: gone + 1]) for gone in range(5)]
    np.testing.assert_allclose(found.drift, costs, atol=2e-6)
    assert found.drift[1] < 1e-6 < found.drift[2]


def test_scores_are_the_drift_at_which_a_channel_goes(linear):
    (model, solution, groups), context, _, _ = linear
    (scores,) = drift(groups, solution, model, context, OPTIONS)
    (order,) = drift_order(groups, solution, model, context, OPTIONS)
    np.testing.assert_array_equal(np.argsort(scores, kind="stable"), order.order)
    assert scores[4] == 0  # it does not vary
    assert scores.max() == pytest.approx(1)  # all of the output's variance
    assert (np.diff(order.drift) >= 0).all()


def conv_net(groups_of_reader):
    w = RANDOM.normal(size=(4, 2, 1, 1))
    v = RANDOM.normal(size=(2, 4 // groups_of_reader, 3, 3))
    return solved(f"""
        convs (float[N, 2, 7, 7] x) => (float[N, 2, M, M] y)
        <float[4, 2, 1, 1] w = {literal(w)}, float[2, {4 // groups_of_reader}, 3,
            3] v = {literal(v)}>
        {{
            h = Conv (x, w)
            r = Tanh (h)
            y = Conv <pads = [1, 1, 1, 1], group = {groups_of_reader}> (r, v)
        }}
        """)


@pytest.mark.parametrize("reader_groups", [1, 2])
def test_patches_of_convolutions_go_together(calibrated, hardly_damped, reader_groups):
    model, solution, groups = conv_net(reader_groups)
    feeds = {"x": RANDOM.normal(size=(6, 2, 7, 7)).astype(np.float32)}
    (found,) = drift_order(groups, solution, model, calibrated([feeds]), OPTIONS)
    window = MomentRequest(
        "r",
        "gram",
        axis=1,
        kernel=(3, 3),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
        groups=reader_groups,
    )
    hidden = run_session(with_taps(model, ["r"])).run(["r"], feeds)[0]
    rows = patches(hidden, window).astype(float)
    weight = (
        model.graph.initializers["v"]
        .const_value.numpy()
        .astype(float)
        .reshape(reader_groups, -1, rows.shape[2])
    )
    channel = solution.slots(
        next(n for n in model.graph if n.op_type == "Tanh").outputs[0], 1
    )
    owner = (
        (channel - groups[0].channels[0]).reshape(reader_groups, -1).repeat(9, axis=1)
    )

    def cost(gone):
        left = whole = 0.0
        for x, w, own in zip(rows, weight, owner, strict=True):
            energy = np.square(x @ w.T - (x @ w.T).mean(0)).sum()
            left += lost(x, w, np.flatnonzero(np.isin(own, gone))) * energy
            whole += energy
        return left / whole

    order, costs = greedy(len(groups[0].channels), cost)
    assert found.order.tolist() == order
    np.testing.assert_allclose(
        found.drift, costs, rtol=1e-4, atol=1e-6
    )  # shares of a whole that is 1


def test_of_two_equal_channels_only_one_is_superfluous(calibrated):
    w = RANDOM.normal(size=(3, 4))
    w[:, 2] = w[:, 1]
    model, solution, groups = mlp(w, RANDOM.normal(size=(4, 2)))
    context = calibrated([{"x": RANDOM.normal(size=(50, 3)).astype(np.float32)}])
    (found,) = drift_order(groups, solution, model, context, OPTIONS)
    assert found.order[0] in (1, 2)
    assert found.drift[0] < 1e-3
    assert {1, 2} - {found.order[0]} <= set(found.order[2:].tolist()) or found.drift[
        1
    ] > 1e-3


def test_readers_are_combined_as_asked(calibrated, undamped):
    a, b = RANDOM.normal(size=(4, 2)), RANDOM.normal(size=(4, 3))
    model, solution, groups = solved(f"""
        fork (float[N, 4] x) => (float[N, 2] y, float[N, 3] z)
        <float[4, 4] w = {literal(np.eye(4))}, float[4, 2] a = {literal(a)}, float[4,
            3] b = {literal(b)}>
        {{
            h = MatMul (x, w)
            y = MatMul (h, a)
            z = MatMul (h, b)
        }}
        """)
    x = RANDOM.normal(size=(80, 4)).astype(np.float32)
    shares = [
        np.array(
            [
                lost(x.astype(float), v.astype(np.float32).T.astype(float), [c])
                for c in range(4)
            ]
        )
        for v in (a, b)
    ]
    wanted = {
        "mean": sum(shares) / 2,
        "sum": sum(shares),
        "max": np.maximum(*shares),
        "first": shares[0],
    }
    for how, want in wanted.items():
        options = dataclasses.replace(OPTIONS, aggregate=how)
        (found,) = drift_order(groups, solution, model, calibrated([{"x": x}]), options)
        assert found.drift[0] == pytest.approx(want.min(), rel=1e-4)
        assert found.order[0] == want.argmin()


def test_few_updates_and_little_memory_find_nearly_the_same(
    calibrated, undamped, monkeypatch
):
    x = RANDOM.normal(size=(300, 8)).astype(np.float32)
    net = mlp(RANDOM.normal(size=(8, 20)), RANDOM.normal(size=(20, 5)))
    model, solution, groups = net
    (exact,) = drift_order(groups, solution, model, calibrated([{"x": x}]), OPTIONS)
    monkeypatch.setattr(drift_module, "ROUNDS", 5)
    (fewer,) = drift_order(groups, solution, model, calibrated([{"x": x}]), OPTIONS)
    assert sorted(fewer.order) == list(range(20))
    assert fewer.drift[-1] == pytest.approx(1)
    assert fewer.drift[9] < 2 * exact.drift[9]
    monkeypatch.setattr(drift_module, "MEMORY", 100)
    assert drift_order(groups, solution, model, calibrated([{"x": x}]), OPTIONS) == [
        "MatMul y: a layer that reads it has 20 inputs, too many to compare"
    ]


def test_groups_share_runs_over_the_data_within_the_memory(
    calibrated, undamped, monkeypatch
):
    w = [literal(RANDOM.normal(size=(4, 4))) for _ in range(4)]
    model, solution, groups = solved(f"""
        deep (float[N, 4] x) => (float[N, 4] y)
        <float[4, 4] a = {w[0]}, float[4, 4] b = {w[1]}, float[4, 4] c = {w[2]}, float[4,
            4] d = {w[3]}>
        {{
            h = MatMul (x, a)
            i = Relu (h)
            j = MatMul (i, b)
            k = Relu (j)
            l = MatMul (k, c)
            m = Relu (l)
            y = MatMul (m, d)
        }}
        """)
    context, runs = (
        calibrated([{"x": RANDOM.normal(size=(50, 4)).astype(np.float32)}]),
        [],
    )
    collect = context.collect
    context.collect = lambda model, requests, samples: (
        runs.append(len(requests)) or collect(model, requests, samples)
    )
    together = drift(groups, solution, model, context, OPTIONS)
    monkeypatch.setattr(drift_module, "MEMORY", 2 * 8 * 25)
    apart = drift(groups, solution, model, context, OPTIONS)
    assert runs == [3, 2, 1]
    np.testing.assert_array_equal(together, apart)


def test_nothing_reads_it():
    q = literal(RANDOM.normal(size=8))
    model, solution, groups = solved(f"""
        scores (float[N, 3, 2] x) => (float[N, 3, 3] y)
        <float[2, 4] q = {q}, float[2, 4] k = {q}>
        {{
            a = MatMul (x, q)
            b = MatMul (x, k)
            t = Transpose <perm = [0, 2, 1]> (b)
            y = MatMul (a, t)
        }}
        """)
    assert drift(groups, solution, model, NullContext(), OPTIONS) == [UNREAD]


def test_a_constant_output_has_no_drift():
    read = ObsInput.of(
        [np.ones((1, 2, 3))], np.ones((1, 4, 4)), np.arange(3)[None], 1e-4
    )
    np.testing.assert_array_equal(read.costs(3), [0, 0, 0])


def test_costs_as_least_squares_before_and_after_a_removal():
    x = RANDOM.normal(size=(200, 6)) @ RANDOM.normal(size=(6, 6))
    z, weight = (
        np.concatenate([x, np.ones((200, 1))], axis=1),
        RANDOM.normal(size=(4, 6)),
    )
    read = ObsInput.of(
        [weight[None]], (z.T @ z / 200)[None], np.array([[0, 0, 1, 2, -1, 3]]), 0.0
    )
    columns = {0: [0, 1], 1: [2], 2: [3], 3: [5]}
    np.testing.assert_allclose(
        read.costs(4), [lost(x, weight, c) for c in columns.values()], rtol=1e-8
    )
    read.remove([1])
    now = lost(x, weight, [2])
    want = [
        0 if own == 1 else lost(x, weight, [2, *c]) - now for own, c in columns.items()
    ]
    np.testing.assert_allclose(read.costs(4), want, rtol=1e-6)
    np.testing.assert_allclose(
        read.restricted(np.array([0, 3])).costs(4)[[0, 3]],
        np.array(want)[[0, 3]],
        rtol=1e-6,
    )


def test_layers_of_one_input_count_together_as_they_would_alone():
    x = RANDOM.normal(size=(200, 5)) @ RANDOM.normal(size=(5, 5))
    z = np.concatenate([x, np.ones((200, 1))], axis=1)
    gram = (z.T @ z / 200)[None]
    owner = np.array([[0, 0, 1, 2, 3]])
    # few rows and many
    weights = [RANDOM.normal(size=(1, rows, 5)) for rows in (3, 40)]
    together = ObsInput.of(weights, gram, owner, 1e-4)
    alone = [ObsInput.of([weight], gram, owner, 1e-4) for weight in weights]
    assert together.readers == 2
    for gone in ([], [2], [0]):
        for read in (together, *alone):
            read.remove(gone)
        expected = alone[0].costs(4) + alone[1].costs(4)
        np.testing.assert_allclose(together.costs(4), expected, rtol=1e-9)


def test_what_overflows_has_a_reason(calibrated, undamped):
    model, solution, groups = mlp(
        RANDOM.normal(size=(3, 4)) * 1e30, RANDOM.normal(size=(4, 2))
    )
    context = calibrated([{"x": RANDOM.normal(size=(5, 3)).astype(np.float32)}])
    assert drift(groups, solution, model, context, OPTIONS) == [
        "the squares of its values overflow"
    ]
