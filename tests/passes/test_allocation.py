"""How the overall sparsity is spread over layers: exact totals, the papers' orders, a brute-force
LAMP.
"""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt.passes._sparsity.allocation import allocate, share
from onnx_opt.passes._sparsity.magnitude import NonFiniteError


def tensors_of(shapes, seed=0, scales=None):
    random = np.random.default_rng(seed)
    scales = scales or [1.0] * len(shapes)
    return [
        ir.Tensor((random.standard_normal(s) * x).astype(np.float32))
        for s, x in zip(shapes, scales, strict=True)
    ]


@pytest.mark.parametrize(
    ("sparsity", "size", "count"),
    [
        (0.29, 100, 29),
        (0.5, 7, 3),
        (0.0, 5, 0),
        (0.99, 100, 99),
        (0.7, 10, 7),
        (0.1, 9, 0),
    ],
)
def test_share_is_the_floor_of_the_decimal_as_written(sparsity, size, count):
    assert share(sparsity, size) == count


def test_uniform_takes_the_floor_of_each_layer():
    assert allocate("uniform", tensors_of([(3, 3), (5,)]), 0.5) == [4, 2]


def test_erk_spares_small_and_thin_layers():
    # densities e*(16+16)/256, e*(64+64)/4096; 4352*0.5 kept = e*(32 + 128) -> e = 13.6: the first
    # is dense, then
    # the second keeps 2176 - 256 = 1920
    assert allocate("erk", tensors_of([(16, 16), (64, 64)]), 0.5) == [0, 2176]


def test_erk_without_a_dense_layer_follows_the_formula():
    # floor(0.9 * 8704) = 7833 go, 871 are kept, spread as 64+64 : 128+36 -> 381.8 and 489.2
    assert allocate("erk", tensors_of([(64, 64), (128, 36)]), 0.9) == [
        4096 - 382,
        4608 - 489,
    ]


def lamp_by_definition(arrays, total):
    scores = []
    for layer, array in enumerate(arrays):
        squares = np.sort(array.reshape(-1).astype(np.float64) ** 2)
        scores += [(s, layer) for s in squares / np.cumsum(squares[::-1])[::-1]]
    taken = [layer for _, layer in sorted(scores)[:total]]
    return [taken.count(layer) for layer in range(len(arrays))]


def test_lamp_matches_its_definition_where_groups_are_single():
    arrays = [
        np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float32),
        np.array([0.1, 0.2, 10, 20], np.float32),
    ]
    for total in range(11):
        got = allocate("lamp", [ir.Tensor(a) for a in arrays], total / 12)
        assert got == lamp_by_definition(arrays, share(total / 12, 12))


def test_lamp_is_near_its_definition_on_real_sizes():
    tensors = tensors_of([(40, 50), (10, 30), (60, 60)], scales=[1.0, 0.01, 5.0])
    got = allocate("lamp", tensors, 0.8)
    assert sum(got) == share(0.8, 5900)
    assert (
        np.abs(
            np.subtract(got, lamp_by_definition([t.numpy() for t in tensors], 4720))
        ).max()
        <= 25
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    st.floats(0, 0.99),
    st.sampled_from(["erk", "lamp"]),
)
def test_totals_are_exact_and_no_layer_vanishes(shapes, sparsity, allocation):
    tensors = tensors_of(shapes)
    counts = allocate(allocation, tensors, sparsity)
    sizes = [t.size for t in tensors]
    assert all(0 <= c < n for c, n in zip(counts, sizes, strict=True))
    assert sum(counts) == min(share(sparsity, sum(sizes)), sum(n - 1 for n in sizes))


def test_lamp_names_the_layer_that_is_not_finite():
    tensors = [*tensors_of([(4, 4)]), ir.Tensor(np.array([1, np.inf], np.float32))]
    with pytest.raises(NonFiniteError) as caught:
        allocate("lamp", tensors, 0.5)
    assert caught.value.index == 1
