"""The least loss within a budget, against every choice there is."""

import itertools

import numpy as np
import pytest
from importance_nets import mlp, solved
from onnx_opt.passes._channels.budget import (
    allocate_under_budget,
    allocate_within_loss,
    offers_of,
    smallest_ratio,
    total_loss,
)
from onnx_opt.passes._channels.select import Candidates, choose


def candidates(groups, widths):
    return Candidates(
        groups,
        [np.arange(len(g.channels), dtype=float) for g in groups],
        widths,
        [len(g.channels) for g in groups],
    )


def two_layers(width=4):
    """Two groups of `width` hidden units, one behind the other."""
    one = np.ones((width, width))
    _, _, groups = solved(f"""
        two (float[N, {width}] x) => (float[N, {width}] y)
        <float[{width}, {width}] a = {literal(one)}, float[{width}, {width}] b = {literal(one)},
         float[{width}, {width}] c = {literal(one)}>
        {{
            h = MatMul (x, a)
            r = Relu (h)
            k = MatMul (r, b)
            s = Relu (k)
            y = MatMul (s, c)
        }}
        """)
    return groups


def literal(array):
    return "{" + ", ".join(map(str, array.reshape(-1))) + "}"


def cost(choice):
    """MACs of `two_layers(4)` as a fraction of the whole."""
    first, second = (4 - n for n in choice)
    return (4 * first + first * second + 4 * second) / 48


def every(groups):
    return itertools.product(*(range(len(g.channels)) for g in groups))


def test_a_budget_that_is_met_takes_nothing():
    groups = two_layers()
    losses = [np.array([0, 1, 2, 4, 8.0])] * 2
    assert allocate_under_budget(
        candidates(groups, [np.arange(1, 5)] * 2), losses, cost, 1.0, "cpu"
    ) == [0, 0]


@pytest.mark.parametrize("most", [0.9, 0.75, 0.6, 0.4, 0.25])
def test_no_other_choice_within_the_budget_loses_less(most):
    groups = two_layers()
    losses = [np.array([0, 0.1, 0.4, 1.2, 5]), np.array([0, 0.3, 0.7, 1.5, 5])]
    found = allocate_under_budget(
        candidates(groups, [np.arange(1, 5)] * 2), losses, cost, most, "cpu"
    )
    assert cost(found) <= most
    least = min(
        sum(loss[n] for loss, n in zip(losses, choice, strict=True))
        for choice in every(groups)
        if cost(choice) <= most
    )
    assert sum(loss[n] for loss, n in zip(losses, found, strict=True)) == pytest.approx(
        least
    )


def test_a_budget_out_of_reach_gives_the_cheapest_choice():
    groups = two_layers()
    losses = [np.array([0, 1, 2, 4, 8.0])] * 2
    assert allocate_under_budget(
        candidates(groups, [np.arange(2, 5)] * 2), losses, cost, 0.1, "cpu"
    ) == [2, 2]


def test_only_allowed_widths_are_taken():
    groups = two_layers()
    losses = [np.array([0, 0.1, 0.4, 1.2, 5]), np.array([0, 0.3, 0.7, 1.5, 5])]
    widths = [np.array([2, 4]), np.array([1, 4])]
    found = allocate_under_budget(candidates(groups, widths), losses, cost, 0.8, "cpu")
    assert [4 - n for n in found] in [[2, 4], [4, 1], [2, 1]]


@pytest.mark.parametrize(("target", "kept"), [("cpu", [16, 32]), ("cuda", [24, 24])])
def test_channels_within_a_block_that_stays_count_for_little(target, kept):
    """Two equal convolutions of 32 channels: a quarter of all goes where the target saves most for
    what it loses.
    """
    kernel = ", ".join(["0.1"] * 32)
    _, _, groups = solved(f"""
        convs (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)
        <float[32, 1, 1, 1] a = {{{kernel}}}, float[1, 32, 1, 1] b = {{{kernel}}},
         float[32, 1, 1, 1] c = {{{kernel}}}, float[1, 32, 1, 1] d = {{{kernel}}}>
        {{
            h = Conv (x, a)
            r = Relu (h)
            m = Conv (r, b)
            k = Conv (m, c)
            s = Relu (k)
            y = Conv (s, d)
        }}
        """)
    curve = np.arange(33.0) ** 1.5  # convex: alone, it would take as much of each
    found = allocate_under_budget(
        candidates(groups, [np.arange(1, 33)] * 2),
        [curve, curve],
        lambda choice: 1 - sum(choice) / 64,
        0.75,
        target,
    )
    assert sorted(32 - n for n in found) == kept


def test_whole_groups_go_where_width_zero_is_allowed():
    _, _, groups = mlp(np.ones((3, 4)), np.ones((4, 2)))
    found = allocate_under_budget(
        candidates(groups, [np.arange(0, 5)]),
        [np.array([0, 1, 1, 1, 1.0])],
        lambda choice: 1 - choice[0] / 4,
        0.2,
        "cpu",
    )
    assert found == [4]


def test_the_smallest_ratio_within_a_budget():
    _, _, groups = mlp(np.ones((2, 10)), np.ones((10, 2)))
    picked = candidates(groups, [np.arange(1, 11)])
    choice = smallest_ratio(
        lambda c: 1 - c[0] / 10, 0.65, lambda ratio: choose(picked, "layer", ratio)
    )
    assert choice == [4]


def test_what_a_ratio_leaves_of_the_budget_widens_groups():
    def left(choice):
        return 1 - sum(choice) / 10

    def pick(ratio):
        return [4, 4] if ratio > 0.5 else [0, 1]

    assert smallest_ratio(left, 0.6, pick) == [0, 4]
    assert smallest_ratio(left, 0.5, pick) == [4, 1]
    assert smallest_ratio(left, 0.3, pick) == [4, 4]


def test_a_budget_out_of_reach_takes_all_that_may_go():
    _, _, groups = mlp(np.ones((2, 10)), np.ones((10, 2)))
    picked = candidates(groups, [np.arange(1, 11)])
    choice = smallest_ratio(
        lambda c: 1 - c[0] / 10, 0.05, lambda ratio: choose(picked, "layer", ratio)
    )
    assert choice == [9]


def test_within_no_loss_only_what_loses_nothing_goes():
    groups = two_layers()
    losses = [np.array([0, 0, 0.2, 1, 5.0]), np.array([0, 0.1, 0.2, 1, 5.0])]
    offers = offers_of(candidates(groups, [np.arange(1, 5)] * 2), losses, "cpu")
    assert allocate_within_loss(offers, cost, 0.0) == [1, 0]


@pytest.mark.parametrize("most", [0.05, 0.35, 0.5, 0.8, 1.6, 3.0, 12.0])
def test_no_other_choice_within_the_loss_saves_much_more(most):
    groups = two_layers()
    losses = [np.array([0, 0.1, 0.4, 1.2, 5]), np.array([0, 0.3, 0.7, 1.5, 5])]
    offers = offers_of(candidates(groups, [np.arange(1, 5)] * 2), losses, "cpu")
    found = allocate_within_loss(offers, cost, most)

    def loss(choice):
        return sum(own[n] for own, n in zip(losses, choice, strict=True))

    assert loss(found) <= most
    assert total_loss(offers, found) == pytest.approx(loss(found))
    least = min(cost(choice) for choice in every(groups) if loss(choice) <= most)
    # prices reach the corners of the trade only; between them what is left is filled greedily
    assert cost(found) <= least + 1 / 40


def test_what_saves_nothing_does_not_go():
    groups = two_layers()
    losses = [np.array([0, 0.1, 0.4, 1.2, 5])] * 2
    offers = offers_of(candidates(groups, [np.arange(1, 5)] * 2), losses, "cpu")
    found = allocate_within_loss(offers, lambda choice: 1 - choice[0] / 8, 12.0)
    assert found == [3, 0]
