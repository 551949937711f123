import numpy as np
import pytest
from calibrated_context import run_session
from importance_nets import RAW, literal, mlp, solved
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.importance.data import UNREAD, activation, variance
from onnx_opt.runtime.taps import with_taps

EYE = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
V = [[3, 4], [1, 0], [0, 2]]
X = np.array([[1, -1, 2], [3, 1, 2]], np.float32)  # after Relu: [1, 0, 2], [3, 1, 2]


@pytest.mark.parametrize(
    ("criterion", "want"),
    [
        (activation, [5 * 2, 1 * 0.5, 2 * 2]),
        (variance, [25 * 1, 1 * 0.25, 0]),
    ],
)
def test_two_samples_by_hand(calibrated, criterion, want):
    model, solution, groups = mlp(EYE, V)
    (found,) = criterion(groups, solution, model, calibrated([{"x": X}]), RAW)
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("base", ["activation", "variance"])
def test_convolutions_as_a_loop_over_channels(calibrated, base):
    rng = np.random.default_rng(0)
    w, d, v = (
        rng.normal(size=(4, 2, 3, 3)),
        rng.normal(size=(6, 2, 1, 1)),
        rng.normal(size=(3, 4, 3, 3)),
    )
    model, solution, groups = solved(f"""
        fork (float[N, 2, 8, 8] x) => (float[N, 6, 6, 6] y, float[N, 3, 4, 4] z)
        <float[4, 2, 3, 3] w = {literal(w)}, float[6, 2, 1, 1] d = {literal(d)}, float[3, 4, 3,
            3] v = {literal(v)}>
        {{
            h = Conv (x, w)
            r = Relu (h)
            y = Conv <group = 2> (r, d)
            z = Conv (r, v)
        }}
        """)
    feeds = {"x": rng.normal(size=(5, 2, 8, 8)).astype(np.float32)}
    seen = run_session(with_taps(model, ["r"])).run(["r"], feeds)[0].astype(float)
    criterion = {"activation": activation, "variance": variance}[base]
    (found,) = criterion(groups, solution, model, calibrated([feeds]), RAW)
    rows = [
        np.linalg.norm(d.reshape(2, 3, 2), axis=1).reshape(4),
        np.linalg.norm(v.transpose(1, 0, 2, 3).reshape(4, -1), axis=1),
    ]
    x = seen.transpose(1, 0, 2, 3).reshape(4, -1)
    want = [
        n * np.abs(x).mean(1) if base == "activation" else n**2 * x.var(1) for n in rows
    ]
    channel = solution.slots(
        next(node for node in model.graph if node.op_type == "Relu").outputs[0], 1
    )
    assert sorted(channel - groups[0].channels[0]) == [
        0,
        0,
        1,
        1,
    ]  # the grouped convolution couples its groups
    np.testing.assert_allclose(
        found, np.bincount(channel - groups[0].channels[0], sum(want)), rtol=1e-5
    )


@pytest.mark.parametrize("criterion", [activation, variance])
def test_products_of_activations_are_no_readers(calibrated, criterion):
    rng = np.random.default_rng(0)
    model, solution, groups = solved(f"""
        scores (float[N, 3, 2] x) => (float[N, 3, 3] y)
        <float[2, 4] q = {literal(rng.normal(size=8))}, float[2,
            4] k = {literal(rng.normal(size=8))}>
        {{
            a = MatMul (x, q)
            b = MatMul (x, k)
            t = Transpose <perm = [0, 2, 1]> (b)
            y = MatMul (a, t)
        }}
        """)
    assert criterion(
        groups,
        solution,
        model,
        calibrated([{"x": np.ones((1, 3, 2), np.float32)}]),
        RAW,
    ) == [UNREAD]


def test_what_the_run_does_not_reach_has_a_reason():
    class Nothing(NullContext):
        def collect(self, model, requests, samples):
            return {}

    model, solution, groups = mlp(EYE, V)
    assert variance(groups, solution, model, Nothing(), RAW) == [
        "no calibration sample reached the nodes that read it"
    ]
