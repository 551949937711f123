"""Parameters, bytes and MACs of what is left, against counts made by hand."""

import numpy as np
import pytest
from importance_nets import literal, solved
from onnx_opt.passes._channels.costs import Cost, costs_of


def cost(text, pick=lambda solution, groups: []):
    """The cost of a model in text without the channels that `pick` names."""
    model, solution, groups = solved(text)
    removed = np.zeros(solution.count + 1, bool)
    for channels in pick(solution, groups):
        removed[channels] = True
    return costs_of(model, solution).of(removed)


def one_less(solution, groups):
    return [group.channels[:1] for group in groups]


def zeros(*shape):
    return literal(np.zeros(shape))


CONV = f"""
    conv (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y)
    <float[4, 2, 3, 3] a = {zeros(4, 2, 3, 3)}, float[4] b = {zeros(4)}, float[3, 4, 1,
        1] c = {zeros(3, 4, 1, 1)}>
    {{
        h = Conv <pads = [1, 1, 1, 1]> (x, a, b)
        y = Conv (h, c)
    }}
    """
GEMM = f"""
    gemm (float[N, 2] x) => (float[N, 3] y)
    <float[4, 2] a = {zeros(4, 2)}, float[4, 3] c = {zeros(4, 3)}, float[3] b = {zeros(3)}>
    {{
        h = Gemm <transB = 1> (x, a)
        y = Gemm (h, c, b)
    }}
    """
MATMUL = f"""
    matmul (float[N, T, 2] x) => (float[N, T, 3] y)
    <float[2, 4] a = {zeros(2, 4)}, float[4, 3] c = {zeros(4, 3)}>
    {{
        h = MatMul (x, a)
        y = MatMul (h, c)
    }}
    """
DEPTHWISE = f"""
    depthwise (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y)
    <float[4, 2, 1, 1] a = {zeros(4, 2, 1, 1)}, float[4, 1, 3, 3] d = {zeros(4, 1, 3, 3)},
     float[3, 4, 1, 1] c = {zeros(3, 4, 1, 1)}>
    {{
        h = Conv (x, a)
        k = Conv <group = 4, pads = [1, 1, 1, 1]> (h, d)
        y = Conv (k, c)
    }}
    """
TRANSPOSED = f"""
    up (float[N, 2, 4, 4] x) => (float[N, 3, 8, 8] y)
    <float[2, 4, 2, 2] a = {zeros(2, 4, 2, 2)}, float[3, 4, 1, 1] c = {zeros(3, 4, 1, 1)}>
    {{
        h = ConvTranspose <strides = [2, 2]> (x, a)
        y = Conv (h, c)
    }}
    """
CASES = [
    (CONV, 4 * 18 + 4 + 12, 25 * (4 * 18 + 12), 3 * 18 + 3 + 9, 25 * (3 * 18 + 9)),
    (GEMM, 8 + 12 + 3, 8 + 12, 6 + 9 + 3, 6 + 9),
    (MATMUL, 8 + 12, 8 + 12, 6 + 9, 6 + 9),
    (DEPTHWISE, 8 + 36 + 12, 25 * (8 + 36 + 12), 6 + 27 + 9, 25 * (6 + 27 + 9)),
    (TRANSPOSED, 32 + 12, 16 * 2 * 4 * 4 + 64 * 12, 24 + 9, 16 * 2 * 3 * 4 + 64 * 9),
]


@pytest.mark.parametrize(("text", "params", "macs", "_params", "_macs"), CASES)
def test_the_whole(text, params, macs, _params, _macs):
    assert cost(text) == Cost(params, 4 * params, macs)


@pytest.mark.parametrize(("text", "_params", "_macs", "params", "macs"), CASES)
def test_with_one_hidden_channel_less(text, _params, _macs, params, macs):
    assert cost(text, one_less) == Cost(params, 4 * params, macs)


def test_no_channels_no_cost():
    assert cost(MATMUL, lambda solution, groups: [g.channels for g in groups]) == Cost(
        0, 0, 0
    )


def test_a_product_of_activations_shrinks_with_its_width():
    text = f"""
        scores (float[N, 5, 2] x) => (float[N, 5, 5] y)
        <float[2, 4] q = {zeros(2, 4)}, float[2, 4] k = {zeros(2, 4)}>
        {{
            a = MatMul (x, q)
            b = MatMul (x, k)
            t = Transpose <perm = [0, 2, 1]> (b)
            y = MatMul (a, t)
        }}
        """
    assert cost(text).macs == 2 * 5 * 2 * 4 + 5 * 5 * 4
    assert cost(text, one_less).macs == 2 * 5 * 2 * 3 + 5 * 5 * 3


@pytest.mark.parametrize("text", [CONV, GEMM, MATMUL, DEPTHWISE, TRANSPOSED])
@pytest.mark.parametrize("kind", ["params", "bytes", "macs"])
def test_what_one_channel_takes_is_the_difference_of_two_costs(text, kind):
    model, solution, groups = solved(text)
    costs, nothing = costs_of(model, solution), np.zeros(solution.count + 1, bool)
    for group, saved in zip(groups, costs.saved_by_one(groups, kind), strict=True):
        gone = nothing.copy()
        gone[group.channels[0]] = True
        assert (
            saved
            == getattr(costs.of(nothing), kind) - getattr(costs.of(gone), kind)
            > 0
        )
