"""The k-th smallest magnitude: exact for every type, size, tie and sample."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_opt.passes._core.lazy import DerivedTensor
from onnx_opt.passes._sparsity import magnitude
from onnx_opt.passes._sparsity.magnitude import (
    NonFiniteError,
    Ranked,
    count_zeros,
    cut_ties,
    kth_smallest,
    value_of,
)

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
CODES = {
    np.float32: ir.DataType.FLOAT,
    np.float64: ir.DataType.DOUBLE,
    np.float16: ir.DataType.FLOAT16,
    ml_dtypes.bfloat16: ir.DataType.BFLOAT16,
}


def expected_rank(arrays, k, kind):
    magnitudes = np.concatenate(
        [np.abs(a.reshape(-1).astype(np.float64)) for a in arrays]
    )
    value = np.sort(magnitudes)[k - 1]
    key = int(np.asarray(value, magnitude.FLOAT_OF[kind]).view(kind))
    return Ranked(
        key, int((magnitudes < value).sum()), int((magnitudes == value).sum())
    )


def normal(size, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 700_001, 1_300_000])
def test_matches_a_full_sort(dtype, k):
    array = normal(1_300_000, dtype=dtype)
    kind = np.uint64 if dtype is np.float64 else np.uint32
    assert kth_smallest([ir.Tensor(array)], k) == expected_rank([array], k, kind)


def test_a_pool_of_several_types_and_sizes():
    arrays = [
        normal(400_000),
        normal(3, 1, np.float16),
        normal(200_000, 2, np.float64),
        normal(1, 3),
    ]
    for k in (1, 300_000, 600_004):
        assert kth_smallest([ir.Tensor(a) for a in arrays], k) == expected_rank(
            arrays, k, np.uint64
        )


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 2.0**-149]),
    ),
    st.floats(0, 1),
)
def test_ties_and_signs_of_zero(array, fraction):
    k = max(int(fraction * array.size), 1)
    assert kth_smallest([ir.Tensor(array)], k) == expected_rank([array], k, np.uint32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_radix_agrees_with_the_bracket(dtype, monkeypatch):
    array = np.round(normal(600_000, dtype=dtype), 2)
    tensor, kind = ir.Tensor(array), np.uint64 if dtype is np.float64 else np.uint32
    monkeypatch.setattr(magnitude, "_within", lambda *args: None)
    for k in (1, 1000, 300_000, 600_000):
        assert kth_smallest([tensor], k) == expected_rank([array], k, kind)


def test_a_sample_that_misleads_is_survived(monkeypatch):
    array = normal(600_000)
    monkeypatch.setattr(
        magnitude, "sample_of", lambda *args: np.full(100, 1, np.uint32)
    )
    assert kth_smallest([ir.Tensor(array)], 300_000) == expected_rank(
        [array], 300_000, np.uint32
    )


def test_half_zeros_are_ties_beyond_the_bracket(monkeypatch):
    array = normal(600_000)
    array[np.abs(array) < 0.6745] = 0
    monkeypatch.setattr(magnitude, "_BRACKET", 1000)
    for k in (1, 250_000, 400_000):
        assert kth_smallest([ir.Tensor(array)], k) == expected_rank(
            [array], k, np.uint32
        )


def test_external_and_derived_sources_agree(tmp_path):
    array = normal(900_000)
    array.tofile(tmp_path / "w.bin")
    external = ir.ExternalTensor(
        "w.bin",
        0,
        array.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(array.shape),
        name="w",
        base_dir=str(tmp_path),
    )
    derived = DerivedTensor(external, lambda block, start: block * 2, ir.DataType.FLOAT)
    expected = expected_rank([array], 450_000, np.uint32)
    assert kth_smallest([external], 450_000) == expected
    doubled = kth_smallest([derived], 450_000)
    assert value_of(doubled.key, np.uint32) == 2 * value_of(expected.key, np.uint32)
    assert (doubled.below, doubled.equal) == (expected.below, expected.equal)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
def test_non_finite_values_name_their_tensor(bad):
    array = normal(300_000)
    array[-1] = bad
    with pytest.raises(NonFiniteError) as caught:
        kth_smallest([ir.Tensor(normal(10)), ir.Tensor(array)], 5)
    assert caught.value.index == 1


def test_zeros_of_either_sign_are_counted():
    assert (
        count_zeros(
            [
                ir.Tensor(np.array([0.0, -0.0, 1e-45, -1], np.float32)),
                ir.Tensor(np.zeros(3)),
            ]
        )
        == 5
    )


def test_ties_are_cut_in_order_of_tensors_and_indices():
    tensors = [
        ir.Tensor(np.array(a, np.float32)) for a in ([1, 2, -2], [2, 3, 2], [2, 0, 0])
    ]
    key = int(np.float32(2).view(np.uint32))
    assert [cut_ties(tensors, key, n) for n in (0, 1, 2, 3, 4, 5)] == [
        [0, 0, 0],
        [2, 0, 0],
        [3, 0, 0],
        [3, 1, 0],
        [3, 3, 0],
        [3, 3, 1],
    ]
