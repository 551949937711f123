"""Which channels go: ratios, pools of groups, widths, budgets."""

import itertools

import numpy as np
import pytest
from importance_nets import literal, solved
from onnx_opt.passes._channels.select import (
    Candidates,
    allowed_widths,
    choose,
    increments,
)


def layers(*widths):
    """Groups of hidden units, one layer behind the other."""
    sizes = [2, *widths, 2]
    weights = ", ".join(
        f"float[{a}, {b}] w{i} = {literal(np.ones((a, b)))}"
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    )
    steps = "\n".join(
        f"h{i + 1} = MatMul ({'x' if i == 0 else f'r{i}'}, w{i})\nr{i + 1} = Relu (h{i + 1})"
        for i in range(len(widths))
    )
    return solved(
        f"net (float[N, 2] x) => (float[N, 2] y) <{weights}> "
        f"{{ {steps}\n y = MatMul (r{len(widths)}, w{len(widths)}) }}"
    )[2]


def conv_group(width):
    _, _, groups = solved(f"""
        conv (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)
        <float[{width}, 1, 1, 1] a = {literal(np.ones(width))}, float[1, {width}, 1,
            1] b = {literal(np.ones(width))}>
        {{
            h = Conv (x, a)
            r = Relu (h)
            y = Conv (r, b)
        }}""")
    return groups[0]


def candidates(groups, scores, widths=None, was=None):
    sizes = [len(g.channels) for g in groups]
    widths = widths or [np.arange(1, size + 1) for size in sizes]
    return Candidates(
        groups, [np.array(s, float) for s in scores], widths, was or sizes
    )


def test_ratio_zero_takes_nothing():
    groups = layers(4, 3)
    assert choose(candidates(groups, [[1, 2, 3, 4], [1, 2, 3]]), "layer", 0.0) == [0, 0]
    assert choose(candidates(groups, [[1, 2, 3, 4], [1, 2, 3]]), "global", 0.0) == [
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.25, [1, 0]), (0.5, [2, 1]), (0.75, [3, 2]), (0.99, [3, 2])],
)
def test_a_share_of_each_group_goes_and_one_stays(ratio, expected):
    assert (
        choose(candidates(layers(4, 3), [[1, 2, 3, 4], [1, 2, 3]]), "layer", ratio)
        == expected
    )


def test_global_ranks_all_channels_together():
    groups = layers(4, 4)
    assert choose(
        candidates(groups, [[1, 2, 3, 4], [10, 20, 30, 40]]), "global", 0.25
    ) == [2, 0]
    assert choose(candidates(groups, [[1, 9, 9, 9], [2, 9, 9, 9]]), "global", 0.25) == [
        1,
        1,
    ]


def test_what_went_before_counts_towards_the_ratio():
    groups = layers(3, 4)
    assert choose(
        candidates(groups, [[1, 2, 3], [1, 2, 3, 4]], was=[4, 4]), "layer", 0.25
    ) == [0, 1]


def test_the_least_important_go_ties_in_graph_order():
    groups = layers(4)
    picked = candidates(groups, [[2, 1, 1, 3]])
    assert picked.removed([2]).tolist() == groups[0].channels[[1, 2]].tolist()


def test_widths_that_are_not_allowed_are_rounded_the_wider_of_two():
    widths = [np.array([1, 4, 8])]
    picked = candidates(layers(8), [range(8)], widths)
    assert [8 - picked.fitted(0, count) for count in range(8)] == [
        8,
        8,
        8,
        4,
        4,
        4,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("width", "multiple", "target", "expected"),
    [
        (64, None, "cpu", [16, 32, 48, 64]),
        (64, None, "cuda", [8, 16, 24, 32, 40, 48, 56, 64]),
        (16, None, "cpu", [8, 16]),
        (20, 8, "cpu", [8, 16, 20]),
        (3, 1, "cpu", [1, 2, 3]),
    ],
)
def test_widths_of_convolutions_suit_the_target(width, multiple, target, expected):
    found = allowed_widths(conv_group(width), width, multiple, True, 1, target)
    assert found.tolist() == expected


def test_zero_is_a_width_where_nothing_must_stay():
    found = allowed_widths(conv_group(32), 32, None, True, 0, "cpu")
    assert found.tolist() == [0, 16, 32]


def test_a_groups_own_width_stays_allowed_above_the_least():
    assert allowed_widths(layers(4)[0], 4, 1, False, 9, "cpu").tolist() == [4]


def test_increments_of_a_count_that_goes_up():
    assert increments(np.array([0.5, 0.1, 0.2])).tolist() == pytest.approx(
        [0.3, 0.1, 0.1]
    )


def test_increments_never_fall():
    assert increments(np.array([0.1, 0.15, 0.5])).tolist() == pytest.approx(
        [0.1, 0.1, 0.35]
    )


def test_a_gain_divides_scores():
    picked = candidates(layers(4, 4), [[1, 2, 3, 4], [1, 2, 3, 4]]).per_gain([1, 4])
    assert choose(picked, "global", 0.25) == [0, 2]
