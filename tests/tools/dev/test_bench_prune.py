"""The table of pruning: its bars, the methods and formats of others, and how a case is measured."""

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import bench_data
import bench_prune
from bench_data import BenchModel
from bench_prune import Bar, Case, Job, least, most
from peers.second_order import damped, optimal_brain_compression, sparsegpt
from peers.sparse_storage import core_ml_bits, sparsified


@pytest.mark.parametrize(
    ("bar", "figure", "met", "text"),
    [
        (most(0.01), 0.01, True, "≤ 0.01"),
        (most(0.01), 0.011, False, "≤ 0.01"),
        (least(0.4), 0.39, False, "≥ 0.4"),
        (Bar(0.97, 1.03), 1.0, True, "0.97–1.03"),
        (most(1), float("nan"), False, "≤ 1"),
        (most(1), None, False, "≤ 1"),
    ],
)
def test_bars(bar, figure, met, text):
    assert bar.meets(figure) is met
    assert str(bar) == text


def test_cases_have_names_of_their_own_and_models_that_exist():
    names = [case.name for case in bench_prune.CASES]
    assert len(set(names)) == len(names)
    # --only parts them by commas
    assert not any("," in name for name in names)
    known = {model.name for model in bench_data.MODELS}
    assert {case.model for case in bench_prune.CASES} <= known


# methods of others


def random_layer(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), inputs.T @ inputs / len(inputs)


def loss(before, after, gram):
    change = after - before
    return float(np.sum((change @ gram) * change))


@pytest.mark.parametrize("method", [sparsegpt, optimal_brain_compression])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_methods_leave_so_many_weights_and_beat_magnitude(method, sparsity):
    weights, gram = random_layer(6, 24)
    found = method(weights, gram, sparsity)
    assert np.sum(found == 0) == round(sparsity * weights.size)
    magnitude = np.where(
        np.abs(weights) > np.quantile(np.abs(weights), sparsity), weights, 0.0
    )
    assert loss(weights, found, gram) < 0.9 * loss(weights, magnitude, gram)


@pytest.mark.parametrize("method", [sparsegpt, optimal_brain_compression])
def test_inputs_without_correlation_leave_nothing_to_make_up_for(method):
    weights, _ = random_layer(4, 8)
    found = method(weights, np.eye(8), 0.5)
    kept = found != 0
    np.testing.assert_allclose(found[kept], weights[kept], rtol=1e-12)
    assert np.abs(weights[kept]).min() >= np.abs(weights[~kept]).max()


def fitted_without(weights, gone, matrix):
    """The row that loses least without some of its weights."""
    stays = [k for k in range(weights.shape[1]) if k not in gone]
    moved = matrix[np.ix_(stays, gone)] @ weights[0, gone]
    fitted = np.zeros_like(weights)
    fitted[0, stays] = weights[0, stays] + np.linalg.solve(
        matrix[np.ix_(stays, stays)], moved
    )
    return fitted


def test_sparsegpt_makes_up_for_the_leftmost_weight_as_least_squares_does():
    weights, gram = random_layer(1, 6)
    # so that it is the one that goes
    weights[0, 0] = 1e-6
    found = sparsegpt(weights, gram, 1 / 6)
    expected = fitted_without(weights, [0], damped(gram))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_obc_removes_the_first_weight_that_brute_force_would():
    weights, gram = random_layer(1, 6)
    found = optimal_brain_compression(weights, gram, 1 / 6)
    matrix = damped(gram)
    candidates = [fitted_without(weights, [gone], matrix) for gone in range(6)]
    losses = [loss(weights, each, matrix) for each in candidates]
    best = candidates[int(np.argmin(losses))]
    np.testing.assert_allclose(found, best, rtol=1e-9)


def test_obc_is_near_the_best_of_all_masks():
    weights, gram = random_layer(1, 8, seed=3)
    matrix = damped(gram)
    losses = [
        loss(weights, fitted_without(weights, list(gone), matrix), matrix)
        for gone in itertools.combinations(range(8), 4)
    ]
    best = min(losses)
    found = optimal_brain_compression(weights, gram, 0.5)
    # greedy, so not always the best itself
    assert best * (1 - 1e-9) <= loss(weights, found, matrix) <= 2 * best


# formats of others


def saved(array):
    tensor = numpy_helper.from_array(array, "w")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    return onnx.helper.make_model(graph)


@pytest.mark.parametrize(
    ("size", "kept", "index"),
    [(100, 10, np.int8), (1000, 100, np.int16), (40_000, 100, np.int32)],
)
def test_the_script_takes_the_narrowest_index_that_holds_the_last(size, kept, index):
    array = np.zeros(size, np.float32)
    array[-kept:] = 1.5
    (made,) = sparsified(saved(array)).graph.sparse_initializer
    assert numpy_helper.to_array(made.indices).dtype == index
    assert len(made.values.raw_data) == 4 * kept
    restored = np.zeros(size, np.float32)
    restored[numpy_helper.to_array(made.indices)] = numpy_helper.to_array(made.values)
    np.testing.assert_array_equal(restored, array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(100, dtype=np.float32) % 2 + 1,
        # 60 % zeros, but int32 indices outweigh int8 values
        (np.arange(100_000) % 5 > 2).astype(np.int8),
        np.zeros(100, bool),
    ],
)
def test_the_script_leaves_what_would_grow(array):
    found = sparsified(saved(array)).graph
    assert len(found.initializer) == 1
    assert len(found.sparse_initializer) == 0


@pytest.mark.parametrize(
    ("array", "bits"),
    [
        # dense: a mask would add a bit an element
        (np.arange(1, 101, dtype=np.int8), 100 * 8),
        # a mask and 20 of 100 values, all different
        (np.concatenate([np.zeros(80), np.arange(1, 21)]).astype(np.int8), 100 + 160),
        # a mask, an index of 1 bit for each nonzero, and a table of 2 values
        (np.repeat([0, 0, 0, 1, 2], 100).astype(np.int8), 500 + 200 + 16),
        # an index of 2 bits for each and a table of 4 values
        (np.repeat([1, 2, 3], 100).astype(np.float32), 600 + 4 * 32),
    ],
)
def test_core_ml_stores_what_is_smallest(array, bits):
    assert core_ml_bits(array) == bits


# cases


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A layer wide enough for `pack` to find something, with data of its own."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 64])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "layer.onnx"
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    mixed = rng.normal(size=(64, 64))

    def rows(seed):
        x = np.random.default_rng(seed).normal(size=(256, 64)) @ mixed
        x = x.astype(np.float32)
        return [
            ({"x": x[i : i + 32]}, (x[i : i + 32] @ weight).argmax(1))
            for i in range(0, 256, 32)
        ]

    monkeypatch.setattr(bench_data, "tiny_rows", lambda: rows(1), raising=False)
    monkeypatch.setattr(bench_data, "other_rows", lambda: rows(2), raising=False)
    model = BenchModel("layer", "tiny_rows", "other_rows", "top1", path=path)
    monkeypatch.setattr(bench_prune, "MODELS", [model])
    return model


def measured(kind, passes, bars, **options):
    case = Case("tiny", kind, "layer", passes, bars, **options)
    row = bench_prune.measured(Job(case, None, 0.01))
    assert row.error == ""
    return row


def test_a_pipeline_is_measured_on_rows_it_has_not_seen(model):
    bars = {"drop": most(0.5), "zeros": least(0.5)}
    row = measured("pipeline", "prune(sparsity=0.5)", bars)
    assert row.met == {"drop": True, "zeros": True}
    assert row.measured.figures["zeros"] == 0.5
    # the labels are the float model's own classes
    assert row.measured.figures["drop"] == pytest.approx(1 - row.measured.metric)
    assert row.measured.bits == pytest.approx(8 * row.measured.bytes / 4096)


def test_packed_bytes_are_counted_against_dense_ones_and_peers(model):
    bars = {"identical": least(1), "bytes / dense": most(0.4)}
    row = measured("storage", "prune(sparsity=0.8, fit=false)", bars, data=False)
    assert row.met == {"identical": True, "bytes / dense": True}
    figures = row.measured.figures
    # a bit an element and 32 for one of five, and nothing for graph and names
    assert figures["Core ML bits"] == pytest.approx(1 + 32 / 5, rel=1e-3)
    # an int16 beside each nonzero float, and the graph
    assert 0.30 < figures["ORT script's bytes / dense"] < 0.33


def test_a_layer_is_compared_on_the_same_moments(model):
    bars = {"error / SparseGPT's": most(1)}
    row = measured("layer", "", bars, shape=(64, 64))
    assert row.met == {"error / SparseGPT's": True}
    figures = row.measured.figures
    for name in ("ours", "OBC", "SparseGPT"):
        assert 0 < figures[f"{name}, seen"] < figures[f"{name}, unseen"] < 1
    assert figures["OBC, seen"] < figures["SparseGPT, seen"]


def test_a_case_that_fails_is_a_row(model):
    case = Case("tiny", "layer", "layer", "", {"drop": most(1)}, shape=(3, 3))
    row = bench_prune.measured(Job(case, None, 0.01))
    assert row.error == "LookupError: no layer of shape (3, 3)"
    assert row.met == {"drop": False}
